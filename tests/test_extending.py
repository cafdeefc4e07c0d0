"""The examples of docs/extending.md run, and the files that it names are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (An? [^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)


@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_the_example_does_what_it_says(title, text, tmp_path):
    blocks = re.findall(r"```\w+\n# (file: (\S+)|check)\n(.*?)```", text, re.S)
    assert any(name for _, name, _ in blocks) and any(head == "check" for head, _, _ in blocks)
    for _, name, code in blocks:
        if name:
            (tmp_path / name).write_text(code)
            continue
        command = [sys.executable, "-c", code]
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]


def test_the_files_that_the_page_names_are_there():
    paths = set(re.findall(r"`((?:migr|reward|stages|eval|tests)/[\w/.]*)`", PAGE))
    paths |= {
        f"{folder}/{name}.py"
        for folder, names in re.findall(r"`([\w/]+)/\{([\w,]+)\}\.py`", PAGE)
        for name in names.split(",")
    }
    assert len(paths) > 15 and [path for path in paths if not (ROOT / path).exists()] == []
