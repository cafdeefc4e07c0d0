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
from migr.files.claim import hold
from migr.files.records import digest, read_json, write_json
from migr.machine import cores

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "demo"
SMALL = {  # of --small
    "data": ["--train", "56", "--val", "14", "--test", "14"],
    "train": ["--max_steps", "2", "--num_train_epochs", "1"],
}
# glibc gives each large tensor back to the system and takes it anew, a seventh of a training step on a CPU
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


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


def run_plan(plan: Sequence[Step], stages: Sequence[str], run: Path, **places: Path) -> None:
    """Run the steps that are not done yet, stage by stage; the run's folder keeps the seconds and settings of each.

    Args:
        plan: The steps; those of one stage do not depend on each other.
        stages: Names of the stages, in order.
        run: The run's folder.
        places: Other folders that the commands name, wherever they lie.

    Raises:
        InputError: A step failed, another process makes the same files, or what is there was made with other settings.
    """
    record, settings = run / "seconds.json", run / "settings.json"
    seconds: dict[str, float] = read_json(record) if record.exists() else {}
    before: dict[str, str] = read_json(settings) if settings.exists() else {}
    now = {step.name: step_digest(step, {"RUN": run, **places, "ROOT": ROOT}) for step in plan}
    check_settings(plan, now, before)
    stages = [stage for stage in stages if any(step.stage == stage for step in plan)]
    for number, stage in enumerate(stages, 1):
        todo = [step for step in plan if step.stage == stage and not step.output.exists()]
        print(f"[{number}/{len(stages)}] {stage}{'' if todo else ': there already'}", flush=True)
        if todo:
            hold(run)
            before |= {step.name: now[step.name] for step in todo}
            write_json(settings, before)
            run_together(todo, run / "logs", seconds)
            write_json(record, seconds)


def run_together(todo: Sequence[Step], logs: Path, seconds: dict[str, float]) -> None:
    """Run the steps of one stage side by side, one thread each, and show how far they are.

    Raises:
        InputError: A step failed; its last lines are shown, the whole log is named.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(todo)
    running: dict[str, tuple[Step, subprocess.Popen[bytes], Path, float]] = {}
    threads = str(max(1, min(4, cores() // len(todo))))  # more do not help a tiny model
    settings = {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = {**MEMORY, **os.environ, **settings}
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
