"""Real data sets' trees, built of rendered clips with bad files among them, through stages/data.py."""

import csv
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import media_files
import numpy as np
import pytest
from conftest import ROOT, flags
from PIL import Image

from migr.clips.examine import examine
from migr.clips.manifest import read_clips
from migr.clips.media import MediaSettings, read_media
from migr.errors import InputError
from migr.files.records import read_json, read_jsonl, write_jsonl
from migr.sources import checking, dfew, mafw, probing
from migr.text.labels import label_set

TO_MAFW = {"happy": "happiness", "sad": "sadness", "angry": "anger"}


@pytest.fixture(scope="session")
def bad(tmp_path_factory):
    return media_files.bad(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="session")
def good(planted_run, tmp_path_factory):
    """(file, label, split) of 42 planted clips and of one without sound; there is no split `val` in DFEW and MAFW."""
    clips = read_clips(planted_run.clips)
    silent = media_files.clip(tmp_path_factory.mktemp("silent") / "silent.mp4", audio=False)
    found = [(clip.path, clip.label, "train" if clip.split == "train" else "test") for clip in clips]
    return [*found, (silent, "sad", "train")]


@pytest.fixture(scope="session")
def mixed(good, bad):
    """The good clips and the bad files, and each bad one's clip id and reason (ids are positions from 1)."""
    clips = [*good, *((file, "fear", "test" if n % 2 else "train") for n, (file, _) in enumerate(bad.values()))]
    reasons = {f"{len(good) + n:05d}": reason for n, (_, reason) in enumerate(bad.values(), 1)}
    return clips, reasons


@pytest.fixture(scope="session")
def dfew_root(mixed, tmp_path_factory):
    root = tmp_path_factory.mktemp("DFEW")
    media_files.dfew(root, mixed[0])
    return root


def check_manifest(out, labels, total):
    """Every clip of the source stands in exactly one file, and what is in clips.jsonl is what training can read."""
    rows, excluded = read_jsonl(out / "clips.jsonl", unique="clip_id"), read_jsonl(out / "excluded.jsonl")
    ids = [row["clip_id"] for row in [*rows, *excluded]]
    assert len(ids) == len(set(ids)) == total
    assert all(row["reason"] in checking.REASONS and row["detail"] for row in excluded)
    clips = read_clips(out / "clips.jsonl", label_set(labels))
    for clip, row in zip(clips, rows, strict=True):
        media = read_media(clip.path, MediaSettings(max_pixels=3136), video=clip.has_video, audio=clip.has_audio)
        if clip.has_video:
            assert media.duration == pytest.approx(row["duration"], abs=1e-3)
        assert (row["sample_rate"] is None) == (not clip.has_audio)
    return clips, {row["clip_id"]: row["reason"] for row in excluded}


def test_a_dfew_tree_with_a_dozen_bad_files(dfew_root, mixed, good, stage, tmp_path, capsys):
    clips, reasons = mixed
    stage("data", source="dfew", root=dfew_root, out=tmp_path / "out", fold=1, max_excluded=0.3)
    found, excluded = check_manifest(tmp_path / "out", "dfew", len(clips))
    assert excluded == reasons and len(reasons) >= 12
    assert [(clip.clip_id, clip.label, clip.split) for clip in found] == sorted(
        ((f"{n:05d}", label, split) for n, (_, label, split) in enumerate(good, 1)), key=lambda x: x[2], reverse=True
    )
    assert [clip.clip_id for clip in found if not clip.has_audio] == [f"{len(good):05d}"]  # kept, beside the others
    first = read_jsonl(tmp_path / "out" / "clips.jsonl")[0]
    assert (first["fps"], first["width"], first["height"], first["sample_rate"]) == (6.0, 112, 112, 16000)
    assert first["frames"] == round(first["duration"] * 6)
    said = capsys.readouterr().out
    train = sum(split == "train" for _, _, split in clips)
    assert f"dfew fold 1 names {train} train clips, published are 9356" in said
    assert f"data: {len(good)} clips" in said and "4 unreadable" in said and f"{len(clips) - 1} examined" in said
    record = read_json(tmp_path / "out" / "data.json")
    assert record["root"] == str((dfew_root / "Clip" / "original").resolve())
    assert sum(record["clips"].values()) == len(good) and sum(record["excluded"].values()) == len(reasons)


def test_a_mafw_tree_with_a_dozen_bad_files(mixed, good, stage, tmp_path):
    clips, reasons = mixed
    as_mafw = [(file, TO_MAFW.get(label, label), split) for file, label, split in clips]
    media_files.mafw(tmp_path / "MAFW", as_mafw, fold=3)
    stage("data", source="mafw", root=tmp_path / "MAFW", out=tmp_path / "out", fold=3, max_excluded=0.3)
    found, excluded = check_manifest(tmp_path / "out", "mafw", len(clips))
    assert excluded == reasons
    assert {clip.clip_id: clip.label for clip in found} == {
        f"{n:05d}": label for n, (_, label, _) in enumerate(as_mafw[: len(good)], 1)
    }
    assert read_json(tmp_path / "out" / "data.json")["published"] == {"train": 7339, "test": 1833}


def test_too_many_bad_clips_end_with_status_2_a_summary_and_no_manifest(dfew_root, mixed, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "clips.jsonl").write_text("an earlier manifest, which would hide the loss\n")
    given = flags(source="dfew", root=dfew_root, out=out)
    command = [sys.executable, ROOT / "stages" / "data.py", *given, "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {len(mixed[1])} of {len(mixed[0])} clips cannot be used (4 unreadable, ")
    assert "--max_excluded is 0.05" in last and "excluded.jsonl says which" in last
    assert not (out / "clips.jsonl").exists() and not (out / "data.json").exists()
    assert {row["clip_id"] for row in read_jsonl(out / "excluded.jsonl")} == set(mixed[1])


def test_a_second_run_examines_what_has_changed_and_nothing_else(good, stage, tmp_path, capsys):
    root, out = tmp_path / "DFEW", tmp_path / "out"
    clips = [(tmp_path / f"{n}.mp4", label, split) for n, (_, label, split) in enumerate(good[:8])]
    for (copy, _, _), (file, _, _) in zip(clips, good, strict=False):
        shutil.copy(file, copy)
    media_files.dfew(root, clips)
    run = {"source": "dfew", "root": root, "out": out, "max_excluded": 0.5}
    stage("data", **run)
    manifest = (out / "clips.jsonl").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "COMMAND", ["/nowhere/not-started"])
        stage("data", **run)
    assert (out / "clips.jsonl").read_text() == manifest and "; 0 examined" in capsys.readouterr().out
    clips[0][0].write_bytes(b"overwritten")  # the tree has hard links to it
    os.utime(clips[1][0])
    clips[2][0].unlink()
    (root / "Clip" / "original" / "part_2" / "3.mp4").unlink()
    with (out / "probes.jsonl").open("a") as file:
        file.write('{"key": "cut off in the mid')
    stage("data", **run)
    assert "; 2 examined" in capsys.readouterr().out
    _, excluded = check_manifest(out, "dfew", 8)
    assert excluded == {"00001": "unreadable", "00003": "missing"}
    stage("data", **run | {"backend": "decord", "out": tmp_path / "other", "cache_dir": out})
    assert "; 7 examined" in capsys.readouterr().out  # results of another reader are others


def test_a_killed_run_goes_on_where_it_was(good, tmp_path):
    root, files = tmp_path / "mine", [file for file, _, _ in good]
    root.mkdir()
    for n in range(120):
        os.link(files[n % len(files)], root / f"{n}.mp4")
    (root / "all.csv").write_text("path,label\n" + "".join(f"{n}.mp4,sad\n" for n in range(120)))
    command = [sys.executable, ROOT / "stages" / "data.py", "--source", "table", "--table", root / "all.csv"]
    probes = tmp_path / "killed" / "probes.jsonl"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--out", tmp_path / "killed"], stdout=log, stderr=log)
    while not probes.exists() or len(probes.read_bytes().splitlines()) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(probes.read_bytes().splitlines())
    assert 20 <= kept < 120 and not (tmp_path / "killed" / "clips.jsonl").exists()
    for out in ("killed", "whole"):
        done = subprocess.run([*command, "--out", tmp_path / out], capture_output=True, text=True, check=True)
        examined = int(re.search(r"(\d+) examined", done.stdout)[1])
        assert examined == 120 if out == "whole" else 120 - kept - 1 <= examined <= 120 - kept
    manifests = [(tmp_path / out / "clips.jsonl").read_text() for out in ("killed", "whole")]
    assert manifests[0] == manifests[1] and manifests[0].count("\n") == 120


WORKER = """
import os, signal, sys, time
from migr.sources import probing
true = probing.examine
def examine(path, *settings):
    if path.name == "crash.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.name == "hang.mp4":
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # only the parent is left to end it
        while True:
            pass
    if path.name == "greedy.mp4":
        bytearray(8 * 2**30)
    if path.name == "noisy.mp4":
        os.write(1, b'{"facts": "not the answer"}\\n')
    if path.name == "exit.mp4":
        os._exit(3)
    return true(path, *settings)
probing.examine = examine
probing.serve(int(sys.argv[1]), float(sys.argv[2]))
"""


def test_a_clip_that_hangs_crashes_or_takes_all_memory_costs_itself_alone(good, stage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probing, "COMMAND", [sys.executable, "-c", WORKER])
    names = ["a", "crash", "b", "hang", "c", "greedy", "noisy", "d", "crash/crash", "e", "exit", "f"]
    (tmp_path / "crash").mkdir()
    for (file, _, _), name in zip(good, names, strict=False):
        os.link(file, tmp_path / f"{name}.mp4")
    write_jsonl(tmp_path / "t.jsonl", [{"path": f"{name}.mp4", "label": "sad"} for name in names])
    run = {"source": "table", "table": tmp_path / "t.jsonl", "out": tmp_path / "out", "max_excluded": 0.9}
    start = time.monotonic()
    stage("data", **run, timeout=3, workers=2)
    assert time.monotonic() - start < 120
    _, excluded = check_manifest(tmp_path / "out", "dfew", len(names))
    expected = {"crash": "crashed", "crash/crash": "crashed", "exit": "crashed", "hang": "timeout"}
    assert excluded == expected | {"greedy": "no_memory"}
    details = {row["clip_id"]: row["detail"] for row in read_jsonl(tmp_path / "out" / "excluded.jsonl")}
    assert "SIGSEGV" in details["crash"] and "3 s" in details["hang"] and "status 3" in details["exit"]
    monkeypatch.undo()
    capsys.readouterr()
    stage("data", **run)  # it may have been the machine: those are tried again, the others not
    assert "; 5 examined" in capsys.readouterr().out
    assert check_manifest(tmp_path / "out", "dfew", len(names))[1] == {}


def test_no_process_outlives_its_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "COMMAND", [sys.executable, "-c", WORKER])
    jobs = [{"path": str(tmp_path / "hang.mp4"), "max_seconds": 30, "backend": "pyav"} for _ in range(2)]
    results = probing.examine_all(jobs, workers=2, timeout=2, memory=2**30)
    assert next(results)[1]["reason"] == "timeout"
    results.close()
    children = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()
    assert not any("WORKER" in (Path("/proc") / child / "cmdline").read_text() for child in children)


def test_a_worker_that_cannot_start_is_said_at_once(good, stage, tmp_path, monkeypatch):
    os.link(good[0][0], tmp_path / "a.mp4")
    (tmp_path / "t.csv").write_text("path,label\na.mp4,sad\n")
    monkeypatch.setattr(probing, "COMMAND", [sys.executable, "-c", "raise SystemExit(7)"])
    with pytest.raises(InputError, match=r"does not start \(status 7\)"):
        stage("data", source="table", table=tmp_path / "t.csv", out=tmp_path / "out")


def test_a_table_in_csv_or_jsonl_with_synonyms_transcripts_and_paths_that_leave_the_root(good, stage, tmp_path):
    root = tmp_path / "mine"
    (root / "sub").mkdir(parents=True)
    for name, (file, _, _) in zip(("a.mp4", "sub/b.mp4", "c.mp4", "../secret.mp4"), good, strict=False):
        os.link(file, root / name)
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    rows = [
        {"path": "a.mp4", "label": "Joyful", "transcript": "Well, well", "split": "test", "speaker": "7"},
        {"path": "sub/b.mp4", "label": "", "transcript": "", "split": ""},
        {"path": str(root / "c.mp4"), "label": "anger", "clip_id": "the third"},
        {"path": "../secret.mp4", "label": "sad"},
        {"path": str(tmp_path / "secret.mp4"), "label": "sad"},
        {"path": "link.mp4", "label": "sad", "clip_id": "link"},
        {"path": "http://host/x.mp4", "label": "sad", "clip_id": "url"},
    ]
    write_jsonl(root / "t.jsonl", rows)
    with (root / "t.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "transcript", "split", "clip_id", "speaker"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    for table in ("t.csv", "t.jsonl"):
        out = tmp_path / table
        stage("data", source="table", table=root / table, out=out, max_excluded=0.8)
        clips, excluded = check_manifest(out, "dfew", 7)
        assert [(c.clip_id, c.label, c.split, c.extra.get("transcript")) for c in clips] == [
            ("a", "happy", "test", "Well, well"),
            ("sub/b", None, "train", None),
            ("the third", "angry", "train", None),
        ]
        assert clips[0].extra["speaker"] == "7" and clips[0].modalities == ("video", "audio", "text")
        assert set(excluded.values()) == {"outside_root"} and len(excluded) == 4


def test_manifests_of_two_data_sets_become_one(good, stage, tmp_path):
    media_files.dfew(tmp_path / "DFEW", [(file, label, split) for file, label, split in good[:3]])
    as_mafw = [(file, TO_MAFW.get(label, label), split) for file, label, split in good[3:6]]
    media_files.mafw(tmp_path / "MAFW", as_mafw)
    for name in ("dfew", "mafw"):
        stage("data", source=name, root=tmp_path / name.upper(), out=tmp_path / name)
    tables = [tmp_path / name / "clips.jsonl" for name in ("dfew", "mafw")]
    stage("data", source="table", table=tables, root=tmp_path, labels="mafw", out=tmp_path / "both")
    clips, excluded = check_manifest(tmp_path / "both", "mafw", 6)
    assert not excluded and [clip.clip_id for clip in clips] == [
        f"{n}/0000{i}" for n in ("dfew", "mafw") for i in (1, 2, 3)
    ]
    assert [clip.path.samefile(file) for clip, (file, _, _) in zip(clips, good, strict=False)] == [True] * 6
    assert [clip.label for clip in clips] == [TO_MAFW.get(label, label) for _, label, _ in good[:6]]
    run = {"source": "table", "table": tables, "root": tmp_path / "MAFW", "labels": "mafw", "max_excluded": 0.9}
    stage("data", **run, out=tmp_path / "one")  # a root that does not hold them all
    _, excluded = check_manifest(tmp_path / "one", "mafw", 6)
    assert excluded == dict.fromkeys(("dfew/00001", "dfew/00002", "dfew/00003"), "outside_root")


def test_which_streams_a_clip_must_have_is_the_users_choice(good, bad, stage, tmp_path):
    for name, file in {"both": good[0][0], "silent": good[-1][0], "blind": bad["no video"][0]}.items():
        os.link(file, tmp_path / f"{name}.mp4")
    (tmp_path / "t.csv").write_text("path,label\nboth.mp4,sad\nsilent.mp4,sad\nblind.mp4,sad\n")
    expected = {
        "video": {"blind": "no_video"},
        "audio": {"silent": "no_audio"},
        "both": {"blind": "no_video", "silent": "no_audio"},
        "any": {},
    }
    for require, reasons in expected.items():
        out = tmp_path / require
        run = {"source": "table", "table": tmp_path / "t.csv", "out": out, "cache_dir": tmp_path, "max_excluded": 0.9}
        stage("data", **run, require=require)
        clips, excluded = check_manifest(out, "dfew", 3)
        assert excluded == reasons
        for clip in clips:
            assert (clip.has_video, clip.has_audio) == (clip.clip_id != "blind", clip.clip_id != "silent")


def test_frame_folders_become_videos_of_the_very_same_pictures(stage, tmp_path):
    root, out = tmp_path / "DFEW", tmp_path / "out"
    media_files.dfew(root, [(None, "sad", "train")] * 7)
    folder = root / "Clip" / "clip_224x224"
    ramp = np.linspace(0, 255, 224).astype(np.uint8)
    for name, count in {"00001": 12, "00002": 2, "00003": 1, "00004": 5, "00005": 5, "00006": 0}.items():
        (folder / name).mkdir(parents=True)
        for index in range(1, count + 1):
            picture = np.stack([np.tile(ramp, (224, 1)), np.tile(ramp, (224, 1)).T, np.full((224, 224), 20 * index)], 2)
            Image.fromarray(picture.astype(np.uint8)).save(folder / name / f"{index}.jpg", quality=95)
    Image.new("RGB", (200, 224)).save(folder / "00004" / "3.jpg")
    (folder / "00005" / "4.jpg").write_bytes(b"no picture")
    run = {"source": "dfew", "root": root, "out": out, "max_excluded": 0.9}
    with pytest.raises(InputError, match=r"original: not there; the frame folders can be used.* --frame_rate 25"):
        stage("data", **run)
    stage("data", **run, frame_rate=12.5)
    clips, excluded = check_manifest(out, "dfew", 7)
    assert excluded == {
        "00003": "too_few_frames",
        "00004": "damaged",
        "00005": "damaged",
        "00006": "no_video",
        "00007": "missing",
    }
    assert [(clip.clip_id, clip.has_audio, clip.extra["fps"]) for clip in clips] == [
        ("00001", False, 12.5),
        ("00002", False, 12.5),
    ]
    settings = MediaSettings(fps=12.5, min_frames=12, max_pixels=224 * 224, min_pixels=224 * 224)
    frames = read_media(clips[0].path, settings, audio=False).frames
    content = clips[0].path.read_bytes()
    for index in range(1, 13):  # 2 before 10
        jpg = (folder / "00001" / f"{index}.jpg").read_bytes()
        assert jpg in content
        decoded = np.asarray(Image.open(io.BytesIO(jpg))).transpose(2, 0, 1)
        assert np.abs(frames[index - 1].astype(int) - decoded).mean() < 2
    made = clips[0].path.stat().st_mtime_ns
    stage("data", **run, frame_rate=12.5)
    assert clips[0].path.stat().st_mtime_ns == made
    clips[0].path.unlink()  # a lost one is made again
    stage("data", **run, frame_rate=12.5)
    assert examine(clips[0].path, 30)["frames"] == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video_name,label\n1,8\n", r"set_1\.csv:2: label must be 1 to 7, not '8'"),
        ("video_name,label\n1,0\n", r"set_1\.csv:2: label must be 1 to 7"),
        ("video_name,label\n1,2\nx,2\n", r"set_1\.csv:3: video_name must be a clip's number, not 'x'"),
        ("video_name,label\n1,2\n01,3\n", r"set_1\.csv:3: clip 00001 is named twice, first in .*set_1\.csv:2"),
        ("video_name,label\n1,2,3\n", r"set_1\.csv:2: another number of columns"),
        ("video_name,label\n1\n", r"set_1\.csv:2: another number of columns"),
        (
            "name,label\n1,2\n",
            r"set_1\.csv:1: no header names the columns video_name, label; the first line is 'name,label'",
        ),
        ("", r"no header names the columns video_name, label; the first line is ''"),
        ('video_name,label\n"1,2\n', "not valid CSV"),
        (b"video_name,label\n\xff\xfe,2\n", "not UTF-8"),
        (None, r"set_1\.csv: not there; --root must be the DFEW folder"),
    ],
)
def test_a_wrong_split_file_is_refused_with_its_line(tmp_path, content, message):
    media_files.dfew(tmp_path, [(None, "sad", "test")])
    (tmp_path / "Clip" / "original").mkdir(parents=True)
    file = tmp_path / "EmoLabel_DataSplit" / "train(single-labeled)" / "set_1.csv"
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "EmoLabel_DataSplit" / "test(single-labeled)" / "set_1.csv").write_text("video_name,label\n")
    with pytest.raises(InputError, match=message):
        dfew.read(tmp_path, 1)


def test_a_clip_that_is_named_or_lies_there_twice_is_refused(tmp_path, good):
    media_files.dfew(tmp_path, [(good[0][0], "sad", "train"), (good[1][0], "sad", "test")])
    other = tmp_path / "Clip" / "original" / "part_9"
    other.mkdir()
    os.link(good[1][0], other / "00001.mp4")
    with pytest.raises(InputError, match=r"1\.mp4 and part_9/00001\.mp4 are the same clip"):
        dfew.read(tmp_path, 1)
    (other / "00001.mp4").unlink()
    table = tmp_path / "EmoLabel_DataSplit" / "test(single-labeled)" / "set_1.csv"
    table.write_text("video_name,label\n1,2\n")
    with pytest.raises(InputError, match="clip 00001 is named twice"):
        dfew.read(tmp_path, 1)


@pytest.mark.parametrize("line", ["00001.mp4", "x.mp4 fear", "00001.mp4 joy of life", "00001.mp4 happiness sadness"])
def test_a_wrong_line_of_mafw_is_refused(tmp_path, line):
    media_files.mafw(tmp_path, [(None, "fear", "train"), (None, "fear", "test")])
    file = tmp_path / "Train & Test Set" / "single" / "no_caption" / "set_1" / "test.txt"
    file.write_text(f"00007.mp4 anger\n\n{line}\n")
    with pytest.raises(InputError, match=r"test\.txt:3: "):
        mafw.read(tmp_path, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"path": "a.mp4", "label": "sad"}, {"path": "b.mp4", "label": "smug"}],
            r"t\.jsonl:2: label 'smug' is not one",
        ),
        ([{"path": "a.mp4", "label": 3}], r"t\.jsonl:1: label 3 is not one of"),
        ([{"path": "a.mp4"}], r"t\.jsonl:1: missing 'label'"),
        ([{"path": "", "label": "sad"}], r"t\.jsonl:1: path must be"),
        ([{"path": "a.mp4", "label": "sad", "transcript": 7}], r"t\.jsonl:1: transcript must be"),
        ([{"path": "a.mp4", "label": "sad", "split": 7}], r"t\.jsonl:1: split must be"),
        ([{"path": "a.mp4", "label": "sad"}, {"path": "a.wav", "label": "sad"}], r"t\.jsonl:2: clip a is named twice"),
        ([], "no rows"),
    ],
)
def test_a_wrong_row_of_a_table_is_refused_with_its_line(stage, tmp_path, rows, message):
    write_jsonl(tmp_path / "t.jsonl", rows)
    with pytest.raises(InputError, match=message):
        stage("data", source="table", table=tmp_path / "t.jsonl", out=tmp_path / "out")
    assert not (tmp_path / "out" / "clips.jsonl").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "dfew"}, "--source dfew needs --root"),
        ({"source": "table"}, "--source table needs --table"),
        ({"source": "table", "table": ["a.csv", "b.csv"]}, "several tables need --root"),
        ({"source": "mafw", "root": "x", "frame_rate": 25}, "--frame_rate does not go with --source mafw"),
        ({"source": "table", "table": "x.csv", "fold": 2}, "--fold does not go with --source table"),
        ({"source": "planted", "fold": 2}, "--fold does not go with --source planted"),
        ({"source": "dfew", "root": "x", "train": 5}, "--train does not go with --source dfew"),
        ({"source": "dfew", "root": "x", "fold": 6}, "invalid choice: 6"),
        ({"source": "dfew", "root": "x", "max_excluded": 1}, "--max_excluded"),
        ({"source": "dfew", "root": "x", "timeout": 0}, "--timeout"),
        ({"source": "dfew", "root": "x", "workers": -1}, "--workers"),
        ({"source": "dfew", "root": "nowhere"}, "nowhere/Clip/original: not there"),
        ({"source": "mafw", "root": "nowhere"}, "nowhere/data/clips: not there"),
        ({"source": "table", "table": "nowhere.csv"}, "nowhere.csv: no such file"),
        ({"source": "table", "table": "t.xlsx"}, "t.xlsx: no such file"),
        ({"source": "table", "table": "t.ods"}, "must end in .csv, .tsv, .txt, .xlsx, .xlsm or .jsonl"),
        ({"source": "table", "table": "x.csv", "labels": "nowhere"}, "labels 'nowhere'"),
    ],
)
def test_flags_that_are_wrong_or_belong_to_another_source_are_refused(stage, tmp_path, values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        stage("data", **values, out=tmp_path)


def test_a_folder_keeps_to_one_source_and_fold(planted_run, dfew_root, stage, tmp_path):
    with pytest.raises(InputError, match=r"with another source \(planted, now \w+\), .*: give another --out"):
        stage("data", source="dfew", root=dfew_root, out=planted_run.clips.parent)
    assert read_clips(planted_run.clips)


def test_the_published_sizes_are_those_of_the_data_sets():
    assert {sum(sizes) for sizes in dfew.PUBLISHED.values()} == {11697}
    assert sum(test for _, test in dfew.PUBLISHED.values()) == 11697  # each clip is tested once
    assert {sum(sizes) for sizes in mafw.PUBLISHED.values()} == {9172}
    assert sum(test for _, test in mafw.PUBLISHED.values()) == 9172


def test_every_reason_is_explained_in_the_documentation():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for reason, meaning in checking.REASONS.items():
        assert f"| `{reason}` | {meaning} |" in text


@pytest.mark.slow
def test_12000_clips_with_flat_memory_then_nothing_to_do(good, tmp_path, capsys):
    root, files = tmp_path / "mine", [file for file, _, _ in good]
    root.mkdir()
    for n in range(12_000):
        os.link(files[n % len(files)], root / f"{n}.mp4")
    (root / "all.csv").write_text("path,label\n" + "".join(f"{n}.mp4,sad\n" for n in range(12_000)))
    command = [sys.executable, ROOT / "stages" / "data.py", "--source", "table", "--table", root / "all.csv"]
    command += ["--out", tmp_path / "out", "--workers", "2"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    sizes: list[tuple[int, int]] = []  # MiB of the parent, MiB of the workers
    probes = tmp_path / "out" / "probes.jsonl"
    while process.poll() is None:
        with_children = [process.pid, *_children(process.pid)]
        memory = [_resident(pid) for pid in with_children]
        if probes.exists() and probes.stat().st_size > 100_000 and len(memory) == 3:
            sizes.append((memory[0], sum(memory[1:])))
        time.sleep(0.5)
    said = (tmp_path / "log").read_text().splitlines()[-1]
    assert process.returncode == 0 and "data: 12000 clips" in said
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, end = [np.median(part, axis=0) for part in (sizes[:5], sizes[-5:])]
    with capsys.disabled():
        print(f"\n{said}\nCPU: {spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime:.0f} s")
        print(f"MiB (parent, workers): {start} at the start, {end} at the end")
    assert end[0] < start[0] + 15 and end[1] < start[1] + 30
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "; 0 examined" in done.stdout
    with capsys.disabled():
        print(done.stdout)


def _children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _resident(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
    except (OSError, IndexError):
        return 0


def test_five_folds_run_one_after_the_other_and_are_averaged(stage, tmp_path, capsys):
    (tmp_path / "write.py").write_text(
        "import json, sys\nfrom pathlib import Path\nfold, out = int(sys.argv[1]), Path(sys.argv[2])\n"
        "out.mkdir(parents=True)\nrate = None if fold == 5 else fold / 10\n"
        "rates = {'war': fold / 10, 'uar': 0.5, 'inconsistent_among_correct': rate}\n"
        "intervals = {f'{name}_ci95': None for name in rates}\n"
        "metrics = {'n': 7, **rates, **intervals, 'note': sys.argv[3]}\n"
        "out.joinpath('metrics.json').write_text(json.dumps(metrics))\n"
    )
    pipeline = tmp_path / "all.txt"
    pipeline.write_text("# a comment\npython {script} {fold} \\\n  {run}/eval 'two words'  # the end\n\n")
    run = tmp_path / "run"
    stage("folds", run=run, pipeline=pipeline, set=[f"script={tmp_path / 'write.py'}"])
    found = read_json(run / "folds.json")
    assert found["war"]["mean"] == pytest.approx(0.3) and found["war"]["std"] == pytest.approx(0.1581, abs=1e-4)
    assert found["uar"] == {"mean": 0.5, "std": 0.0, "folds": [0.5] * 5, "n": 5}
    assert found["inconsistent_among_correct"]["mean"] == pytest.approx(0.25)
    assert found["inconsistent_among_correct"]["n"] == 4 and found["inconsistent_among_correct"]["folds"][4] is None
    assert read_json(run / "fold2" / "eval" / "metrics.json")["note"] == "two words"
    assert "30.00 %" in capsys.readouterr().out
    stage("folds", run=run, folds=[1, 3])  # without a pipeline: the mean alone
    assert read_json(run / "folds.json")["war"]["mean"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("pipeline", "values", "message"),
    [
        ("python x.py {model}\n", {}, r"all\.txt:1: nothing says what \{model\} is"),
        ("# nothing\n", {}, "no command"),
        ("python a.py\npython 'x\n", {}, r"all\.txt:2: No closing quotation"),
        ("python a.py \\\n {\n", {}, r"all\.txt:1: "),
        ("python -c 'raise SystemExit(3)'\n", {}, "fold 1, command 1 ended with status 3"),
        ("python -V\n", {}, r"fold1/eval/metrics\.json: no such file"),
        ("python -V\n", {"set": ["x"]}, "expected name=value"),
        ("python -V\n", {"folds": [1, 1]}, "twice"),
    ],
)
def test_a_wrong_pipeline_is_refused(stage, tmp_path, pipeline, values, message):
    (tmp_path / "all.txt").write_text(pipeline)
    with pytest.raises(InputError, match=message):
        stage("folds", run=tmp_path / "run", pipeline=tmp_path / "all.txt", **values)


def test_metrics_of_another_kind_are_refused(stage, tmp_path):
    whole = {"war": 1.0, "war_ci95": [1.0, 1.0], "uar": 1.0, "uar_ci95": [1.0, 1.0]}
    for fold, metrics in {1: whole, 2: {"war": 1.0, "war_ci95": [1.0, 1.0]}, 3: {"mae": 0.5}}.items():
        (tmp_path / f"fold{fold}" / "eval").mkdir(parents=True)
        (tmp_path / f"fold{fold}" / "eval" / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match="uar is missing, which other folds have"):
        stage("folds", run=tmp_path, folds=[1, 2])
    with pytest.raises(InputError, match="war is missing"):
        stage("folds", run=tmp_path, folds=[3])


def test_folds_of_dfew_share_what_was_examined(good, stage, tmp_path, capfd):
    """The documented pipeline: data for each fold, one examination."""
    root, run = tmp_path / "DFEW", tmp_path / "run"
    for fold in (1, 2):
        clips = [(file if fold == 1 else None, label, "test" if n % 2 == fold % 2 else "train")
                 for n, (file, label, _) in enumerate(good[:6])]  # fmt: skip
        media_files.dfew(root, clips, fold)
    pipeline = tmp_path / "p.txt"
    probes, script = tmp_path / "probes", ROOT / "stages" / "data.py"
    data = f"python {script} --source dfew --root {{root}} --fold {{fold}} --out {{run}}/clips --cache_dir {probes}"
    pipeline.write_text(data + "\n")
    with pytest.raises(InputError, match=r"metrics\.json: no such file"):
        stage("folds", run=run, pipeline=pipeline, set=[f"root={root}"], folds=[1, 2])
    said = capfd.readouterr().out
    assert "; 6 examined" in said and "; 0 examined" in said
    tests = [{c.clip_id for c in read_clips(run / f"fold{k}" / "clips" / "clips.jsonl", split="test")} for k in (1, 2)]
    assert tests[0] | tests[1] == {f"{n:05d}" for n in range(1, 7)} and not tests[0] & tests[1]
