"""Steps of a job that are commands: run side by side, their progress shown, and what they were made with remembered."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from migr.cli import read_config
from migr.errors import InputError
from migr.files.records import digest
from migr.machine import cores


@dataclass(frozen=True)
class Step:
    """One command of the job and the file that shows it is done."""

    stage: str
    name: str
    command: list[str]
    output: Path


def step_digest(step: Step, places: Mapping[str, Path]) -> str:
    """A hash of a step's command and of what stands in the YAML that it names, wherever the folders in `places` lie."""
    words = step.command[1:]
    for name, folder in places.items():
        words = [part.replace(str(folder), name) for part in words]
    configs = [Path(value) for flag, value in zip(step.command, step.command[1:], strict=False) if flag == "--config"]
    return digest(words, *map(read_config, configs))


def check_settings(plan: Sequence[Step], now: Mapping[str, str], before: Mapping[str, str]) -> None:
    """Finished steps must have been made with the settings that they would be made with now.

    Args:
        plan: The steps.
        now: Step -> its `step_digest`.
        before: The same when it was run; steps that are not in it are taken as they are.

    Raises:
        InputError: Some were made with others.
    """
    other = [step for step in plan if step.output.exists() and before.get(step.name, now[step.name]) != now[step.name]]
    if other:
        raise InputError(
            f"{other[0].output}: made with other settings than these (--seed, --small or configs/demo): name another "
            f"--run, or remove {', '.join(step.name for step in other)} and all that comes after"
        )


def run_together(todo: Sequence[Step], logs: Path, seconds: dict[str, float]) -> None:
    """Run the steps of one stage side by side, one thread each, and show how far they are.

    Raises:
        InputError: A step failed; its last lines are shown, the whole log is named.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(todo)
    running: dict[str, tuple[Step, subprocess.Popen[bytes], Path, float]] = {}
    threads = str(max(1, min(4, cores() // len(todo))))  # more do not help a tiny model
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        _run(waiting, running, logs, environment, seconds)
    finally:  # one failed, or Ctrl-C
        for _, process, _, _ in running.values():
            process.terminate()


def _run(
    waiting: list[Step],
    running: dict[str, tuple[Step, subprocess.Popen[bytes], Path, float]],
    logs: Path,
    environment: Mapping[str, str],
    seconds: dict[str, float],
) -> None:
    status_line = ""
    while waiting or running:
        while waiting and len(running) < cores():
            step = waiting.pop(0)
            log = logs / f"{step.name.replace('/', '-')}.log"
            with log.open("wb") as file:
                process = subprocess.Popen(step.command, stdout=file, stderr=subprocess.STDOUT, env=environment)
            running[step.name] = (step, process, log, time.monotonic())
        time.sleep(0.5)
        for name, (step, process, log, start) in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[name]
            seconds[name] = round(time.monotonic() - start, 1)
            lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
            if code or not step.output.exists():
                print("\n" + "\n".join(lines[-15:]), file=sys.stderr)
                raise InputError(f"step {name} failed (status {code}); the whole log: {log}")
            summary = next((line for line in reversed(lines) if re.match(r"[a-z]+: ", line)), "")  # "sft: loss 0.41 …"
            print(f"\r{'':{len(status_line)}}\r      {name}, {seconds[name]:.0f} s   {summary}", flush=True)
            status_line = ""
        status = "      " + "   ".join(f"{name} {_progress(log)}" for name, (_, _, log, _) in running.items())
        if running and status != status_line and sys.stdout.isatty():
            print(f"\r{status:<{len(status_line)}}", end="", flush=True)
            status_line = status


def _progress(log: Path) -> str:
    """The last `12/150` of a progress bar in the log's tail."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 600))
        matches = re.findall(r"(\d+/\d+) \[", file.read().decode("utf-8", errors="replace"))
    return matches[-1] if matches else "…"
