"""How long reading clips takes, on clips like DFEW's: 2 s, 1280 x 720, H.264 and AAC.

    python eval/bench/reading.py [--clips 20] [--against /other/checkout/.venv/bin/python]

Prints clips/s and CPU seconds a clip for each backend (frames and sound, as training reads them); with --against, the
same clips are read by that python's migr too, in turns, so that a busy machine is busy for both.
"""

import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from migr.cli import Parser
from migr.errors import exit_on_input_error

READ = """
import sys, time
try:
    from migr.clips.media import MediaSettings, read_media
except ImportError:
    from migr.media import MediaSettings, read_media
settings = MediaSettings(backend=sys.argv[1])
read_media(sys.argv[2], settings)
start, cpu = time.perf_counter(), time.process_time()
for path in sys.argv[2:]:
    read_media(path, settings)
print(time.perf_counter() - start, time.process_time() - cpu)
"""
ROUNDS = 2


def write_clip(path: Path, seed: int, seconds: float = 2.0, fps: int = 25, size: tuple[int, int] = (720, 1280)) -> None:
    """A moving, noisy picture and a tone: about as hard to decode as a film."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (size[0] // 8, size[1] // 8, 3))
    background = np.kron(coarse, np.ones((8, 8, 1))).astype(np.int16)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "veryfast"})
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=44_100, layout="stereo")
        for index in range(round(seconds * fps)):
            moved = np.roll(background, (2 * index, 5 * index), (0, 1)) + rng.integers(-6, 6, background.shape)
            frame = av.VideoFrame.from_ndarray(moved.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        wave = 0.3 * np.sin(np.arange(round(seconds * 44_100)) / 20).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = 44_100, 0, Fraction(1, 44_100)
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


def main() -> None:
    """Write the clips, read them with each reader in turns, print the table."""
    parser = Parser(__doc__)
    parser.add_argument("--clips", type=int, default=20, help="number of clips (default 20)")
    parser.add_argument("--against", help="python of another checkout")
    args = parser.parse_args()
    readers = {f"{backend}, here": (sys.executable, backend) for backend in ("pyav", "decord")}
    if args.against:
        readers |= {f"{backend}, there": (args.against, backend) for backend in ("pyav", "decord")}
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{number}.mp4") for number in range(args.clips)]
        for number, file in enumerate(files):
            write_clip(Path(file), number)
        spent: dict[str, list[list[float]]] = {name: [] for name in readers}
        for _ in range(ROUNDS):
            for name, (python, backend) in readers.items():
                where = Path(python).parents[2] if Path(python).is_absolute() else Path()
                done = subprocess.run(
                    [python, "-c", READ, backend, *files], capture_output=True, text=True, check=True, cwd=where
                )
                spent[name].append([float(value) for value in done.stdout.split()])
    print("| reader | clips/s | CPU s a clip | CPU against the first |\n|---|---|---|---|")
    first = 0.0
    for name, rounds in spent.items():
        seconds, cpu = np.min(rounds, axis=0) / args.clips
        first = first or cpu
        print(f"| {name} | {1 / seconds:.1f} | {cpu:.3f} | {cpu / first:.2f} |")


if __name__ == "__main__":
    with exit_on_input_error():
        start = time.monotonic()
        main()
        print(f"{time.monotonic() - start:.0f} s in all")
