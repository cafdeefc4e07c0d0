"""Drift on constructed models whose pull and curves are known, coherence of texts with a known q, and the command."""

import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from eval.drift import main
from eval.figures import coherence
from eval.figures.drift import FIGURES, PARTS, differences, measure, most_drifting
from eval.run.drift import Lenders, beginning_of, continued, rows_of
from migr.clips.manifest import Clip
from migr.engine.task import Generation, Request, Score
from migr.errors import InputError
from migr.files.records import read_json, read_jsonl, write_jsonl
from migr.judge import open_judge
from migr.planted.wording import CLEAR, CUES, HEDGED
from migr.text.format import block, parse, render
from migr.text.labels import DFEW, label_set

LABELS = label_set("dfew")
CONCLUSION = {emotion: f"So it is {emotion}." for emotion in DFEW}


def says(modality, emotion, clear=True):
    frame = (CLEAR if clear else HEDGED)[modality][0][0]
    return frame.format(*(cue[0][0] for cue in CUES[modality][emotion]))


class ConstructedModel:
    """Continues a response by a rule, and says how likely each character is.

    Args:
        rule: (emotion of the first segment, what the clip's modalities show, its label) -> emotions of the next
            segment, of the conclusion and of the answer.
        shown: Clip -> modality -> emotion.
        gain: (place in the response from 0 to 1) -> nats that a character owes to the clip.
    """

    def __init__(self, rule, shown, gain=lambda place: 0.0):
        self.rule, self.shown, self.gain = rule, shown, gain
        self.judge = open_judge("lexicon", LABELS)

    def generate(self, requests):
        for request in requests:
            text = self.whole(request.key.rpartition(" ")[2], request.begins)
            assert text.startswith(request.begins)
            rest = text[len(request.begins) :]
            yield Generation(request.key, rest, tuple(range(len(rest))), True)

    def whole(self, name, begins):
        shown = self.shown[name]
        first = "audio" if begins.startswith("<think><audio") else "video"
        second = "audio" if first == "video" else "video"
        own = says(first, shown[first]) if begins.endswith(first) and "/" not in begins else begins.split(">", 2)[2]
        own = own.removesuffix(f"</{first}")
        emotion = self.judge.judge([own])[0].emotion
        following, conclusion, answer = self.rule(emotion, shown, shown["label"])
        segments = {first: own, second: says(second, following or shown[second])}
        return render(segments, CONCLUSION[conclusion], answer, [first, second])

    def score(self, requests):
        for request in requests:
            n = len(request.begins)
            without = request.media.frames.max() == request.media.frames.min()  # blanked: all grey
            values = (-1.0 - without * self.gain(i / n) for i in range(n))
            yield Score(request.key, tuple(values), tuple((i, i + 1) for i in range(n)))

    def attend(self, requests):
        for request in requests:
            n = len(request.begins)
            yield SimpleNamespace(
                key=request.key, shares=[1 - i / n for i in range(n)], spans=[(i, i + 1) for i in range(n)]
            )


COPIES = (lambda first, shown, label: (first, first, first), 1.0)
IGNORES = (lambda first, shown, label: ("fear", "fear", "fear"), 0.0)
READS_THE_CLIP = (lambda first, shown, label: (None, label, label), 0.0)
SEES_THE_PICTURE = (lambda first, shown, label: (shown["video"], shown["video"], label), 0.0)


@dataclass
class World:
    clips: list
    shown: dict


@pytest.fixture(scope="module")
def world():
    """70 clips, of which either modality may mislead."""
    draw = random.Random(3)
    clips, shown = [], {}
    for i in range(70):
        name, label = f"c{i}", DFEW[i % 7]
        dominant, other = ("video", "audio") if i // 7 % 2 else ("audio", "video")
        shows = {dominant: label, other: draw.choice(DFEW)}
        shown[name] = {**shows, "label": label}
        truth = {"dominant": dominant, "shown": shows, "quality": {"video": 1.0, "audio": 1.0}}
        clips.append(Clip(name, None, label, "test", extra={"planted": truth}))
    return World(clips, shown)


def ask(clip):
    """A clip with a picture and a sound; nobody looks at what they show."""
    import numpy as np

    from migr.clips.media import Media

    frames = np.zeros((2, 3, 4, 4), np.uint8)
    frames[0] = 255
    return Request(clip.clip_id, "?", Media(frames, 2.0, np.ones(160, np.float32), 0.01))


def rows_from(world, rule, gain=lambda place: 0.0, attention=False):
    model, judge = ConstructedModel(rule, world.shown, gain), open_judge("lexicon", LABELS)
    responses = {clip.clip_id: model.whole(clip.clip_id, "<think><video") for clip in world.clips}
    dominants = {clip.clip_id: clip.extra["planted"]["dominant"] for clip in world.clips}
    lenders = Lenders(responses, judge, 0)
    return list(rows_of(model, ask, world.clips, responses, lenders, judge, LABELS, dominants, attention))


@pytest.mark.parametrize(("rule", "pull"), [COPIES, IGNORES, READS_THE_CLIP])
def test_the_pull_of_constructed_models_is_what_they_were_built_for(world, rule, pull):
    rows = rows_from(world, rule)
    figures = measure(rows, 200, 0)
    assert figures["n_pull"] == len(rows) == 70 and figures["n_next_unread"] == 0
    for part in PARTS:
        low, high = figures[f"pull_{part}_ci95"]
        assert figures[f"pull_{part}"] == low == high == pull and figures[f"pull_{part}_n"] == 70
    assert figures["by_first"]["video"]["pull_next"] == pull and figures["by_dominant"]["audio"]["pull_answer"] == pull
    for row in rows:
        assert row["pull"]["emotion"] != row["pull"]["exchanged"]
        assert row["pull"]["from"] != row["clip_id"]


@pytest.mark.parametrize(("rule", "same"), [(COPIES, 0), (SEES_THE_PICTURE, 1), (READS_THE_CLIP, 0)])
def test_the_picture_in_the_clip_and_the_words_about_it_are_told_apart(world, rule, same):
    figures = measure(rows_from(world, rule[0]), 20, 0)
    misleading = sum(shown["video"] != shown["label"] for shown in world.shown.values())
    assert figures["same_next"] == same and figures["same_next_n"] == misleading and figures["pull_next"] == rule[1]


def test_what_would_have_been_said_anyway_is_no_pull(world):
    """The answer is the exchanged emotion for a seventh of the clips, whatever stands first."""
    rows = rows_from(world, IGNORES[0])
    assert sum(row["pull"]["exchanged"] == "fear" for row in rows) > 3
    assert {row["pull"]["other"]["answer"] for row in rows} == {"fear"}
    assert measure(rows, 20, 0)["pull_answer"] == 0


def test_a_model_that_follows_sometimes_is_pulled_as_often(world):
    def rule(first, shown, label):
        follows = hash_of(shown) % 10 < 4
        return (first, first, first) if follows else (None, label, label)

    def hash_of(shown):
        return sum(map(ord, "".join(shown.values())))

    expected = [hash_of(shown) % 10 < 4 for shown in world.shown.values()]
    figures = measure(rows_from(world, rule), 500, 0)
    assert figures["pull_answer"] == pytest.approx(sum(expected) / 70, abs=0.05)
    low, high = figures["pull_answer_ci95"]
    assert low < sum(expected) / 70 < high


def test_curves_are_flat_or_falling_as_built(world):
    flat = measure(rows_from(world, COPIES[0], gain=lambda place: 0.5, attention=True), 100, 0)
    assert flat["curve"]["all"]["mean"] == pytest.approx([0.5] * 10) and flat["gain_fall"] == pytest.approx(0)
    assert set(flat["curve"]) == {"all", "video", "audio", "rest"}
    assert flat["gain_first_half"] == flat["gain_second_half"] == pytest.approx(0.5)
    attention = flat["attention"]["all"]["mean"]
    assert attention == sorted(attention, reverse=True) and flat["attention_fall"] > 0.2
    falling = measure(rows_from(world, COPIES[0], gain=lambda place: 1 - place), 100, 0)
    curve = falling["curve"]["all"]["mean"]
    assert curve == sorted(curve, reverse=True) and curve[0] > 0.8 > 0.3 > curve[-1]
    assert 0.2 < falling["gain_fall"] < 0.6 and falling["attention"] is None and falling["attention_fall"] is None
    assert falling["curve"]["video"]["n"][0] and not falling["curve"]["video"]["n"][-1]
    assert falling["curve"]["video"]["mean"][-1] is None and falling["curve"]["video"]["ci95"][-1] is None


def test_the_order_matters_to_a_model_that_copies_and_not_to_one_that_reads_the_clip(world):
    """Copied, the first segment's emotion is judged and answered alike; read from the clip, the words may differ."""
    copies, reads = (measure(rows_from(world, rule), 200, 0) for rule in (COPIES[0], READS_THE_CLIP[0]))
    assert copies["order_inconsistent"] == 0 and copies["order_answer"] > 0.5 and reads["order_answer"] == 0
    assert reads["order_war"] == 0 and reads["order_gain"] == copies["order_gain"] == 0
    by_dominant = copies["by_dominant"]
    assert by_dominant["video"]["order_war"] > 0.5 > -0.5 > by_dominant["audio"]["order_war"]
    assert copies["n_order"] == 70

    def only_first(first, shown, label):  # says the first again, answers rightly
        return first, first, label

    figures = measure(rows_from(world, only_first), 200, 0)
    assert figures["by_dominant"]["audio"]["order_inconsistent"] > 0.5  # video first misleads where the sound is right
    assert figures["by_dominant"]["video"]["order_inconsistent"] < -0.5


def test_runs_are_compared_pairwise_on_the_clips_that_both_have(world):
    one, other = (rows_from(world, rule) for rule in (COPIES[0], READS_THE_CLIP[0]))
    changes = differences(one, other[:50], 200, 0)
    assert changes["n"] == 50
    assert changes["pull_answer"] == {"first": 1, "second": 0, "difference": -1, "difference_ci95": [-1, -1]}
    assert "attention_fall" not in changes and set(changes) - {"n"} < {figure.name for figure in FIGURES}
    same = differences(one, one, 200, 0)
    assert {row["difference"] for name, row in same.items() if name != "n"} == {0}
    with pytest.raises(InputError, match="no clip that both runs have"):
        differences(one[:3], other[3:], 10, 0)


def test_the_clips_that_drift_most_come_first(world):
    rows = rows_from(world, READS_THE_CLIP[0])
    rows[7] = rows_from(world, COPIES[0])[7]
    assert most_drifting(rows, 3)[0] is rows[7] and len(most_drifting(rows, 3)) == 3


def test_nothing_to_measure_has_no_figures():
    figures = measure([], 10, 0)
    assert figures["n"] == 0 and figures["pull_next"] is None and figures["curve"] == {}


def test_a_beginning_leaves_the_token_that_spans_its_end_to_the_model():
    text = "<think><video>The face shows a frown.</video><audio>A low voice.</audio>So sad.</think><answer>sad</answer>"
    beginning = beginning_of(parse(text))
    assert beginning.modality == "video" and beginning.text == "The face shows a frown."
    assert beginning.prefix == "<think><video>The face shows a frown.</video"
    assert continued(parse(text), beginning) == ("audio", "A low voice.", "So sad.")
    alone = beginning.prefix + ">The face is the clearer sign.</think><answer>sad</answer>"
    assert continued(parse(alone), beginning) == ("", "", "The face is the clearer sign.")


def test_free_text_is_taken_apart_by_its_sentences():
    text = "<think>The eyes are wide. The brows are raised. Her voice trembles. So she is afraid.</think>"
    beginning = beginning_of(parse(text))
    assert (beginning.modality, beginning.text) == ("video", "The eyes are wide. The brows are raised.")
    assert text.startswith(beginning.prefix) and beginning.prefix.endswith("raised.")
    assert continued(parse(text), beginning) == ("audio", "Her voice trembles.", "So she is afraid.")
    assert beginning_of(parse("<think>Who knows.</think>")) is None and beginning_of(parse("")) is None


# --- coherence of texts ---------------------------------------------------------------------------------------------


def annotated(q, n, seed=0):
    """Texts of an annotator who goes on with the first emotion with probability q."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        label, dominant = DFEW[i % 7], ("video", "audio")[i // 7 % 2]
        other = draw.choice([x for x in DFEW if x != label]) if draw.random() < 0.5 else label
        video, audio = (label, other) if dominant == "video" else (other, label)
        emotions = [video, video if draw.random() < q else audio]
        rows.append({"label": label, "dominant": dominant, "order": ["video", "audio"], "emotions": emotions})
    return rows


@pytest.mark.parametrize("q", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_coherence_is_the_probability_with_which_the_second_follows_the_first(q):
    figures = coherence.measure(annotated(q, 2100, seed=3), 200, 0)
    low, high = figures["coherence_ci95"]
    assert figures["coherence"] == pytest.approx(q, abs=0.05) and low - 1e-9 <= q <= high + 1e-9
    assert figures["by_dominant"]["audio"]["coherence"] == pytest.approx(q, abs=0.05)
    # where the first one always says the label, it cannot be known whether the second follows it
    assert figures["by_dominant"]["video"]["coherence"] is None


def test_the_interval_of_coherence_holds_it():
    hits = [coherence.measure(annotated(0.3, 300, seed), 100, seed)["coherence_ci95"] for seed in range(40)]
    assert 34 <= sum(low <= 0.3 <= high for low, high in hits) <= 40


def test_coherence_of_targets_is_measured_by_the_command(tmp_path):
    rows, clips = [], []
    for i, row in enumerate(annotated(0.6, 280)):
        segments = {m: says(m, e, m == row["dominant"]) for m, e in zip(row["order"], row["emotions"], strict=True)}
        target = render(segments, "So it is.", row["label"], row["order"])
        rows.append({"clip_id": f"c{i}", "label": row["label"], "target": target})
        planted = {"dominant": row["dominant"]}
        clips.append({"clip_id": f"c{i}", "path": "x", "label": row["label"], "split": "train", "planted": planted})
    rows.append({"clip_id": "x", "label": "sad", "target": block("think", "Who knows.") + block("answer", "sad")})
    write_jsonl(tmp_path / "targets.jsonl", rows)
    write_jsonl(tmp_path / "clips.jsonl", clips)
    flags = ["--targets", str(tmp_path / "targets.jsonl"), "--out", str(tmp_path / "out"), "--resamples", "200"]
    figures = main([*flags, "--clips", str(tmp_path / "clips.jsonl")])
    assert figures["coherence"] == pytest.approx(0.6, abs=0.12) and figures["n_read"] == 280
    assert read_json(tmp_path / "out" / "coherence.json") == figures and figures["n_targets"] == 281
    first = read_jsonl(tmp_path / "out" / "coherence.jsonl")[0]
    assert first == {"clip_id": "c0", **annotated(0.6, 1)[0]}
    assert set(main(flags)["by_dominant"]) == set()  # without clips nobody knows


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --predictions with --clips and --model, or --targets"),
        (["--targets", "x", "--predictions", "y"], "or --targets"),
        (["--targets", "x", "--model", "m"], "--model belongs to --predictions"),
        (["--predictions", "x", "--clips", "y"], "--model is missing"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        main([*flags, "--out", str(tmp_path / "out")])


def test_the_command_measures_a_real_model_and_goes_on_where_it_stopped(planted_run, base_model, tmp_path, capsys):
    targets = read_jsonl(planted_run.targets)[:8]
    rows = [{"clip_id": row["clip_id"], "label": row["label"], "response": row["target"]} for row in targets]
    rows[3]["response"] = "no format at all"
    write_jsonl(tmp_path / "predictions.jsonl", rows)
    files = {"predictions": tmp_path / "predictions.jsonl", "clips": planted_run.clips, "model": base_model}
    flags = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    flags += ["--engine", "transformers", "--max_frames", "4", "--max_pixels", "3136", "--max_new_tokens", "8"]
    flags += ["--cache_dir", str(planted_run.cache), "--resamples", "20"]
    whole = main([*flags, "--out", str(tmp_path / "whole")])
    main([*flags, "--out", str(tmp_path / "part"), "--limit", "3"])
    file = tmp_path / "part" / "drift.jsonl"
    file.write_bytes(file.read_bytes()[:-20])  # killed in the middle of a row
    part = main([*flags, "--out", str(tmp_path / "part")])
    for row, expected in zip(read_jsonl(file), read_jsonl(tmp_path / "whole" / "drift.jsonl"), strict=True):
        for key in ("gain", "attention"):  # another batch changes the last digits
            assert row["evidence"][key] == pytest.approx(expected["evidence"][key], abs=1e-3)
        assert row["pull"] == expected["pull"]
    assert part["n"] == 8 and part["n_without_reasoning"] == 1 and part["n_order"] == 7
    assert part["n_pull"] == 6  # to one first segment nobody can lend another emotion
    assert part["gain_first_half"] == pytest.approx(whole["gain_first_half"], abs=1e-3)
    assert 0 < part["attention"]["all"]["mean"][0] < 1 and set(part["by_dominant"]) == {"video", "audio"}
    cost = part["cost"]
    assert cost["generated"] == (6 + 7) * 2 / 8 and cost["scored"] <= 7 * 6 / 8 and cost["attended"] == 7 / 8
    assert read_json(tmp_path / "part" / "drift.json") == part
    assert (tmp_path / "part" / "drift.png").stat().st_size > 5000
    page = (tmp_path / "part" / "drift.html").read_text()
    assert "The clips that drift most" in page and targets[0]["clip_id"] in page and "<script" not in page
    out = capsys.readouterr().out
    assert "Evidence, first half" in out and "clips/s" in out
    with pytest.raises(InputError, match=r"another decoding\.seed"):
        main([*flags, "--out", str(tmp_path / "part"), "--seed", "1"])
    write_jsonl(tmp_path / "predictions.jsonl", [rows[0] | {"clip_id": "gone"}])
    with pytest.raises(InputError, match="clip 'gone' is not in"):
        main([*flags, "--out", str(tmp_path / "other")])
