"""Whole input of every kind for all commands, small; what the tests of broken input spoil."""

import csv
import itertools
import pickle
import shutil
import sys
from pathlib import Path

import media_files
from openpyxl import Workbook

from eval.consistency import main as evaluate
from migr.files.records import write_json, write_jsonl
from migr.text.labels import DFEW

sys.path.insert(0, str(Path(__file__).parent / "sentiment"))
import files as sentiment_files

N = 28
PLANTED = {"dominant": "video", "shown": {"video": "happy", "audio": "sad"}, "quality": {"video": 0.9, "audio": 0.2}}


def build(folder: Path) -> dict[str, Path]:
    """Whole input of every kind; name -> path."""
    clip = media_files.clip(folder / "clips" / "c0.mp4", seconds=1, size=(64, 64))
    for i in range(1, N):
        shutil.copy(clip, folder / "clips" / f"c{i}.mp4")
    rows = [{"clip_id": f"c{i}", "label": DFEW[i % 7], "split": "train" if i % 2 else "test"} for i in range(N)]
    facts = {"has_video": True, "has_audio": True, "duration": 1.0, "planted": PLANTED}
    shown = {"video": "The man smiles and his eyes are wide.", "audio": "His voice is loud and fast."}

    def jsonl(name, rows):
        write_jsonl(folder / name, rows)
        return folder / name

    def cells(name, rows):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        return folder / name

    def sheet(name, rows):
        book = Workbook()
        for row in rows:
            book.active.append(row)
        book.save(folder / name)
        return folder / name

    response = "<think><video>{video}</video><audio>{audio}</audio>So he is {label}.</think><answer>{label}</answer>"
    write_json(folder / "settings.json", {"a": 1})
    places = {
        "clips": jsonl("clips.jsonl", [{**row, "path": f"clips/{row['clip_id']}.mp4", **facts} for row in rows]),
        "importance": jsonl(
            "importance.jsonl",
            [
                {
                    "clip_id": row["clip_id"],
                    "importance": {"video": 0.8, "audio": 0.2},
                    "dominant": "video",
                    "margin": 0.6,
                }
                for row in rows
            ],
        ),
        "reasoning": jsonl(
            "reasoning.jsonl",
            [{"clip_id": row["clip_id"], "segments": shown, "conclusion": "He is moved.", "by": "x"} for row in rows],
        ),
        "free": jsonl(
            "free.jsonl", [{"clip_id": row["clip_id"], "text": "He smiles. His voice is low."} for row in rows]
        ),
        "captions": cells("captions.csv", [["clip", "english"], *([f"c{i}.mp4", "A man smiles."] for i in range(N))]),
        "captions_xlsx": sheet(
            "captions.xlsx", [["clip", "english"], *([f"c{i}.mp4", "He smiles."] for i in range(N))]
        ),
        "predictions": jsonl(
            "predictions.jsonl",
            [
                {
                    "clip_id": row["clip_id"],
                    "label": row["label"],
                    "response": response.format(**shown, label=row["label"]),
                }
                for row in rows
            ],
        ),
        "judgements": jsonl(
            "judgements.jsonl",
            [{"clip_id": row["clip_id"], "judge": "someone", "emotion": row["label"]} for row in rows],
        ),
        "texts": jsonl(
            "texts.jsonl",
            [
                {"text": f"He is {word} and {label}, number {i}.", "emotion": label, "kind": "gold"}
                for i, (label, word) in enumerate(itertools.product(DFEW, ("very", "truly", "rather", "quite")))
            ],
        ),
        "check": jsonl(
            "check.jsonl", [{"text": f"She looks {label} today.", "emotion": label, "kind": "x"} for label in DFEW]
        ),
        "table": cells("table.csv", [["path", "label"], *([f"clips/c{i}.mp4", DFEW[i % 7]] for i in range(N))]),
        "table_rows": jsonl("table.jsonl", [{"path": f"clips/c{i}.mp4", "label": DFEW[i % 7]} for i in range(N)]),
        "table_sheet": sheet("table.xlsx", [["path", "label"], *([f"clips/c{i}.mp4", DFEW[i % 7]] for i in range(N))]),
        "truth": cells("truth.csv", [["clip_id", "label"], *([f"c{i}", DFEW[i % 7]] for i in range(N))]),
        "lines": jsonl(
            "lines.jsonl", [{"clip_id": f"c{i}", "output": f"<answer>{DFEW[i % 7]}</answer>"} for i in range(N)]
        ),
        "scores": cells(
            "scores.csv", [["id", "prediction", "truth"], *([f"v{i}", i / 9, i / 10] for i in range(-20, 20))]
        ),
        "root": folder,
        "cache": folder / "cache",
    }
    for name, content in {
        "labels.txt": "\n".join(DFEW),
        "pipeline.txt": "echo {run} {fold}\n",
        "consistency.yaml": "resamples: 20\n",
        "targets.yaml": "order: video-first\n",
    }.items():
        (folder / name).write_text(content)
        places[name.removesuffix(".txt").replace(".", "_")] = folder / name
    (folder / "mosi.pkl").write_bytes(pickle.dumps(sentiment_files.planted(counts=(8, 4, 4))))
    places["features"] = folder / "mosi.pkl"
    for name in ("one", "two"):
        argv = [
            "--predictions",
            places["predictions"],
            "--judgements",
            places["judgements"],
            "--labels",
            places["labels"],
        ]
        evaluate([*map(str, argv), "--out", str(folder / name), "--resamples", "20"])
        shutil.copy(places["predictions"], folder / name)
        shutil.copy(places["judgements"], folder / name)
        places[name] = folder / name
    log = [{"step": i, "loss": 1.0 / i, "epoch": 0.1} for i in range(1, 5)]
    (folder / "training").mkdir()
    write_json(folder / "training" / "trainer_state.json", {"log_history": log, "global_step": 4})
    places["training"] = folder / "training"
    for fold in (1, 2):
        shutil.copytree(folder / "one", folder / "folds" / f"fold{fold}" / "eval")
    places["folds"] = folder / "folds"
    return places
