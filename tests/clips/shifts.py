"""How far sound and pictures are from where a player has them, kind by kind, for the migr that is installed.

python tests/clips/shifts.py        a row of the table in docs/data.md a kind; another checkout has its own python
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import odd_clips

try:
    from migr.clips.media import MediaSettings, read_media
except ImportError:  # before today
    from migr.media import MediaSettings, read_media


def measure(true: odd_clips.Odd) -> str:
    """Seconds that are read, the furthest picture's distance from the due one, and the sound's."""
    try:
        media = read_media(true.path, MediaSettings(fps=4.0), audio=true.click is not None)
    except Exception as error:
        return f"refused: {str(error).partition(': ')[2][:60]}"
    count = len(media.frames)
    shown = [odd_clips.number_of(frame, true.width, true.height) for frame in media.frames]
    cells = np.array([(index * (count * 2 - 2) / (count - 1) + 1) / 2 if count > 1 else 0.5 for index in range(count)])
    due = (np.linspace(0, 1, count) * (1 - 1 / len(true.times)) + 0.5 / len(true.times)) * true.end
    times = [true.times[true.numbers.index(n)] if n in true.numbers else np.inf for n in shown]
    expected = [true.times[max(0, int(np.searchsorted(true.times, moment, side="right")) - 1)] for moment in due]
    off = max(abs(a - b) for a, b in zip(times, expected, strict=True))
    stretch = abs(cells[-1] / media.fps - cells[-1] * true.end / count)
    sound = f"{odd_clips.heard(media.waveform) - true.click:+.2f} s" if true.click is not None else "none"
    wrong = "not those of the clip" if not np.isfinite(off) else f"{max(off, stretch):.2f} s"
    return f"{media.duration:.2f} s | {wrong} | {sound}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for kind in odd_clips.KINDS:
            true = kind(Path(folder) / kind.__name__)
            print(f"| {kind.__name__.replace('_', ' ')} | {true.end:.2f} s | {measure(true)} |", flush=True)
