"""Every command and path that the README and the pages of docs/ name is there, with the flags that they give it."""

import re
import subprocess
import sys
from functools import cache

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:python|accelerate launch|sbatch)(?: [^`\n]*)? ((?:stages|eval|tests)/[\w/]+\.py)([^`\n]*)")
LAUNCHER = {"--config_file", "--num_processes"}  # accelerate's own, before the script


@cache
def flags_of(script):
    """The flags that a script's help names; TRL's own fields belong to the trainings."""
    help_text = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", help_text))


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
