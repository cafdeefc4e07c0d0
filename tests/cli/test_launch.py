"""A mistake under a launcher: its line stands there once, on one process and on several."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SFT = [ROOT / "stages" / "sft.py", "--use_cpu", "true", "--bf16", "false", "--output_dir", "out"]
SILENT = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
TWO = ["--config_file", ROOT / "configs" / "accelerate" / "ddp.yaml", "--main_process_port", "0"]
ACCELERATE = [Path(sys.executable).with_name("accelerate"), "launch"]
OURS = [sys.executable, "-m", "migr.launch"]
SCRIPT = """
import os, sys, time
from migr.errors import InputError, exit_on_input_error
with exit_on_input_error():
    if os.environ["RANK"] in sys.argv[1:]:
        raise InputError("clips.jsonl: no such file")
    time.sleep(100)
"""


def launch(folder, *command):
    """Status and lines on standard error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [str(word) for word in command]
    ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    return ran.returncode, ran.stderr.splitlines()


@pytest.mark.parametrize(
    "launcher", ["ours", pytest.param("accelerate", marks=pytest.mark.slow)]
)  # accelerate alone: its `-q` keeps to the line, the status is 1
def test_one_process_ends_with_its_line(launcher, tmp_path):
    (tmp_path / "script.py").write_text("import os; os.environ['RANK'] = '0'\n" + SCRIPT)
    command, status = (OURS, 2) if launcher == "ours" else ([*ACCELERATE, "-q"], 1)
    assert launch(tmp_path, *command, *SILENT, "script.py", 0) == (status, ["error: clips.jsonl: no such file"])


@pytest.mark.parametrize("launcher", ["ours", "accelerate"])
def test_what_is_wrong_on_all_processes_is_said_once(launcher, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    status, lines = launch(tmp_path, *(OURS if launcher == "ours" else ACCELERATE), *TWO, "script.py", 0, 1)
    spoken = [line for line in lines if line.startswith("error")]
    assert spoken == ["error: clips.jsonl: no such file"]
    if launcher == "ours":
        assert (status, lines) == (2, spoken)
    else:  # its own report follows, and says it again as the cause
        assert status == 1 and lines[-2].endswith(": error: clips.jsonl: no such file")


@pytest.mark.slow
def test_what_is_wrong_on_one_process_alone_is_said_by_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    assert launch(tmp_path, *OURS, *TWO, "script.py", 1) == (2, ["error (process 1): clips.jsonl: no such file"])


def test_what_accelerate_minds_is_one_line_too(tmp_path):
    status, lines = launch(tmp_path, *OURS, "--config_file", "nothing.yaml", "script.py")
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: accelerate launch (The passed config")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.skipif(not shutil.which("c++"), reason="DeepSpeed looks for a compiler")
def test_sft_ends_with_its_line_and_status_2(processes, tmp_path):
    config = ["--config_file", ROOT / "configs" / "accelerate" / "zero2_cpu.yaml", "--main_process_port", "0"]
    status, lines = launch(tmp_path, *OURS, *(SILENT if processes == 1 else config), *SFT)
    expected = "error: --model is missing: give it on the command line or in the YAML (--help explains it)"
    assert (status, lines, list(tmp_path.iterdir())) == (2, [expected], [])
