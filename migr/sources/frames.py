"""A folder of jpg files as one video file, so that everything else reads one kind of thing: files.

The pictures become the packets of an MJPEG stream in an mp4, byte for byte: nothing is encoded again. The rate is
what the user says, because a folder of pictures has none.
"""

import os
import re
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image, UnidentifiedImageError

from migr.clips.container import MAX_FRAMES, MAX_SOURCE_PIXELS, MediaError
from migr.files.records import sync

_ENDINGS = (".jpg", ".jpeg")


def pictures(folder: Path) -> list[os.DirEntry[str]]:
    """The jpg files of a folder in the order of the numbers in their names (2 before 10); links are left out.

    So is what other programs put there: hidden files (`._1.jpg` of Macs) and, among numbered ones, those without a
    number (`cover.jpg`, `thumb.jpg`).
    """
    with os.scandir(folder) as entries:
        files = [
            entry
            for entry in entries
            if entry.name.casefold().endswith(_ENDINGS)
            and not entry.name.startswith(".")
            and entry.is_file(follow_symlinks=False)
        ]
    numbered = [entry for entry in files if re.search(r"\d", entry.name)]
    files = numbered if len(numbered) > len(files) / 2 else files
    return sorted(files, key=lambda entry: ([int(part) for part in re.findall(r"\d+", entry.name)], entry.name))


def wrap(folder: Path, target: Path, rate: float) -> None:
    """Write the pictures of a folder as a video of `rate` frames a second; a file that is there is replaced.

    Raises:
        MediaError: No picture, too many, of different sizes, or one that is no JPEG; names it.
    """
    files = pictures(folder)
    if not files:
        raise MediaError(f"{folder}: no jpg files in it", "no_video")
    if len(files) > MAX_FRAMES:
        raise MediaError(f"{folder}: {len(files)} pictures, at most {MAX_FRAMES} are read", "too_many_frames")
    size = _size(files[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    step = 1 / Fraction(rate).limit_denominator(1001)
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_mux_stream("mjpeg", rate=1 / step, width=size[0], height=size[1])
            for index, file in enumerate(files):
                if _size(file) != size:
                    raise MediaError(f"{file.path}: {_size(file)} pixels, the first has {size}", "damaged")
                packet = av.Packet(Path(file.path).read_bytes())
                packet.pts = packet.dts = index
                packet.duration, packet.time_base, packet.stream = 1, step, stream
                packet.is_keyframe = True
                container.mux(packet)
        sync(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _size(file: os.DirEntry[str]) -> tuple[int, int]:
    """Width and height in pixels as the picture's header has them."""
    try:
        with Image.open(file.path, formats=["JPEG"]) as picture:
            size = picture.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise MediaError(f"{file.path}: no JPEG picture ({error})", "damaged") from None
    if size[0] * size[1] > MAX_SOURCE_PIXELS:
        raise MediaError(f"{file.path}: {size[0]} x {size[1]} pixels is too large", "too_large")
    return size
