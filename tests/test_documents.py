"""Every command has a help; every command and path that the pages name is there, with the flags that they give it."""

import os
import re
import subprocess
import sys
import tempfile
from functools import cache

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("stages", "eval")
    for path in (ROOT / folder).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
COMMAND = re.compile(r"(?:python|accelerate launch|sbatch)(?: [^`\n]*)? ((?:stages|eval|tests)/[\w/]+\.py)([^`\n]*)")


@cache
def help_of(script):
    """What a script's `--help` prints, started from an empty folder; TRL's own fields belong to the trainings."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / script), "--help"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert not os.listdir(folder)
    return done.stdout


def flags_of(script):
    """The flags that a script's help names."""
    return set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", help_of(script)))


def test_there_are_the_scripts_of_the_contract():
    names = {"data", "importance", "targets", "sft", "grpo", "export"}
    assert {f"stages/{name}.py" for name in names} | {"eval/consistency.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_works_from_any_folder_and_says_what_the_script_is_for(script):
    out = help_of(script)
    document = re.match(r'r?"""(.*?)"""', (ROOT / script).read_text(encoding="utf-8"), re.DOTALL).group(1)
    said = " ".join(out.split())
    assert " ".join(document.split("\n\n")[0].split()) in said  # what the stage is for
    assert f"python {script}" in out or f"accelerate launch {script}" in out  # an example to copy
    lines = re.sub(r"\\\\?\n", " ", document).splitlines()  # a command on several lines is one
    others = [line for line in lines if script not in line and re.search(r"\w/\w+\.py", line)]
    own = "\n".join(line for line in lines if line not in others)
    for flag in set(re.findall(r"--\w+", own)) - {"--help"}:
        assert re.search(rf"^  {flag}\b", out, re.MULTILINE), f"{flag} stands in the text, not in the list of flags"


def commands(page):
    """(script, flags) of each command of a page, continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for match in COMMAND.finditer(text):
        flags = re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", match.group(2).partition("  #")[0])
        yield match.group(1), flags


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_there_with_its_flags(page):
    for script, flags in commands(page):
        assert (ROOT / script).is_file(), f"{page.name} names {script}, which is not there"
        if flags and not script.startswith("tests/"):
            assert not set(flags) - flags_of(script), f"{page.name}: {script} has no {set(flags) - flags_of(script)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_every_link_of_a_page_is_there(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:migr|stages|eval|reward|configs|tests|docs)/[\w./-]*)`", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"{page.name} names {missing}"
    links = [link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) if not link.startswith("http")]
    broken = [link for link in links if not (page.parent / link).exists()]
    assert not broken, f"{page.name} links to {broken}"


def test_every_make_target_of_the_pages_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        names = set(re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8")))
        assert names <= targets, f"{page.name} names make {names - targets}"
