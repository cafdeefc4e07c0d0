"""DFEW (Jiang et al., ACM MM 2020): 7 emotions, films; five published folds of the single-labelled clips.

EmoLabel_DataSplit/{train,test}(single-labeled)/set_1.csv … set_5.csv     video_name,label   (ids unpadded, labels 1-7)
Clip/original/[part_*/]<id>.mp4                                           with sound
Clip/clip_224x224*/<5-digit id>/*.jpg                                     face frames, no sound, no rate
"""

from pathlib import Path

from migr.errors import InputError
from migr.sources.listed import SPLITS, Listed, files_by_number, is_number, need, once
from migr.sources.table import lines
from migr.sources.tables import check_name, names_of
from migr.text.labels import label_set

FOLDS = (1, 2, 3, 4, 5)
# (train, test) clips of each fold, counted in the published split files
PUBLISHED = {1: (9356, 2341), 2: (9356, 2341), 3: (9357, 2340), 4: (9358, 2339), 5: (9361, 2336)}


def read(root: Path, fold: int, frames: bool = False) -> Listed:
    """The clips of one fold; `clip_id` is the id with five digits, as the frame folders have it.

    Args:
        root: The folder that holds `EmoLabel_DataSplit` and `Clip`.
        fold: 1 to 5.
        frames: Take the frame folders, not the original clips.

    Raises:
        InputError: A part is not there, or a line of a split file is wrong; names file and line.
    """
    labels = label_set("dfew")
    media = frame_folder(root) if frames else _originals(root)
    files = {} if frames else files_by_number(media, "mp4")
    rows, places = [], dict[str, str]()
    for split in SPLITS:
        table = root / "EmoLabel_DataSplit" / f"{split}(single-labeled)" / f"set_{fold}.csv"
        need(table, "--root must be the DFEW folder that holds EmoLabel_DataSplit and Clip")
        for number, row in lines(table, ("video_name", "label")):
            where, name = f"{table}:{number}", names_of(row["video_name"])[-1]
            label = row["label"].strip().removesuffix(".0")
            check_name(where, row["video_name"])
            if not is_number(name):
                raise InputError(f"{where}: video_name must be a clip's number, not {row['video_name'][:200]!r}")
            if label not in tuple("1234567"):
                raise InputError(f"{where}: label must be 1 to 7, not {label!r}")
            clip_id = f"{int(name):05d}"
            once(where, clip_id, places)
            path = clip_id if frames else files.get(int(name), f"{int(name)}.mp4")
            rows.append({"clip_id": clip_id, "path": path, "label": labels.labels[int(label) - 1], "split": split})
    return Listed(media.resolve(), labels, rows, frames, dict(zip(SPLITS, PUBLISHED[fold], strict=True)))


def _originals(root: Path) -> Path:
    media = root / "Clip" / "original"
    hint = "the frame folders can be used, without sound: --frame_rate 25 (frames a second; DFEW does not say)"
    has_frames = any((root / "Clip").glob("clip_224x224*"))
    return need(media, hint if has_frames else "DFEW's clips belong there, flat or under part_*")


def frame_folder(root: Path) -> Path:
    """`Clip/clip_224x224` if it is there, else the first of its variants that holds folders of jpg files.

    Raises:
        InputError: There is none.
    """
    for folder in sorted((root / "Clip").glob("clip_224x224*")):
        if folder.is_dir() and next(folder.glob("*/*.jpg"), None):
            return folder
    raise InputError(f"{root / 'Clip'}: no clip_224x224*/<5-digit id>/*.jpg; without --frame_rate, original is read")
