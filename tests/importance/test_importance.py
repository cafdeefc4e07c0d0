import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fusion_data import FAST, broken, synthetic
from safetensors.torch import load_file, save_file

from migr.clips.manifest import Clip, read_clips
from migr.clips.media import MediaSettings
from migr.errors import InputError
from migr.files.records import read_json, read_jsonl, write_jsonl
from migr.importance import features as towers
from migr.importance.fit import FitConfig, alternatives, cross_score, drop_modalities, fit, score
from migr.importance.networks.attribution import importance_of
from migr.importance.networks.dual_gate import DualGateFusion, FusionConfig
from migr.importance.networks.reading import fusion_loss
from migr.importance.store import fingerprint, load, save
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_processor, load_thinker
from migr.omni.tiny import build_tiny
from migr.planted import clips as planted
from migr.text.labels import DFEW

ROOT = Path(__file__).resolve().parents[2]
MEDIA = MediaSettings(max_frames=4, min_pixels=3136, max_pixels=7056)


@pytest.fixture(scope="module")
def scored():
    features, label, dominant = synthetic(840, 1)
    train = torch.arange(840) < 560
    return cross_score(features, label, train, DFEW, FitConfig(), folds=3), features, label, dominant, train


def test_the_dominant_modality_is_found_on_held_out_clips_and_on_train_clips_by_folds(scored):
    found, _, label, dominant, train = scored
    ways = {name: chosen == dominant for name, chosen in alternatives(found.scores).items()}
    assert ways["attribution"][~train].float().mean() >= 0.95
    assert ways["attribution"][train].float().mean() >= 0.95
    right = found.scores.logits.argmax(1) == label
    alone = found.scores.unimodal.argmax(2) == label[:, None]
    assert right[~train].float().mean() > alone[~train].float().mean(0).max() + 0.1
    assert {"attribution", "gate", "entropy_gate", "importance_gate", "unimodal_confidence"} == set(ways)


def test_weights_are_non_negative_and_sum_to_one(scored):
    scores = scored[0].scores
    assert set(scores.parts) == {"entropy_gate", "importance_gate", "gate"}
    for weights in (scores.importance, *scores.parts.values()):
        assert (weights >= 0).all() and torch.allclose(weights.sum(1), torch.ones(len(weights)), atol=1e-6)
    assert 0 < scored[0].net.alpha < 1 and abs(scored[0].net.alpha - 0.5) > 0.01


def test_every_train_clip_is_scored_by_a_network_that_never_saw_it():
    features, label, _ = synthetic(112, 2)
    train = torch.arange(112) < 84
    before = cross_score(features, label, train, DFEW, FAST, folds=3)
    assert sorted(set(before.fold[train].tolist())) == [0, 1, 2] and (before.fold[~train] == -1).all()
    assert len(set(before.models)) == 4
    assert {before.models[i] for i in (~train).nonzero().flatten().tolist()} == {fingerprint(before.net)}
    changed = {m: x.clone() for m, x in features.values.items()}
    changed["video"][5] += 3.0
    after = cross_score(replace(features, values=changed), label, train, DFEW, FAST, folds=3)
    assert torch.equal(before.fold, after.fold)
    same = [a == b for a, b in zip(before.models, after.models, strict=True)]
    assert same == (before.fold == before.fold[5]).tolist()  # only the networks that left clip 5 out stay as they were


def test_an_absent_modality_gets_exactly_zero_and_its_features_are_never_read():
    features, label, _ = synthetic(140, 3)
    present = features.present.clone()
    present[::2, 1] = False
    present[1::4, 0] = False
    values = {m: x.clone() for m, x in features.values.items()}
    values["audio"][::2] = float("nan")
    values["video"][1::4] = float("inf")
    features = replace(features, values=values, present=present)
    net = fit(features, label, 7, FAST)
    scores = score(net, features, label)
    for weights in (scores.importance, *scores.parts.values()):
        assert (weights[~present] == 0).all() and weights.isfinite().all()
        assert torch.allclose(weights.sum(1), torch.ones(140), atol=1e-6)
    assert (scores.importance[::2, 0] == 1).all() and (scores.contributions[~present] == 0).all()
    assert scores.logits.isfinite().all()
    refilled = {m: torch.where(present[:, i, None], x, 9.0) for i, (m, x) in enumerate(features.values.items())}
    again = score(net, replace(features, values=refilled), label)
    assert torch.equal(again.logits, scores.logits) and torch.equal(again.importance, scores.importance)


def test_contributions_split_the_targets_logit_exactly():
    features, label, _ = synthetic(70, 4, ("video", "audio", "text"))
    net = fit(features, label, 7, FAST)
    out = net(features.values, features.present)
    centred = out.logits - net.head.bias
    expected = centred.gather(1, label[:, None])[:, 0] - centred.mean(1)
    assert torch.allclose(net.attribute(out, label).sum(1), expected, atol=1e-5)
    assert torch.allclose(out.carried.sum(1), (out.gate[..., None] * out.hidden).sum(1), atol=1e-5)


def test_without_attention_a_contribution_is_the_gated_share_of_its_own_modality():
    features, label, _ = synthetic(70, 5)
    net = fit(features, label, 7, FAST)
    torch.nn.init.zeros_(net.out.weight)
    out = net(features.values, features.present)
    w = net.head.weight
    plain = out.gate * (torch.einsum("nmd,nd->nm", out.hidden, w[label]) - (out.hidden @ w.mean(0)))
    assert torch.allclose(net.attribute(out, label), plain, atol=1e-5)


def test_what_a_modality_heard_from_another_is_credited_to_the_other():
    net = DualGateFusion(FusionConfig({"video": 8, "audio": 8}, 7)).eval()
    torch.nn.init.zeros_(net.reading.project["video"][1].weight)
    torch.nn.init.zeros_(
        net.reading.project["video"][1].bias
    )  # video tokens are empty: h_video is audio's message alone
    features, present = {"video": torch.randn(5, 8), "audio": torch.randn(5, 8)}, torch.ones(5, 2, dtype=torch.bool)
    out = net(features, present)
    assert out.hidden[:, 0].abs().max() > 0.01 and (out.carried[:, 0] == 0).all()
    assert (net.attribute(out, torch.zeros(5, dtype=torch.long))[:, 0] == 0).all()


def test_where_nothing_speaks_for_the_target_the_gate_is_the_importance():
    features, label, _ = synthetic(140, 6)
    net = fit(features, label, 7, FitConfig(epochs=10))
    out = net(features.values, features.present)
    lowest = out.logits.argmin(1)
    silent = net.attribute(out, lowest).max(1).values <= 0
    assert silent.any()
    assert torch.equal(importance_of(net.attribute(out, lowest), out.gate, out.present)[silent], out.gate[silent])


def test_the_entropy_gate_prefers_the_surer_modality_and_the_loss_counts_present_heads_only():
    features, label, _ = synthetic(70, 7)
    net = fit(features, label, 7, FAST)
    out = net(features.values, features.present)
    entropy = torch.distributions.Categorical(logits=out.unimodal).entropy()
    assert torch.equal(out.entropy_gate.argmax(1), entropy.argmin(1))
    alone = torch.tensor([[True, False]]).repeat(70, 1)
    out = net(features.values, alone)
    ce = torch.nn.functional.cross_entropy
    expected = ce(out.logits, label) + 0.5 * ce(out.unimodal[:, 0], label)
    assert torch.allclose(fusion_loss(out, label, 0.5), expected, atol=1e-6)


def test_modality_dropout_never_hides_the_only_one():
    torch.manual_seed(0)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]]).repeat(500, 1)
    left = drop_modalities(present, 0.5)
    assert left.any(1).all() and (left <= present).all()
    assert torch.equal(left[2::3], present[2::3])
    lost = (present.sum(1) - left.sum(1)).view(-1, 3).float().mean(0)
    assert 0.4 < lost[0] < 0.6 and 0.4 < lost[1] < 0.6
    assert (present[::3] & ~left[::3]).sum(0).min() > 50  # each of the three is hidden now and then
    assert torch.equal(drop_modalities(present, 0.0), present)


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_callers_randomness_alone(tmp_path):
    features, label, _ = synthetic(140, 8)
    state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save(fit(features, label, 7, replace(FAST, seed=seed)), tmp_path / f"{name}.safetensors", seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    read = {name: (tmp_path / f"{name}.safetensors").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_saved_network_gives_the_same_output_again(tmp_path):
    features, label, _ = synthetic(140, 9)
    net = fit(features, label, 7, FAST, hidden=32, tau=0.3)
    save(net, tmp_path / "net.safetensors", labels=list(DFEW))
    again = load(tmp_path / "net.safetensors")
    assert again.config == net.config and fingerprint(again) == fingerprint(net)
    for a, b in zip(score(net, features, label)[:-1], score(again, features, label)[:-1], strict=True):
        assert torch.equal(a, b)
    assert read_json(tmp_path / "net.json")["labels"] == list(DFEW)


@pytest.mark.parametrize("damage", ["weights", "shape", "json", "missing"])
def test_a_damaged_network_is_an_error_that_names_the_file(tmp_path, damage):
    features, label, _ = synthetic(70, 10)
    path = tmp_path / "net.safetensors"
    save(fit(features, label, 7, replace(FAST, epochs=1)), path)
    if damage == "weights":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "missing":
        path.unlink()
    else:
        about = read_json(path.with_suffix(".json"))
        about["config"] = {**about["config"], "hidden": 32} if damage == "shape" else {"unknown": 1}
        path.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"net\.safetensors"):
        load(path)


def test_scores_do_not_depend_on_the_batch():
    features, label, _ = synthetic(70, 11)
    net = fit(features, label, 7, FAST)
    for a, b in zip(score(net, features, label, 512)[:-1], score(net, features, label, 3)[:-1], strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5)


def test_a_clip_without_label_is_scored_for_the_predicted_emotion_and_not_learned_from():
    features, label, _ = synthetic(112, 12)
    train = torch.ones(112, dtype=torch.bool)
    unknown = label.clone()
    unknown[[3, 50]] = -1
    found = cross_score(features, unknown, train, DFEW, FAST, folds=3)
    assert found.fold[3] == found.fold[50] == -1 and found.models[3] == fingerprint(found.net)
    assert torch.equal(found.scores.target[[3, 50]], found.scores.logits[[3, 50]].argmax(1))
    rest = torch.tensor([i for i in range(112) if i not in (3, 50)])
    assert torch.equal(found.scores.target[rest], label[rest])
    alone = fit(features.take(rest), label[rest], 7, FAST)
    assert fingerprint(alone) == fingerprint(found.net)


def test_one_modality_alone_carries_everything():
    features, label, _ = synthetic(112, 13, ("audio",))
    found = cross_score(features, label, torch.ones(112, dtype=torch.bool), DFEW, FAST, folds=2)
    assert (found.scores.importance == 1).all() and (found.scores.gate == 1).all()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "'clip61': its audio features are not finite"),
        ("infinite", "'clip2': its video features are not finite"),
        ("rare", "label 'fear' has 2 train clips, too few for 3 folds"),
        ("one", "have the label 'happy'; at least two emotions"),
        ("none", "none has a label"),
        ("empty", "'clip40' has no video and no audio"),
        ("untaught", "'clip56' has audio, but no labelled train clip does"),
        ("nowhere", "no clip has audio: leave this modality out"),
        ("one fold", "audio: only 1 train clips have it, all in one of 3 folds"),
    ],
)
def test_unusable_clips_are_named(kind, message):
    with pytest.raises(InputError, match=message):
        cross_score(*broken(kind), DFEW, FAST, folds=3)


def test_fewer_than_two_folds_and_a_single_class_are_refused():
    features, label, _ = synthetic(70, 15)
    with pytest.raises(InputError, match="folds: need at least 2"):
        cross_score(features, label, torch.ones(70, dtype=torch.bool), DFEW, FAST, folds=1)
    with pytest.raises(InputError, match="same label"):
        fit(features, torch.zeros(70, dtype=torch.long), 7, FAST)


def test_a_constant_feature_does_no_harm():
    features, label, _ = synthetic(140, 16)
    features.values["video"][:, 5] = 2.5
    net = fit(features, label, 7, FAST)
    features.values["video"][0, 5] = 2.6
    assert score(net, features, label).logits.isfinite().all()
    assert net.reading.get_buffer("std_video")[5] == 1


# Tower features and the command, on real clips and a tiny model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"), ["the face smiles, the voice sinks: happy or sad?"] * 20)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")
    rows = []
    for row in planted.make(root, 0, {"train": 28, "test": 7}):
        path = f"clips/{row['clip_id']}.mp4"
        rows.append({"path": path, **{key: row[key] for key in ("clip_id", "label", "split", "planted")}})
    rows[3]["has_audio"] = rows[30]["has_video"] = False
    write_jsonl(root / "clips.jsonl", rows)
    return root / "clips.jsonl"


@pytest.fixture(scope="module")
def clips(manifest) -> list[Clip]:
    return read_clips(manifest)


def test_tower_features_pool_each_clips_own_tokens(model, clips, tmp_path):
    inputs = OmniInputs(load_processor(model), MEDIA)
    mixed = [clips[3], clips[30], clips[0], clips[1], clips[2]]
    together = towers.tower_features(mixed, inputs, model, batch_size=5)
    singly = towers.tower_features(mixed, inputs, model, batch_size=1)
    assert together.present.tolist() == [[True, False], [False, True], [True, True], [True, True], [True, True]]
    for name, m in (("video", 0), ("audio", 1)):
        assert together.values[name].dtype == torch.float32 and together.values[name].shape == (5, 256)
        assert torch.allclose(together.values[name], singly.values[name], atol=1e-4)
        assert (together.values[name][~together.present[:, m]] == 0).all()
        assert together.values[name][2:].std(0).max() > 1e-3
    one = inputs.collate([inputs.features(clips[0])])
    thinker = load_thinker(model)
    with torch.inference_mode():
        (tokens,) = thinker.get_video_features(one["pixel_values_videos"], one["video_grid_thw"]).pooler_output
    expected = torch.cat([tokens.mean(0), tokens.std(0, correction=0)])
    assert torch.allclose(together.values["video"][2], expected, atol=1e-4)


def test_tower_features_are_cached_by_content_towers_and_settings(model, clips, tmp_path):
    inputs = OmniInputs(load_processor(model), MEDIA)
    first = towers.tower_features(clips[:4], inputs, model, tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    marked = {name: values + 1 for name, values in load_file(file).items()}
    save_file(marked, file)
    again = towers.tower_features(clips[:4], inputs, model, tmp_path)
    assert torch.equal(again.values["audio"], first.values["audio"] + 1)  # read, not computed
    file.write_bytes(b"damaged")
    mended = towers.tower_features(clips[:4], inputs, model, tmp_path)
    assert torch.equal(mended.values["video"], first.values["video"])
    keys = {towers.features_key(part, inputs, model) for part in (clips[:4], clips[:3], clips[1:4])}
    finer = OmniInputs(inputs.processor, replace(MEDIA, max_pixels=12544))
    assert len(keys | {towers.features_key(clips[:4], finer, model)}) == 4


def test_the_key_follows_the_towers_and_not_the_language_model(model, clips, tmp_path):
    weights = load_file(model / "model.safetensors")
    before = towers.towers_digest(model)
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    for key, same in (("thinker.lm_head.weight", True), ("thinker.audio_tower.proj.bias", False)):
        save_file({**weights, key: weights[key] + 1}, tmp_path / "model.safetensors")
        assert (towers.towers_digest(tmp_path) == before) is same


def test_a_tower_whose_features_are_not_finite_is_an_error_that_names_the_clip(model, clips, tmp_path):
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(model / "model.safetensors")
    weights["thinker.audio_tower.proj.bias"][0] = 3e38  # finite, but not its square
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match="'train-00000': its audio features are not finite"):
        towers.tower_features(clips[:2], OmniInputs(load_processor(model), MEDIA), tmp_path, cache)
    assert not list(cache.rglob("*.safetensors"))


SCRIPT = str(ROOT / "stages" / "importance.py")
FLAGS = ("--folds", "2", "--max_frames", "4", "--min_pixels", "3136", "--max_pixels", "7056")


def here(monkeypatch, *arguments: object) -> None:
    """Run the command in this process, which has imported everything already."""
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
    runpy.run_path(SCRIPT, run_name="__main__")


@pytest.fixture(scope="module")
def written(model, manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    words = [sys.executable, SCRIPT, "--clips", manifest, "--model", model, "--out", "out", *FLAGS]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)  # the root is not on its path
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def test_the_command_writes_one_checked_line_a_clip(written):
    out, _ = written
    rows = {row["clip_id"]: row for row in read_jsonl(out / "importance.jsonl", unique="clip_id")}
    assert len(rows) == 35
    for row in rows.values():
        assert abs(sum(row["importance"].values()) - 1) < 1e-5 and min(row["importance"].values()) >= 0
        assert row["dominant"] == max(row["importance"], key=row["importance"].get) and 0 <= row["margin"] <= 1
        assert (row["fold"] is None) == row["clip_id"].startswith("test") and len(row["model"]) == 16
    assert rows["train-00003"]["importance"] == {"video": 1.0, "audio": 0.0}
    assert rows["test-00002"]["entropy_gate"] == {"video": 0.0, "audio": 1.0}
    assert fingerprint(load(out / "fusion.safetensors")) == rows["test-00000"]["model"]


def test_the_command_sums_up_what_it_measured(written):
    out, printed = written
    summary = read_json(out / "summary.json")
    assert set(summary["splits"]) == {"train", "test"} and 0 < summary["alpha"] < 1
    assert set(summary["splits"]["test"]["label_accuracy"]) == {"fused", "video", "audio"}
    accuracy = summary["splits"]["train"]["dominant_accuracy"]
    assert accuracy["majority"] == 0.5 and "attribution" in accuracy and "unimodal_confidence" in accuracy
    rows = read_jsonl(out / "importance.jsonl")
    truth = [("video", "audio")[int(row["clip_id"][-5:]) // 7 % 2] for row in rows if row["fold"] is not None]
    right = sum(row["dominant"] == name for row, name in zip(rows[:28], truth, strict=True))
    assert accuracy["attribution"] == right / 28
    assert (out / "gates.png").read_bytes()[:4] == b"\x89PNG"
    assert "unimodal confidence" in printed and "importance: 35 clips" in printed


def test_a_second_run_of_the_same_configuration_does_nothing(written, model, manifest, monkeypatch, capsys):
    out, _ = written
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    here(monkeypatch, "--clips", manifest, "--model", model, "--out", out, *FLAGS)
    assert "is finished already" in capsys.readouterr().out
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_importance_does_not_depend_on_the_planted_truth(written, model, manifest, tmp_path, monkeypatch):
    rows = read_jsonl(manifest)
    for row in rows:
        del row["planted"]
    bare = manifest.parent / "bare.jsonl"
    write_jsonl(bare, rows)
    here(monkeypatch, "--clips", bare, "--model", model, "--out", tmp_path, "--cache_dir", written[0] / "cache", *FLAGS)
    for name in ("importance.jsonl", "fusion.safetensors"):
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()
    assert read_json(tmp_path / "summary.json")["splits"]["test"]["dominant_accuracy"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--folds", "5"), "label 'happy' has 4 train clips, too few for 5 folds"),
        (("--labels", "nonsense"), "nonsense"),
        (("--batch_size", "0"), "--batch_size: need at least 1"),
        (("--model", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_the_command_refuses_bad_input_before_any_work(model, manifest, tmp_path, monkeypatch, capsys, flags, message):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        here(monkeypatch, "--clips", manifest, "--model", model, "--out", out, *FLAGS, *flags)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and error.startswith("error: ") and message in error and "\n" not in error
    assert not out.exists()
