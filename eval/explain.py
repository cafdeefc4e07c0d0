"""One clip: which modality carries the emotion, what the model says about it, and its answer.

    python eval/explain.py clip.mp4                                                (the demo's model; made if lacking)
    python eval/explain.py clip.mp4 --model runs/dfew/model --importance runs/dfew/importance

Any video with or without sound, or sound alone (wav, mp3, ...). Shows the importance as bars and the reasoning in the
colours of its modalities, and writes the same as one HTML file with the frames and the sound that the model got.
`--importance` is a folder of stages/importance.py; without it there are no bars. Frames are sampled as in training: the
model's folder says how. The demo's model knows only the cartoon faces and voices of its own benchmark.
"""

import argparse
import io
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from eval.run.options import prompt_of
from eval.run.predict import GenerationSettings, question_for
from migr.cli import Parser, demo_arguments, settings_of
from migr.clips.examine import examine
from migr.clips.manifest import Clip
from migr.clips.media import Media
from migr.clips.record import find_labels, read_record
from migr.errors import InputError, exit_on_input_error
from migr.files.records import read_object
from migr.page import environment, image_uri
from migr.settings import DecodingSettings, EngineSettings, LabelSettings, MediaSettings
from migr.text.format import Response, parse
from migr.text.labels import LabelSet

COLOURS = {"video": "cyan", "audio": "yellow", "text": "green"}
_TEMPLATES = Path(__file__).parent / "page"
BAR = 40  # characters of a full bar


@dataclass(frozen=True)
class Explanation:
    """What is shown.

    Attributes:
        clip: The clip.
        media: Its frames and sound as the model got them.
        response: The model's text, taken apart.
        answer: The answer as one of the labels, None if it names none.
        text: The model's text as it came.
        importance: Modality -> weight, None without a fusion network.
        about: The emotion that the importance is about.
        finished: False if the text was cut.
    """

    clip: Clip
    media: Media
    response: Response
    answer: str | None
    text: str
    importance: dict[str, float] | None
    about: str | None
    finished: bool


def arguments() -> tuple[argparse.Namespace, LabelSet]:
    """The command line and the labels; what neither a flag nor `--config` gives comes from the model's folder.

    Raises:
        InputError: A flag or a key of the YAML is wrong.
    """
    parser = Parser(__doc__)
    add = parser.add_argument
    add("clip", type=Path, help="the video or audio file")
    add("--model", type=Path, help="folder of stages/export.py, an adapter, or a model (default: the demo's)")
    add("--importance", type=Path, help="folder of stages/importance.py, for the bars")
    add("--out", type=Path, help="HTML file to write (default: the clip's name, in this folder)")
    parser.add_settings(LabelSettings, MediaSettings, DecodingSettings)
    # of the evaluation's YAML; one clip needs none of them
    parser.accept_keys(EngineSettings, GenerationSettings, "judge")
    args = parser.parse_args()
    if args.model is None:
        completed = parser.parse_args([str(args.clip), *demo_arguments("explain"), *sys.argv[1:]])
        args = completed
    record = read_record(args.model)
    if record is not None:
        parser.inherit(args, record.media, record.source)
    args.out = args.out or Path(f"{args.clip.stem}.html")
    if args.out.resolve() == args.clip.resolve():
        raise InputError(f"--out {args.out}: that is the clip itself")
    return args, find_labels(args.labels, model=record)


def explain(
    path: Path, model: Path, importance: Path | None, labels: LabelSet, media: MediaSettings, decoding: DecodingSettings
) -> Explanation:
    """Ask the model about one file.

    Args:
        path: The file.
        model: Model or adapter folder.
        importance: Folder with fusion.safetensors, or None.
        labels: What may be answered.
        media: How the file is sampled.
        decoding: How the answer is drawn.

    Raises:
        InputError: The file, the model or the fusion network cannot be used, or they do not belong together.
    """
    facts = examine(path, media.max_seconds)  # digital silence is no sound, as in stages/data.py
    clip = Clip(path.stem, path.resolve(), None, "test", facts["has_video"], facts["has_audio"])
    net = load_fusion(importance, labels) if importance is not None else None

    from migr.engine import Request, open_engine
    from migr.engine.transformers import TransformersEngine
    from migr.omni.prompt import render_prompt

    options = {**asdict(decoding), "audio_in_video": media.audio_in_video}
    with open_engine(model, "transformers", **options) as engine:
        assert isinstance(engine, TransformersEngine)  # vLLM takes longer to start than one clip takes
        from migr.omni.inputs import OmniInputs

        inputs = OmniInputs(engine.task.inputs.processor, media)
        decoded = inputs.media(clip)
        text = question_for(clip, labels, prompt_of(labels, read_record(model)))
        prompt = render_prompt(inputs.processor, text, clip.has_video, clip.has_audio)
        (generation,) = engine.generate([Request(str(path), prompt, decoded, inputs.media_keys(clip))])
        response = parse(generation.text)
        answer = response.label(labels)
        weights, about = None, None
        if net is not None:
            weights, about = weigh(net, engine.model, inputs, clip, answer, labels)
    return Explanation(clip, decoded, response, answer, generation.text, weights, about, generation.finished)


def load_fusion(folder: Path, labels: LabelSet) -> Any:
    """The fusion network of a folder of stages/importance.py.

    Raises:
        InputError: There is none, or it was fitted on other labels.
    """
    from migr.importance.store import load

    file = folder / "fusion.safetensors"
    if not file.is_file():
        raise InputError(f"--importance {folder}: no fusion.safetensors (stages/importance.py writes it)")
    known = read_object(file.with_suffix(".json")).get("labels")
    if known != list(labels.labels):
        names = ", ".join(map(str, known)) if isinstance(known, list) else str(known)
        raise InputError(f"--importance {folder}: fitted on the labels {names[:200]}; give --labels to match")
    return load(file)


def weigh(
    net: Any, thinker: Any, inputs: Any, clip: Clip, answer: str | None, labels: LabelSet
) -> tuple[dict[str, float], str]:
    """The clip's importance for the emotion that the model answered, else for the one that the network itself names."""
    import torch

    from migr.importance.features import pool
    from migr.importance.fit import predicted
    from migr.importance.networks.attribution import importance_of
    from migr.omni.towers import FrozenTowers

    whole = thinker.get_base_model() if hasattr(thinker, "get_base_model") else thinker
    features = pool(FrozenTowers(whole, inputs), clip)
    for name, pooled in features.items():
        if net.config.dims.get(name) != len(pooled):
            raise InputError(
                f"--importance: the network takes {net.config.dims.get(name)} {name} features, this model has "
                f"{len(pooled)}; it was fitted on another model's towers"
            )
    values = {name: features.get(name, torch.zeros(size))[None] for name, size in net.config.dims.items()}
    present = torch.tensor([[name in features for name in net.config.dims]])
    with torch.inference_mode():
        out = net(values, present)
        target = torch.tensor([labels.index(answer)]) if answer is not None else predicted(out.logits)
        weights = importance_of(net.attribute(out, target), out.gate, present)[0].tolist()
    named = {name: weight for name, weight in zip(net.config.dims, weights, strict=True) if name in features}
    return named, labels.labels[int(target[0])]


def show(explanation: Explanation, console: Console) -> None:
    """Print bars, reasoning and answer."""
    console.print()
    if explanation.importance is None:
        console.print("no importance: give --importance, a folder of stages/importance.py", style="dim")
    else:
        console.print(f"importance for {explanation.about}", style="bold")
        for name, weight in explanation.importance.items():
            bar = "█" * round(BAR * weight)
            console.print(Text.assemble(f"  {name:<6}", (f"{bar:<{BAR}}", COLOURS[name]), f" {weight:.2f}"))
    console.print()
    reasoning = explanation.response.reasoning
    if reasoning is None:
        console.print("the response has no reasoning in the format; as it came:", style="dim")
        console.print(Text(explanation.text))
    else:
        for name, text in reasoning.segments:
            console.print(Text.assemble((f"{name:<6}", f"bold {COLOURS[name]}"), " ", (text, COLOURS[name])))
        if reasoning.conclusion:
            console.print(Text(reasoning.conclusion))
    console.print()
    raw = explanation.response.answer
    answer = explanation.answer or (f"{raw!r}, which is none of the labels" if raw else "none")
    console.print(Text.assemble("answer ", (answer, "bold")))
    if not explanation.finished:
        console.print("the answer was cut: raise --max_new_tokens", style="dim")


def page(explanation: Explanation) -> str:
    """The same as one HTML file; everything inside, nothing fetched."""
    frames, waveform = explanation.media.frames, explanation.media.waveform
    points, wave = (0, "") if waveform is None else _wave(waveform)
    return (
        environment(_TEMPLATES)
        .get_template("clip.html.j2")
        .render(
            title=explanation.clip.path.name,
            frames=[] if frames is None else [_png(frame) for frame in frames[:16]],
            points=points,
            wave=Markup(wave),  # noqa: S704  (numbers of ours)
            importance=explanation.importance,
            about=explanation.about,
            reasoning=explanation.response.reasoning,
            text=explanation.text,
            answer=explanation.answer or f"{explanation.response.answer or 'none'} (none of the labels)",
        )
    )


def _png(frame: np.ndarray) -> Markup:
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(frame.transpose(1, 2, 0)), format="png")
    return image_uri(file.getvalue())


def _wave(waveform: np.ndarray, most: int = 400) -> tuple[int, str]:
    """The loudness over time: the number of points of a line in a box 60 high, and the points."""
    pieces = np.array_split(np.abs(waveform), min(most, len(waveform)))
    peaks = [float(piece.max()) for piece in pieces]
    largest = max(*peaks, 1e-6)
    return len(peaks), " ".join(f"{i},{60 - 56 * peak / largest:.1f}" for i, peak in enumerate(peaks))


def main() -> None:
    """Ask, show, write."""
    args, labels = arguments()
    media, decoding = settings_of(MediaSettings, args), settings_of(DecodingSettings, args)
    explanation = explain(args.clip, args.model, args.importance, labels, media, decoding)
    show(explanation, Console())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(explanation), encoding="utf-8")
    print(f"explain: {explanation.clip.path.name}, {explanation.answer or 'no answer'} -> {args.out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
