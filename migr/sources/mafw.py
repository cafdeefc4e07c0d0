"""MAFW (Liu et al., ACM MM 2022): 11 emotions, films and programmes; five published folds of the single-labelled clips.

data/clips/<5-digit id>.mp4
Train & Test Set/single/no_caption/set_1 … set_5/{train,test}.txt     00025.mp4 happiness
Labels/descriptive_text.xlsx                                          captions: what stages/targets.py can reason from
"""

from pathlib import Path

from migr.errors import InputError
from migr.sources.listed import SPLITS, Listed, files_by_number, is_number, need, once
from migr.text.labels import label_set

FOLDS = (1, 2, 3, 4, 5)
# (train, test) clips of each fold, counted in the published split files
PUBLISHED = {1: (7333, 1839), 2: (7335, 1837), 3: (7339, 1833), 4: (7340, 1832), 5: (7341, 1831)}


def read(root: Path, fold: int) -> Listed:
    """The clips of one fold; `clip_id` is the id with five digits, as in the file names.

    Args:
        root: The folder that holds `data` and `Train & Test Set`.
        fold: 1 to 5.

    Raises:
        InputError: A part is not there, or a line of a split file is wrong; names file and line.
    """
    labels = label_set("mafw")
    hint = "--root must be the MAFW folder that holds data and 'Train & Test Set'"
    media = need(root / "data" / "clips", hint)
    files = files_by_number(media, "mp4")
    rows, places = [], dict[str, str]()
    for split in SPLITS:
        file = need(root / "Train & Test Set" / "single" / "no_caption" / f"set_{fold}" / f"{split}.txt", hint)
        for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            where, (name, _, label) = f"{file}:{number}", line.strip().partition(" ")
            stem = name.removesuffix(".mp4")
            if not is_number(stem) or not label.strip():
                raise InputError(f"{where}: expected `00025.mp4 happiness`, not {line[:200]!r}")
            known = labels.canonical(label)
            if known is None:
                raise InputError(f"{where}: label {label.strip()!r} is not one of {', '.join(labels.labels)}")
            clip_id = f"{int(stem):05d}"
            once(where, clip_id, places)
            path = files.get(int(stem), f"{clip_id}.mp4")
            rows.append({"clip_id": clip_id, "path": path, "label": known, "split": split})
    return Listed(media.resolve(), labels, rows, published=dict(zip(SPLITS, PUBLISHED[fold], strict=True)))
