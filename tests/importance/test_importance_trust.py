"""The importance stage's options and checks, on planted clips and their variants, with the tiny model."""

import pytest
import torch
from safetensors.torch import load_file

from migr.clips.manifest import read_clips
from migr.clips.media import MediaSettings
from migr.errors import InputError
from migr.files.records import read_json, read_jsonl, write_jsonl
from migr.importance import features as pooled
from migr.importance.mllm import TRANSCRIPT, answer_drops, label_log_probs
from migr.importance.store import load
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_processor, load_thinker
from migr.omni.prompt import ANSWER_DIRECTLY, render_prompt
from migr.planted import clips as planted
from migr.planted import variants as planted_variants
from migr.text.labels import DFEW

MEDIA = {"max_frames": 4, "max_pixels": 3136}


@pytest.fixture(scope="module")
def inputs(base_model, planted_run):
    return OmniInputs(load_processor(base_model), MediaSettings(**MEDIA), planted_run.cache)


@pytest.fixture(scope="module")
def thinker(base_model):
    return load_thinker(base_model)


@pytest.fixture(scope="module")
def spoken(planted_run):
    """The planted clips, most with a transcript and a sentiment; one train clip is a transcript alone."""
    manifest = planted_run.clips.with_name("spoken.jsonl")
    rows = read_jsonl(planted_run.clips)
    for i, row in enumerate(rows):
        row["transcript"] = f"It is {planted_variants.SAID[row['label']][i % 8]} today."
        row["sentiment"] = float(DFEW.index(row["label"]) - 3)
    del rows[2]["transcript"]
    rows[4]["has_video"] = rows[4]["has_audio"] = False
    rows[5]["sentiment"] = None
    write_jsonl(manifest, rows)
    return manifest


# Text features


def test_text_features_pool_each_transcript_alone(inputs, thinker, base_model, spoken, planted_run):
    clips = read_clips(spoken)[:6]
    table = pooled.tower_features(clips, inputs, base_model, batch_size=6)
    assert tuple(table.values) == ("video", "audio", "text")
    assert table.present[[2, 4]].tolist() == [[True, True, False], [False, False, True]]
    ids = torch.tensor([inputs.processor.tokenizer(clips[0].extra["transcript"])["input_ids"]])
    with torch.inference_mode():
        words = thinker.model.embed_tokens(ids)[0]
        states = thinker.model(input_ids=ids).last_hidden_state[0]
    parts = [words.mean(0), words.std(0, correction=0), states.mean(0), states.std(0, correction=0)]
    assert torch.allclose(table.values["text"][0], torch.cat(parts), atol=1e-4)
    media = pooled.tower_features(clips[:2], inputs, base_model, modalities=("video", "audio"))
    assert tuple(media.values) == ("video", "audio")
    assert torch.allclose(media.values["audio"], table.values["audio"][:2], atol=1e-4)


def test_the_key_follows_the_transcript(inputs, base_model, spoken):
    clips = read_clips(spoken)[:2]
    before = pooled.features_key(clips, inputs, base_model)
    media = pooled.features_key(clips, inputs, base_model, ("video", "audio"))
    clips[0].extra["transcript"] += "!"
    assert pooled.features_key(clips, inputs, base_model) != before
    assert pooled.features_key(clips, inputs, base_model, ("video", "audio")) == media != before


@pytest.mark.parametrize("said", [7, ["a"], "   "])
def test_a_transcript_that_is_no_text_names_the_clip(inputs, base_model, spoken, said):
    clips = read_clips(spoken)[:1]
    clips[0].extra["transcript"] = said
    with pytest.raises(InputError, match="'train-00000': transcript must be a text"):
        pooled.tower_features(clips, inputs, base_model)


# The MLLM's own leave-one-out


def test_label_probabilities_are_those_of_decoding_constrained_to_the_labels(inputs, thinker, spoken):
    clip = read_clips(spoken)[0]
    found = []
    for label in DFEW:
        found.append(label_log_probs(thinker, inputs, type(clip)(**{**vars(clip), "label": label}), [["video"]], DFEW))
    assert torch.cat(found).exp().sum().item() == pytest.approx(1.0, abs=1e-4)


def test_blanked_versions_in_one_pass_equal_prompts_that_never_had_the_modality(inputs, thinker, spoken):
    clip = read_clips(spoken)[0]
    sets = [["video", "audio", "text"], ["audio", "text"], ["video", "text"], ["video", "audio"], ["text"]]
    together = label_log_probs(thinker, inputs, clip, sets, DFEW)
    singly = torch.cat([label_log_probs(thinker, inputs, clip, [names], DFEW) for names in sets])
    assert torch.allclose(together, singly, atol=1e-3)
    assert len({round(value, 4) for value in together.tolist()}) == 5  # every modality matters
    drops, whole = answer_drops(thinker, inputs, [clip], ["video", "audio", "text"], DFEW)
    assert torch.allclose(drops[0], together[0] - together[1:4], atol=1e-3) and torch.allclose(whole, together[:1])
    said = TRANSCRIPT.format(transcript=clip.extra["transcript"])
    assert said in render_prompt(inputs.processor, said + ANSWER_DIRECTLY, True, True)


def test_a_clip_of_one_modality_has_no_drop(inputs, thinker, spoken):
    clip = read_clips(spoken)[4]
    drops, whole = answer_drops(thinker, inputs, [clip], ["video", "audio", "text"], DFEW)
    assert drops.isnan().all() and whole.isfinite().all()


# The command


def test_three_modalities_experts_margins_and_checks(stage, spoken, base_model, planted_run, tmp_path):
    options = {"folds": 2, **MEDIA, "cache_dir": planted_run.cache, "min_margin": 0.5, "mllm_check": 5}
    stage("importance", clips=spoken, model=base_model, out=tmp_path, fusion="experts", **options)
    rows = read_jsonl(tmp_path / "importance.jsonl")
    assert all(row["certain"] == (row["margin"] >= 0.5) for row in rows)
    assert rows[4]["importance"] == {"video": 0.0, "audio": 0.0, "text": 1.0} and rows[2]["importance"]["text"] == 0
    assert set(rows[0]["experts"]) == {"local", "semantic", "global"}
    assert sum(rows[0]["experts"].values()) == pytest.approx(1, abs=1e-4)
    checks = read_jsonl(tmp_path / "checks.jsonl")
    asked = [row for row in checks if "mllm" in row]
    assert len(asked) == 5 and all(row["clip_id"].startswith("test") and len(row["mllm"]) == 3 for row in asked)
    assert checks[4]["leave_one_out"] == {} and set(checks[2]["leave_one_out"]) == {"video", "audio"}
    trusted = read_json(tmp_path / "summary.json")["trust"]
    assert set(trusted["agreement"]) == {
        "leave-one-out (network)",
        "right alone (one head)",
        "leave-one-out (MLLM)",
    }
    assert set(trusted["calibration"]) == {"fused", "video", "audio", "text"} and len(trusted["thresholds"]) == 10
    assert type(load(tmp_path / "fusion.safetensors")).__name__ == "ExpertFusion"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2 and "Least certain clips" in page and "test-00000" in page


def test_sentiment_scores_in_place_of_emotions(stage, spoken, base_model, planted_run, tmp_path, capsys):
    options = {
        "folds": 2,
        **MEDIA,
        "cache_dir": planted_run.cache,
        "task": "sentiment",
        "modalities": ["video", "audio"],
    }
    kept = [row for row in read_jsonl(spoken) if row.get("has_video", True)]
    manifest = spoken.with_name("scored.jsonl")
    write_jsonl(manifest, kept)
    stage("importance", clips=manifest, model=base_model, out=tmp_path, **options)
    assert "Corr" in capsys.readouterr().out
    summary = read_json(tmp_path / "summary.json")
    figures = summary["splits"]["test"]["sentiment"]
    assert set(figures) == {"fused", "video", "audio"}
    assert {"MAE", "Corr", "Has0_acc_2", "Non0_acc_2", "Non0_F1_score", "Mult_acc_7"} <= set(figures["fused"])
    rows = read_jsonl(tmp_path / "importance.jsonl")
    assert rows[0]["target"] == kept[0]["sentiment"] and "certain" not in rows[0]
    unknown = rows[[row["clip_id"] for row in kept].index("train-00005")]
    assert unknown["fold"] is None and isinstance(unknown["target"], float)
    assert summary["trust"]["calibration"] == {} and "leave-one-out (MLLM)" not in summary["trust"]["agreement"]


@pytest.mark.slow
def test_egmf_whole_answers_by_the_models_own_language_model(stage, spoken, base_model, planted_run, tmp_path):
    options = {"folds": 2, **MEDIA, "cache_dir": planted_run.cache, "mllm_check": 0, "batch_size": 8}
    stage("importance", clips=spoken, model=base_model, out=tmp_path, fusion="experts", head="llm", **options)
    rows = read_jsonl(tmp_path / "importance.jsonl")
    assert len(rows) == len(read_jsonl(spoken))
    assert all(sum(row["importance"].values()) == pytest.approx(1, abs=1e-4) for row in rows)
    assert {row["fold"] for row in rows} == {0, 1, None} and set(rows[0]["experts"]) == {"local", "semantic", "global"}
    names = load_file(tmp_path / "model.safetensors")
    assert "pseudo.linear.weight" in names and any("lora" in name for name in names)
    assert not any(name.startswith("lm.") and "lora" not in name for name in names)
    assert type(load(tmp_path / "fusion.safetensors")).__name__ == "ExpertFusion"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"head": "llm", "adversarial_weight": 1}, "--adversarial_weight is for --head value"),
        ({"min_margin": 1.5}, "--min_margin: a margin lies between 0 and 1"),
        ({"task": "sentiment", "mllm_check": 3}, "leave it out with --task sentiment"),
        ({"task": "sentiment"}, "train clips: 0 have a score, too few for 5 folds"),
        ({"modalities": ["text"], "folds": 2}, "no clip has text, so there is nothing to weigh"),
        ({"adversarial_radius": 0}, "--adversarial_radius above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(stage, planted_run, base_model, tmp_path, flags, message):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        stage("importance", clips=planted_run.clips, model=base_model, out=out, **flags)
    assert not out.exists()


# Variants of the planted clips


def test_variants_follow_their_seed_and_say_what_they_plant():
    for kind, spec in planted_variants.KINDS.items():
        assert spec(3, "test", 5) == spec(3, "test", 5) != spec(4, "test", 5), kind
    rows = [planted_variants.text(0, "train", i) for i in range(420)]
    assert {m: sum(r["planted"]["dominant"] == m for r in rows) for m in ("video", "audio", "text")} == dict.fromkeys(
        ("video", "audio", "text"), 140
    )
    for row in rows:
        truth = row["planted"]
        assert truth["shown"][truth["dominant"]] == row["label"]
        assert max(truth["quality"], key=truth["quality"].get) == truth["dominant"]
        told = sum(word in row["transcript"] for word in planted_variants.SAID[row["label"]])
        assert told >= 2 or truth["dominant"] != "text"
    frames = planted_variants.FRAMES
    assert not set(frames["train"]) & set(frames["test"])


def test_noise_changes_one_modality_of_the_very_same_clip():
    clean, noisy = planted.spec(0, "test", 3), planted_variants.noisy(0, "test", 3, "audio", 0.5)
    assert noisy["planted"]["quality"]["audio"] == clean["planted"]["quality"]["audio"] / 2
    assert noisy["planted"]["quality"]["video"] == clean["planted"]["quality"]["video"]
    assert noisy["identity"] == clean["identity"] and noisy["label"] == clean["label"]
    frames, sound = {}, {}
    for name, row in (("clean", clean), ("noisy", noisy)):
        rng = planted_variants.np.random.default_rng(noisy["draw"])
        frames[name], sound[name] = planted.draw_frames(row, rng), planted.synthesise(row, rng)
    assert (frames["clean"] == frames["noisy"]).all() and (sound["clean"] != sound["noisy"]).any()


def test_a_face_between_neutral_and_happy_lies_halfway():
    face, rest, full = map(planted.face_of, (1.5, "neutral", "happy"))
    assert all(face[k] == pytest.approx((rest[k] + full[k]) / 2) for k in rest)
    assert planted.voice_of(-3.0) == pytest.approx(planted.voice_of("sad"))
