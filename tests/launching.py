"""Commands side by side, as launchers start them; a hang is a failure."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from migr.files.records import read_json

CONFIGS = ROOT / "configs" / "accelerate"
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
DDP = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # over gloo
PATIENCE = 600  # seconds; a hang takes for ever

needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="DeepSpeed compiles an operator for the CPU")


def run(folder, *commands):
    """Run commands side by side; what they say. Whatever they started is gone when this returns."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    logs = [folder / f"said{number}.log" for number in range(len(commands))]
    processes = [
        subprocess.Popen(
            [*map(str, command)],
            cwd=folder,
            env=environment,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for command, log in zip(commands, logs, strict=True)
    ]
    end = time.monotonic() + PATIENCE
    try:
        codes = [process.wait(timeout=max(0, end - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail(f"hung for {PATIENCE} s:\n" + "\n".join(log.read_text()[-4000:] for log in logs))
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    said = "\n".join(log.read_text() for log in logs)
    assert not any(codes), f"{codes}\n{said[-8000:]}"
    return said


def two_processes(config):
    """The launcher of two processes of this machine."""
    return [ACCELERATE, "launch", "--config_file", CONFIGS / config, "--main_process_port", "0"]


def logged(folder, *keys):
    """These values of each step."""
    log = read_json(folder / "trainer_state.json")["log_history"]
    return [[row[key] for key in keys] for row in log if "loss" in row]
