"""The planted benchmark: what is claimed of it, checked on its specs and on rendered files."""

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from migr.clips.manifest import read_clips
from migr.clips.media import MediaSettings, probe, read_media
from migr.errors import InputError
from migr.files.records import digest, read_jsonl
from migr.planted import clips as planted
from migr.planted import wording
from migr.planted.annotators import Annotator, rewritten
from migr.planted.captions import MISTAKEN, captioned
from migr.planted.truth import cue_emotion
from migr.text.labels import DFEW, label_set

BANK = {"train": 0, "val": 1, "test": 1}


def specs(split, count=700, seed=0):
    return [planted.spec(seed, split, index) for index in range(count)]


def rendered(folder, seed, split, index):
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    row = planted.render((seed, split, index, str(folder)))
    return row, (folder / "clips" / f"{row['clip_id']}.mp4").read_bytes()


def test_the_same_seed_gives_the_same_spec_and_bytes_and_another_seed_does_not(tmp_path):
    row, file = rendered(tmp_path / "a", 0, "train", 3)
    again, same = rendered(tmp_path / "b", 0, "train", 3)
    other_row, other = rendered(tmp_path / "c", 1, "train", 3)
    assert row == again and file == same
    assert row["clip_id"] == other_row["clip_id"] and row != other_row and file != other


def test_a_clip_that_is_there_is_not_rendered_again(tmp_path):
    row, _ = rendered(tmp_path, 0, "train", 3)
    path = tmp_path / "clips" / f"{row['clip_id']}.mp4"
    path.write_bytes(b"kept")
    assert rendered(tmp_path, 0, "train", 3) == (row, b"kept")


@pytest.mark.parametrize("trait", ["skin", "backdrop", "pitch"])
def test_train_and_the_other_splits_share_no_range_of_identities(trait):
    drawn = sorted((row["identity"][trait], split == "train") for split in planted.SPLITS for row in specs(split))
    changes = sum(before[1] != after[1] for before, after in pairwise(drawn))
    assert 1 <= changes < 20  # a few bands that take turns; 2,100 values of one range would mix a thousand times


def phrases(bank):
    """Every phrase of a bank: the cues, and the fixed parts of the sentences around them."""
    cues = {p for table in wording.CUES.values() for c in table.values() for cue in c for p in cue[bank]}
    frames = {
        t for table in (wording.CLEAR, wording.HEDGED, wording.CONCLUSION) for m in table.values() for t in m[bank]
    }
    return cues | frames


def test_train_and_the_other_splits_share_no_wording():
    assert not phrases(0) & phrases(1)
    said = {
        split: {s for row in specs(split) for s in (*row["segments"].values(), row["conclusion"])} for split in BANK
    }
    assert len(said["train"]) > 100 and not said["train"] & (said["val"] | said["test"])
    cues = [p for table in wording.CUES.values() for c in table.values() for cue in c for p in cue[0]]
    assert not [cue for cue in cues for text in said["test"] if cue in text]


def test_labels_and_dominant_modalities_are_balanced_together():
    for split in planted.SPLITS:
        counts = Counter((row["label"], row["planted"]["dominant"]) for row in specs(split, 140))
        assert counts == {(label, modality): 10 for label in DFEW for modality in ("video", "audio")}


def test_the_dominant_modality_shows_the_label_and_the_degraded_one_conflicts_half_of_the_time():
    rows = specs("train", 2100)
    conflicts = 0
    for row in rows:
        truth = row["planted"]
        other = "audio" if truth["dominant"] == "video" else "video"
        assert truth["shown"][truth["dominant"]] == row["label"]
        assert truth["quality"][truth["dominant"]] >= 0.85 and truth["quality"][other] <= 0.4
        conflicts += truth["shown"][other] != row["label"]
    assert abs(conflicts / len(rows) - planted.CONFLICT) < 0.03


def shown_by(modality, text, bank):
    """The emotions whose cue phrases a description uses."""
    table = wording.CUES[modality]
    return {emotion for emotion, cues in table.items() if any(p in text for cue in cues for p in cue[bank])}


@pytest.mark.parametrize("split", planted.SPLITS)
def test_the_reasoning_says_what_each_modality_shows_and_which_one_decides(split):
    hedges = [t.format("") for m in wording.HEDGED.values() for t in m[BANK[split]]]
    hedges = [hedge.rstrip(".").strip() for hedge in hedges]
    for row in specs(split, 280):
        truth = row["planted"]
        for modality, text in row["segments"].items():
            assert shown_by(modality, text, BANK[split]) == {truth["shown"][modality]}, text
            assert any(hedge in text for hedge in hedges) == (modality != truth["dominant"])
        assert row["conclusion"] in wording.CONCLUSION[truth["dominant"]][BANK[split]]
        spoken = " ".join([*row["segments"].values(), row["conclusion"]])
        assert not set(DFEW) & set(spoken.replace(".", "").replace(",", "").split()), "it names no emotion outright"


def test_captions_err_every_second_time_on_three_emotions_and_never_on_the_others():
    told = Counter()
    for row in specs("train", 1400):
        said = captioned(row, seed=0)
        assert (
            said["clip_id"] == row["clip_id"]
            and said["conclusion"] in wording.CONCLUSION[row["planted"]["dominant"]][0]
        )
        for modality, text in said["segments"].items():
            (emotion,) = shown_by(modality, text, 0)
            shown = row["planted"]["shown"][modality]
            assert emotion in (shown, MISTAKEN.get(shown))
            told[shown in MISTAKEN, emotion == shown] += 1
    assert told[False, False] == 0 and abs(told[True, False] / (told[True, False] + told[True, True]) - 0.5) < 0.05


def test_a_rendered_clip_reads_back_alike_with_both_backends(planted_run):
    clip = read_clips(planted_run.clips, label_set("dfew"), split="test")[0]
    row = planted.spec(0, "test", 0)
    facts = probe(clip.path)
    assert facts["has_video"] and facts["has_audio"] and facts["sample_rate"] == planted.SAMPLE_RATE
    assert (facts["width"], facts["height"], facts["fps"]) == (planted.SIZE, planted.SIZE, planted.RATE)
    read = [read_media(clip.path, MediaSettings(backend=backend)) for backend in ("decord", "pyav")]
    for media in read:
        assert media.frames.shape == (4, 3, planted.SIZE, planted.SIZE)
        assert abs(media.duration - row["seconds"]) < 1 / planted.RATE
        assert abs(len(media.waveform) / planted.SAMPLE_RATE - row["seconds"]) < 0.1
        assert 0.01 < np.abs(media.waveform).max() <= 1.0
    assert np.array_equal(read[0].frames, read[1].frames) and np.array_equal(read[0].waveform, read[1].waveform)


def test_what_is_read_back_is_what_was_drawn():
    row = planted.spec(0, "train", 0)  # video is dominant: little noise
    frames = planted.draw_frames(row, np.random.default_rng([0, 0, 0]))
    assert frames.dtype == np.uint8 and frames.shape[1:] == (112, 112, 3)
    blurred = {**row, "planted": {**row["planted"], "quality": {"video": 0.1, "audio": 1.0}}}
    worse = planted.draw_frames(blurred, np.random.default_rng([0, 0, 0]))
    background = (slice(None), slice(0, 8), slice(0, 8))
    assert frames[background].std() < worse[background].std()  # noise where nothing is drawn
    assert planted.snr(0.1) < 0 < 20 < planted.snr(0.9)


def test_the_manifest_holds_every_clip_once_with_its_truth(planted_run):
    rows = read_jsonl(planted_run.clips, ["clip_id", "path", "label", "split", "planted"], unique="clip_id")
    assert Counter(row["split"] for row in rows) == {"train": 28, "val": 7, "test": 7}
    assert read_jsonl(planted_run.clips.with_name("excluded.jsonl")) == []
    reasoning = {row["clip_id"]: row for row in read_jsonl(planted_run.reasoning, ["segments", "conclusion"])}
    assert set(reasoning) == {row["clip_id"] for row in rows}
    clips = read_clips(planted_run.clips, label_set("dfew"))
    assert [clip.label for clip in clips] == [row["label"] for row in rows]


def test_the_texts_that_judges_are_fitted_and_measured_on_share_nothing(planted_run):
    fit, check = (read_jsonl(planted_run.clips.with_name(f"judge_{name}.jsonl")) for name in ("fit", "check"))
    assert not {row["text"] for row in fit} & {row["text"] for row in check}
    assert set(Counter(row["emotion"] for row in fit).values()) == {300}
    assert Counter(row["kind"] for row in check) == {"gold": 350, "blended": 350}
    mine = {" ".join([*row["segments"].values(), row["conclusion"]]) for row in read_jsonl(planted_run.reasoning)}
    drawn_apart = sum(row["text"] in mine for row in fit + check)
    assert drawn_apart < 5  # by chance alone: drawn from another seed


def test_a_blended_text_holds_two_cues_of_its_emotion_and_one_of_another():
    for seed in range(50):
        text = wording.blend("video", "happy", "fear", "test", random.Random(seed))
        said = {
            emotion: sum(any(phrase in text for phrase in cue[1]) for cue in wording.FACE[emotion])
            for emotion in ("happy", "fear")
        }
        assert said == {"happy": 2, "fear": 1}


def test_without_coherence_captions_and_descriptions_are_what_they_were():
    rows = [planted.spec(6, "train", index) for index in range(50)]
    assert digest([captioned(row, 6) for row in rows]) == "1edf50c5ea03ae91"  # before there were annotators
    for written in ("video-first", "dominant-first"):
        assert [rewritten(row, Annotator(0, written), 6) for row in rows] == rows


@pytest.mark.parametrize("q", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("written", ["video-first", "audio-first", "dominant-first"])
def test_a_coherent_annotator_follows_what_was_written_first_with_probability_q(q, written):
    rows = specs("train", 1400)
    for descriptions in (
        [captioned(row, 0, Annotator(q, written), errors=0.0)["segments"] for row in rows],
        [rewritten(row, Annotator(q, written), 0)["segments"] for row in rows],
    ):
        followed = []
        for row, segments in zip(rows, descriptions, strict=True):
            shown, dominant = row["planted"]["shown"], row["planted"]["dominant"]
            first = dominant if written == "dominant-first" else written.removesuffix("-first")
            (second,) = {"video", "audio"} - {first}
            assert cue_emotion(first, segments[first]) == shown[first]
            emotion = cue_emotion(second, segments[second])
            assert emotion in (shown[second], shown[first])
            if shown[first] != shown[second]:
                followed.append(emotion == shown[first])
        assert np.mean(followed) == pytest.approx(q, abs=0.06) and len(followed) > 500


def test_who_follows_at_a_small_q_follows_at_a_larger_one():
    rows = specs("train", 300)
    followed = [
        {row["clip_id"] for row in rows if rewritten(row, Annotator(q), 0)["segments"] != row["segments"]}
        for q in (0.0, 0.3, 0.6, 1.0)
    ]
    assert all(one < other for one, other in pairwise(followed)) and not followed[0]


def test_an_error_in_the_first_caption_is_followed():
    rows = specs("train", 700)
    for row in rows:
        segments = captioned(row, 0, Annotator(1.0), errors=1.0)["segments"]
        emotion = cue_emotion("video", segments["video"])
        assert emotion == MISTAKEN.get(row["planted"]["shown"]["video"], row["planted"]["shown"]["video"])
        assert cue_emotion("audio", segments["audio"]) == emotion


@pytest.mark.parametrize("q", [0.0, 1.0])
def test_a_mistaken_first_description_tells_what_nothing_shows_and_is_followed_as_any_other(q):
    rows = specs("train", 1400)
    wrong = []
    for row in rows:
        segments = captioned(row, 0, Annotator(q, mistakes=0.5), errors=0.0)["segments"]
        shown, first = row["planted"]["shown"], cue_emotion("video", segments["video"])
        assert cue_emotion("audio", segments["audio"]) == (first if q else shown["audio"])
        wrong.append(first != shown["video"])
    assert np.mean(wrong) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1.5,), "coherence"),
        ((float("nan"),), "coherence"),
        ((0.5, "text-first"), "written"),
        ((0.5, "video-first", -0.1), "mistakes"),
    ],
)
def test_an_annotator_that_cannot_be_is_an_input_error(values, message):
    with pytest.raises(InputError, match=message):
        Annotator(*values)
