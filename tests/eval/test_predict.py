"""Long runs: killed, crashed, out of disk, in shards; in the end the same bytes as a run that nothing disturbed.

Each run is a process forked from one that has the libraries loaded already: a start takes a second, so that many fit.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from power import small_disk

from eval.run import predict
from migr.errors import InputError
from migr.files.growing import Growing, Journal, ids_in, merge, part, parts, shard_of
from migr.files.records import read_json, read_jsonl, write_jsonl
from migr.text.labels import DFEW

ROOT = Path(__file__).resolve().parents[2]
CLIPS = 22
FILES = ("predictions.jsonl", "judgements.jsonl", "metrics.json")

# Holds the libraries, makes one whole run itself, then starts runs in forked processes as it is told, line by line.
DRIVER = """
import json, os, random, resource, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
import migr.omni
from eval.consistency import main
from migr.errors import exit_on_input_error
from migr.engine.transformers import TransformersEngine

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
argv = ["--clips", str(folder / "clips.jsonl"), "--model", str(folder / "model"), "--judge", "lexicon",
        "--engine", "transformers", "--batch_size", "4", "--max_new_tokens", "16", "--max_frames", "4",
        "--max_pixels", "3136", "--resamples", "20", "--cache_dir", str(folder / "cache")]

def start(out, *flags, before=None):
    pid = os.fork()
    if pid:
        return pid
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    code = 1
    try:
        if before:
            before()
        with exit_on_input_error():
            main([*argv, "--out", str(out), *flags])
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def rows(out):
    path = out / "predictions.jsonl"
    return path.read_bytes().count(b"\\n") if path.exists() else 0

answers, sys.stdout = sys.stdout, sys.stderr
main([*argv, "--out", str(out)])
for line in sys.stdin:
    name, code = json.loads(line)
    scope = {**globals(), "out": Path(name)}
    exec(code, scope)
    print(json.dumps(scope["result"]), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def driver(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    with open(out.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(folder), str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        yield process, out
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def drive(driver):
    """`drive(out, code)` runs code in the driver and returns its `result`."""
    process, whole = driver

    def run(out, code):
        process.stdin.write(json.dumps([str(out), code]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, whole.with_suffix(".log").read_text()
        return json.loads(line)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny untrained model and 22 clips: links to four rendered ones."""
    import migr.omni  # noqa: F401  (first: mends the libraries' imports)
    from migr.omni.prompt import question
    from migr.omni.tiny import build_tiny
    from migr.planted import clips as planted

    folder = tmp_path_factory.mktemp("long")
    build_tiny(folder / "model", [question(DFEW), "system\nYou are a helpful assistant.", "user\nassistant\n"] * 20)
    made = list(planted.make(folder, 0, {"train": 0, "val": 0, "test": 4}))
    rows = [
        {"clip_id": f"c{i}", "path": f"clips/{made[i % 4]['clip_id']}.mp4", "label": DFEW[i % 7], "split": "test"}
        for i in range(CLIPS)
    ]
    write_jsonl(folder / "clips.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def whole(drive, driver):
    """The files of a run that nothing disturbed."""
    out = driver[1]
    drive(out, "result = None")
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == [
        "env.json",
        "judgements.jsonl",
        "metrics.json",
        "predictions.jsonl",
        "report.html",
        "run.json",
        "timings.jsonl",
    ]
    rows = read_jsonl(out / "predictions.jsonl")
    assert [row["clip_id"] for row in rows] == [f"c{i}" for i in range(CLIPS)]
    assert "seconds" not in rows[0] and read_json(out / "metrics.json")["n_quarantined"] == 0
    assert {row["clip_id"] for row in read_jsonl(out / "timings.jsonl")} == {row["clip_id"] for row in rows}
    return {name: (out / name).read_bytes() for name in FILES}


def same(out, whole):
    assert {name: (out / name).read_bytes() for name in FILES} == whole
    assert not list(out.glob("inflight*")) and not list(out.glob("crash*")) and not list(out.glob("quarantined*"))


KILLS = """
draw, inside, codes = random.Random(TOTAL), 0, []
for kill in range(TOTAL):
    if rows(out) == 22:  # nothing left to interrupt: ended, and begun anew
        codes.append(end(start(out)))
        out.rename(out.with_name(f"ended-{len(codes)}"))
    before, given = rows(out), out / "inflight.jsonl"
    pid = start(out)
    if kill % 4 == 3:  # at any moment of a run
        time.sleep(draw.uniform(0.0, 2.0))
    else:  # while clips are with the engine, or as soon as more are written
        progress = kill % 4 == 2
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if rows(out) > before if progress else given.exists() and b"clip_id\\": \\"" in given.read_bytes():
                break
            time.sleep(0.002)
        else:
            continue
        time.sleep(draw.uniform(0.0, 0.1))
    os.kill(pid, signal.SIGKILL)
    end(pid)
    inside += 0 < rows(out) < 22
result = [[*codes, end(start(out))], inside]
"""


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_random_moments_ends_in_the_same_bytes(drive, whole, tmp_path, kills):
    codes, inside = drive(tmp_path / "run", KILLS.replace("TOTAL", str(kills)))
    assert not any(codes) and inside >= kills // 4, f"{inside} of {kills} kills came with predictions half written"
    for out in (tmp_path / "run", *tmp_path.glob("ended-*")):
        same(out, whole)
    print(f"{inside} of {kills} kills came with predictions half written")


def test_a_run_that_is_killed_after_each_written_row_ends_in_the_same_bytes(drive, whole, tmp_path):
    code = """
def before():
    from migr.files.growing import Growing
    append = Growing.append
    def once(self, row):
        append(self, row)
        if "response" in row and rows(out) % 6 == 3: os.kill(os.getpid(), signal.SIGKILL)
    Growing.append = once
codes = [end(start(out, before=before)) for _ in range(4)] + [end(start(out))]
result = codes
"""
    codes = drive(tmp_path / "run", code)
    assert codes == [-9, -9, -9, -9, 0]
    same(tmp_path / "run", whole)


POISON = """
def before():
    answer = TransformersEngine._answer
    def poisoned(self, requests, rows):
        if any(request.key == "c5" for request in requests):
            %s
        return answer(self, requests, rows)
    TransformersEngine._answer = poisoned
"""


@pytest.mark.parametrize(
    ("death", "codes", "cause"),
    [
        ("os.abort()", [-6, -6, 0], "Fatal Python error: Aborted"),
        ("raise RuntimeError('an illegal memory access')", [0, 0, 0], "RuntimeError: an illegal memory access"),
    ],
)
def test_a_clip_on_which_the_engine_dies_twice_is_left_out_and_counted(drive, whole, tmp_path, death, codes, cause):
    out = tmp_path / "run"
    code = POISON % death + "result = [end(start(out, before=before)) for _ in range(3)]"
    assert drive(out, code) == codes
    (left,) = read_jsonl(out / "quarantined.jsonl")
    assert left["clip_id"] == "c5" and len(left["deaths"]) == 2 and left["deaths"][0] == cause
    metrics = read_json(out / "metrics.json")
    assert metrics["n"] == CLIPS - 1 and metrics["n_quarantined"] == 1
    expected = [line for line in whole["predictions.jsonl"].splitlines() if b'"c5"' not in line]
    assert (out / "predictions.jsonl").read_bytes().splitlines() == expected
    assert "clip 'c5' is left out" in out.with_suffix(".log").read_text()
    (out / "quarantined.jsonl").unlink()  # tried again, with an engine that does not die
    assert drive(out, "result = end(start(out))") == 0
    same(out, whole)


def test_an_engine_that_dies_on_every_clip_stops_the_run_with_one_line(drive, tmp_path):
    out = tmp_path / "run"
    code = (POISON % "raise RuntimeError('no kernel image')").replace('== "c5"', '!= ""')
    assert drive(out, code + "result = end(start(out, before=before))") == 2
    last = out.with_suffix(".log").read_text().splitlines()[-1]
    assert last.startswith("error: the engine died before") and "no kernel image" in last
    assert not read_jsonl(out / "predictions.jsonl") and not (out / "quarantined.jsonl").exists()


def test_a_file_that_cannot_grow_is_one_line_and_the_run_goes_on_later(drive, whole, tmp_path):
    out = tmp_path / "run"
    code = """
def limit():
    sys.dont_write_bytecode = True  # Python before 3.12.8 keeps modules that it could only write in part
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, resource.RLIM_INFINITY))

result = [end(start(out, before=limit)), rows(out), end(start(out))]
"""
    first, rows, last = drive(out, code)
    assert (first, last) == (2, 0) and 4 < rows < CLIPS
    errors = [line for line in out.with_suffix(".log").read_text().splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "predictions.jsonl: cannot be written (File too large); make room" in errors[0]
    same(out, whole)


def test_a_full_disk_is_one_line_wherever_it_strikes_and_the_run_goes_on_later(drive, whole, tmp_path):
    disk = tmp_path / "disk"
    out = disk / "run"
    with small_disk(disk, 64):
        (disk / "run.log").symlink_to(tmp_path / "run.log")
        code = """
codes = []
for pages in (1, 3, 5, 7):
    files = [path for path in out.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    used = sum(-(-path.stat().st_size // 4096) for path in files)
    (out.parent / "filler").write_bytes(b"x" * 4096 * (16 - used - pages))
    codes.append(end(start(out)))
    (out.parent / "filler").unlink()
os.system(f"mount -o remount,size=4m {out.parent}")
result = [*codes, end(start(out))]
"""
        codes = drive(out, code)
        log = (tmp_path / "run.log").read_text()
        assert set(codes[:-1]) == {2} and codes[-1] == 0, (codes, log)
        errors = [line for line in log.splitlines() if line.startswith("error:")]
        assert len(errors) == 4 and all("No space left on device" in line for line in errors), log
        assert "Traceback" not in log
        same(out, whole)


@pytest.mark.parametrize("n", [2, 3])
def test_shards_make_the_very_files_of_one_process(drive, whole, tmp_path, n):
    out = tmp_path / "run"
    code = f"result = [end(p) for p in [start(out, '--shard', f'{{k}}/{n}') for k in range({n})]]"
    assert drive(out, code) == [0] * n
    same(out, whole)
    assert parts(out / "predictions.jsonl") == [out / "predictions.jsonl"]
    log = out.with_suffix(".log").read_text()
    assert log.count("the last one to end merges") == n - 1 and log.count("evaluation: WAR") == 1


def test_a_shard_that_was_killed_is_made_up_for_by_any_number_of_processes(drive, whole, tmp_path):
    out = tmp_path / "run"
    code = """
def torchrun(rank, n):
    def before():
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n)}
    return start(out, before=before)
codes = [end(start(out, "--shard", "1/3"))]
codes += [end(p) for p in [torchrun(0, 2), torchrun(1, 2)]]
result = codes
"""
    assert drive(out, code) == [0, 0, 0]
    same(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_torchrun_starts_the_shards(folder, whole, tmp_path, engine):
    flags = ["--clips", folder / "clips.jsonl", "--model", folder / "model", "--judge", "lexicon", "--engine", engine]
    flags += ["--batch_size", 4, "--max_new_tokens", 16, "--max_frames", 4, "--max_pixels", 3136, "--resamples", 20]
    flags += ["--cache_dir", folder / "cache", "--out", tmp_path / "run"]
    launch = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", 2, "--master-port", 29512]
    command = [str(word) for word in (*launch, ROOT / "eval" / "consistency.py", *flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    if engine == "transformers":
        same(tmp_path / "run", whole)
    made = {row["clip_id"]: row["response"] for row in read_jsonl(tmp_path / "run" / "predictions.jsonl")}
    expected = {row["clip_id"]: row["response"] for row in map(json.loads, whole["predictions.jsonl"].splitlines())}
    assert made == expected and list(made) == list(expected)


def test_two_processes_never_write_the_same_file(tmp_path):
    with Growing(tmp_path / "a.jsonl"), pytest.raises(InputError, match=r"a\.jsonl: another process is writing to it"):
        Growing(tmp_path / "a.jsonl").__enter__()
    with Growing(tmp_path / "a.jsonl") as file:
        file.append({"clip_id": "x"})
    assert ids_in([tmp_path / "a.jsonl"]) == {"x"}


def test_a_row_that_was_cut_off_goes(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"clip_id": "x"}\n{"clip_id": "y')
    assert ids_in([path]) == {"x"}
    with Growing(path) as file:
        file.append({"clip_id": "z"})
    assert path.read_bytes() == b'{"clip_id": "x"}\n{"clip_id": "z"}\n'


def test_merging_keeps_the_lines_as_they_are_and_refuses_two_versions_of_a_clip(tmp_path):
    path = tmp_path / "a.jsonl"
    for number, names in enumerate(("dbx", "cb", "a")):
        text = "".join(f'{{"clip_id":  "{name}", "é": "\\u00e9"}}\n' for name in names)
        part(path, (number, 3)).write_text(text)
    path.with_name("a.b.jsonl").write_text("another file")
    merge(path, list("abcd"))
    assert [row["clip_id"] for row in read_jsonl(path)] == list("abcdx") and '":  "' in path.read_text()
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.b.jsonl", "a.jsonl"]
    before = path.stat().st_mtime_ns
    merge(path, list("abcd"))
    assert path.stat().st_mtime_ns == before
    part(path, (1, 2)).write_text('{"clip_id": "b", "é": "other"}\n')
    with pytest.raises(InputError, match="clip 'b' stands otherwise in"):
        merge(path, list("abcd"))


def test_a_kill_for_want_of_memory_counts_and_a_kill_from_outside_does_not(tmp_path, monkeypatch):
    kills = 5
    monkeypatch.setattr("migr.files.growing._oom_kills", lambda: kills)
    path = tmp_path / "inflight.jsonl"

    def killed(done):
        journal = Journal(path, done)
        journal.__enter__()
        for name in "abc":
            journal.give(name)
        done.add("a")

    killed(set())
    assert Journal(path, {"a"}).deaths == {}
    kills = 6
    assert Journal(path, {"a"}).deaths == {name: ["killed for want of memory"] for name in "bc"}
    assert Journal(path, {"a"}).deaths == {name: ["killed for want of memory"] for name in "bc"}
    kills = 0  # the machine was started anew
    killed(set())
    assert len(Journal(path, {"a"}).deaths["b"]) == 1


@pytest.mark.parametrize("text", ["3", "2/2", "1/0", "-1/2", "a/b", "1/2/3", " 0/2"])
def test_a_shard_that_is_none_is_an_input_error(text):
    with pytest.raises(InputError, match=r"--shard .*for example 0/4"):
        shard_of(text, {})


def test_each_process_of_a_machine_gets_its_own_gpus(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for environ, tensor_parallel, expected in (
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 2, "2,3"),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "CUDA_VISIBLE_DEVICES": "7,5,6,4"}, 1, "5"),
        ({}, 2, None),
    ):
        predict.own_devices(environ, tensor_parallel)
        assert environ.get("CUDA_VISIBLE_DEVICES") == expected
    with pytest.raises(InputError, match="8 GPUs are wanted"):
        predict.own_devices({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    predict.own_devices(environ := {"LOCAL_RANK": "1"}, 1)
    assert "CUDA_VISIBLE_DEVICES" not in environ
