"""Two processes on one folder: the second says so before it writes anything, and the first's result is its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from migr.errors import InputError
from migr.files.claim import LOCK, claim, hold
from migr.files.growing import lock
from migr.files.records import read_json, read_jsonl

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from migr.files.claim import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other():
    """`other(folder)`: another process is at work there until the test ends."""
    started = []

    def start(folder):
        command = [sys.executable, "-c", HOLDER, str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_claim_of_a_folder_where_another_process_works_is_refused_and_changes_nothing(other, tmp_path):
    other(tmp_path)
    (tmp_path / "run.json").write_text('{"seed": 0}')
    for config in ({"seed": 0}, {"seed": 1}):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="another process is at work in it; wait for it, or give another"):
                claim(tmp_path, config, [tmp_path / "a.jsonl"], overwrite)
    assert read_json(tmp_path / "run.json") == {"seed": 0}


def test_the_folder_is_free_once_the_other_process_is_dead(other, tmp_path):
    process = other(tmp_path)
    with pytest.raises(InputError):
        hold(tmp_path)
    process.kill()
    process.wait()
    hold(tmp_path)
    hold(tmp_path)  # its own


def test_a_worker_that_outlives_a_killed_process_does_not_hold_its_folder(tmp_path):
    if (owner := os.fork()) == 0:
        hold(tmp_path)
        if os.fork() == 0:
            time.sleep(5)
        os._exit(0)
    os.waitpid(owner, 0)
    with (tmp_path / LOCK).open("ab") as file:
        assert lock(file.fileno(), wait=False)


PLANTED = ["--source", "planted", "--train", "14", "--val", "0", "--test", "0"]
COMMANDS = {
    "stages/data.py": PLANTED,
    "stages/demo/variants.py": ["--kind", "text", "--train", "1", "--test", "1"],
}


def run(name, folder, *arguments):
    command = [sys.executable, str(ROOT / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_that_another_process_works_in_its_folder(name, other, tmp_path):
    other(tmp_path / "out")
    ended = run(name, tmp_path, *COMMANDS[name], "--out", "out")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: out: another process is at work in it; wait for it, or give another folder\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


@pytest.mark.slow
def test_planted_data_made_by_two_processes_at_once_are_made_by_the_first(tmp_path):
    command = [sys.executable, str(ROOT / "stages" / "data.py"), *PLANTED, "--out", str(tmp_path / "out")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2]
    assert any("another process is at work" in text for text in said) and not any("Traceback" in text for text in said)
    assert len(read_jsonl(tmp_path / "out" / "clips.jsonl")) == 14
