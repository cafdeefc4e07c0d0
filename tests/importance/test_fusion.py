"""The second network, sentiment scores, adversarial training, and the figures that say how far to trust a score."""

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from fusion_data import FAST, broken, synthetic

from migr.clips.manifest import Clip
from migr.errors import InputError
from migr.importance import measure, trust
from migr.importance.fit import FitConfig, alternatives, cross_score, fit, score, support
from migr.importance.networks.attribution import coalitions, evidence, importance_of, shapley
from migr.importance.networks.dual_gate import GATES
from migr.importance.networks.experts import ExpertConfig, ExpertFusion, collapse
from migr.importance.networks.reading import entropy_of, fusion_loss, log_likelihood, log_scale
from migr.importance.networks.vat import XI, _scaled, adversarial_loss, divergence
from migr.importance.store import build, fingerprint, load, save
from migr.sentiment.metrics import figures
from migr.sentiment.sets import sentiment_set
from migr.text.labels import DFEW

NETS = ("dual-gate", "experts", "concatenation")


def scores_of(label: torch.Tensor) -> torch.Tensor:
    """Sentiment scores that the synthetic features can tell: one a class, spread over [-3, 3]."""
    return (label.float() - 3).clamp(-3, 3)


# Experts


@pytest.fixture(scope="module")
def experts():
    features, label, dominant = synthetic(840, 1)
    train = torch.arange(840) < 560
    found = cross_score(features, label, train, DFEW, FitConfig(epochs=20), folds=2, fusion="experts")
    return found, label, dominant, train


def test_experts_find_the_dominant_modality_on_held_out_clips(experts):
    found, label, dominant, train = experts
    ways = alternatives(found.scores)
    assert set(ways) == {"attribution", "entropy_gate", "unimodal_confidence"}
    assert (ways["attribution"] == dominant)[~train].float().mean() >= 0.95
    assert (found.scores.prediction == label)[~train].float().mean() > 0.8
    alpha = found.scores.parts["experts"]
    assert alpha.shape == (840, 3) and torch.allclose(alpha.sum(1), torch.ones(840), atol=1e-5)


def test_the_experts_are_bottlenecks_of_the_published_ratios_and_activations():
    net = ExpertFusion(ExpertConfig({"video": 8, "audio": 8}, 7, hidden=64))
    shapes = [(type(e[1]).__name__, e[0].in_features // e[0].out_features) for e in net.experts]
    assert shapes == [("Mish", 8), ("GELU", 4), ("SiLU", 2)]


def test_text_asks_where_there_is_text_else_video_else_audio():
    net = build("experts", dims={"video": 4, "audio": 4, "text": 4}, n_classes=7).eval()
    torch.nn.init.zeros_(net.cross.out_proj.weight)  # no answers: what is left of a clip is its anchor alone
    torch.nn.init.zeros_(net.cross.out_proj.bias)
    features = {m: torch.randn(3, 4) for m in net.modalities}
    present = torch.tensor([[True, True, True], [True, True, False], [False, True, False]])
    before = net(features, present).logits
    for m, reads in (("text", [0]), ("video", [1]), ("audio", [2])):
        changed = net({**features, m: features[m] + 1}, present).logits
        assert (changed != before).any(1).nonzero().flatten().tolist() == reads


@pytest.mark.parametrize("fusion", NETS)
def test_every_network_ignores_what_stands_in_absent_modalities(fusion):
    features, label, _ = synthetic(60, 3, ("video", "audio", "text"))
    present = torch.rand(60, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    present[:, 0] |= ~present.any(1)
    here = replace(features, present=present)
    net = fit(here, label, 7, replace(FAST, epochs=2), fusion)
    first = score(net, here, label)
    filled = {m: torch.where(present[:, i, None], x, torch.nan) for i, (m, x) in enumerate(features.values.items())}
    again = score(net, replace(here, values=filled), label)
    assert torch.equal(first.logits, again.logits) and torch.equal(first.importance, again.importance)
    assert (first.importance[~present] == 0).all() and (first.contributions[~present] == 0).all()
    assert torch.allclose(first.importance.sum(1), torch.ones(60), atol=1e-5)
    assert (first.drop.isnan() == (~present | (present.sum(1) < 2)[:, None])).all()
    nobody = present & torch.tensor([True, True, False])
    nobody[:, 0] = True
    assert (score(net, replace(here, values=features.values, present=nobody), label).importance[:, 2] == 0).all()
    with pytest.raises(InputError, match="no clip has text"):
        fit(replace(here, present=nobody), label, 7, FAST, fusion)


@pytest.mark.parametrize("fusion", ["dual-gate", "experts"])
def test_fitting_twice_gives_the_same_file_and_loading_the_same_scores(fusion, tmp_path):
    features, label, _ = synthetic(84, 4)
    config = replace(FAST, epochs=2, adversarial_weight=0.5)
    for name in "ab":
        save(fit(features, label, 7, config, fusion), tmp_path / f"{name}.safetensors", seed=0)
    for kind in ("safetensors", "json"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    again = load(tmp_path / "a.safetensors")
    net = fit(features, label, 7, config, fusion)
    assert type(again) is type(net) and fingerprint(again) == fingerprint(net)
    assert torch.equal(score(again, features, label).importance, score(net, features, label).importance)


@pytest.mark.parametrize("kind", ["nan", "rare", "one", "none", "untaught", "nowhere", "one fold"])
def test_experts_refuse_the_same_clips(kind):
    with pytest.raises(InputError):
        cross_score(*broken(kind), DFEW, FAST, folds=3, fusion="experts")


def test_each_gate_alone_and_equal_weights():
    features, label, _ = synthetic(70, 5)
    assert GATES == ("both", "entropy", "importance", "equal")
    for kind, name in (("entropy", "entropy_gate"), ("importance", "importance_gate")):
        found = score(fit(features, label, 7, replace(FAST, epochs=1), gates=kind), features, label)
        assert torch.equal(found.gate, found.parts[name])
    found = score(fit(features, label, 7, replace(FAST, epochs=1), gates="equal"), features, label)
    assert (found.gate == 0.5).all()


def test_a_gate_that_has_stopped_choosing_is_named():
    names = ("local", "semantic", "global")
    drawn = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert collapse(torch.nn.functional.normalize(drawn**3, p=1, dim=1), names) is None
    assert "uniform" in collapse(torch.full((50, 3), 1 / 3), names)
    one = torch.tensor([[0.01, 0.98, 0.01]]).repeat(50, 1)
    assert "one takes all: semantic has 98%" in collapse(one, names)
    assert "constant: local 0.60" in collapse(torch.tensor([[0.6, 0.3, 0.1]]).repeat(50, 1), names)
    assert collapse(torch.ones(5, 1), ("video",)) is None


# Attribution


def test_shapley_values_are_those_of_the_definition_and_add_up():
    g = torch.Generator().manual_seed(0)
    values = {mask: torch.randn(4, generator=g) if mask else torch.zeros(4) for mask in range(8)}
    expected = torch.zeros(4, 3)
    for order in permutations(range(3)):  # the mean marginal gain over all orders of arrival
        mask = 0
        for m in order:
            expected[:, m] += (values[mask | 1 << m] - values[mask]) / 6
            mask |= 1 << m
    found = shapley(values, torch.ones(4, 3, dtype=torch.bool))
    assert torch.allclose(found, expected, atol=1e-6) and torch.allclose(found.sum(1), values[7], atol=1e-6)


def test_coalitions_of_an_additive_network_give_back_its_parts():
    part = torch.tensor([[1.0, -0.5, 2.0], [0.3, 0.2, 0.7]])
    present = torch.tensor([[True, True, True], [True, False, True]])

    def logits(shown: torch.Tensor) -> torch.Tensor:
        return (part * shown).sum(1, keepdim=True)

    found = shapley(coalitions(logits, present, torch.ones(2)), present)
    assert torch.allclose(found, part * present, atol=1e-6)


def test_evidence_and_importance():
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    assert evidence(logits, torch.tensor([0])).item() == pytest.approx(1.0)
    assert evidence(torch.tensor([[-1.5], [-1.5]]), torch.tensor([-2.0, 2.0])).tolist() == [1.5, -1.5]
    present, gate = (
        torch.tensor([[True, True], [True, True], [True, False]]),
        torch.tensor([[0.4, 0.6]] * 2 + [[1, 0.0]]),
    )
    found = importance_of(torch.tensor([[3.0, 1.0], [-1.0, -2.0], [2.0, 5.0]]), gate, present)
    assert torch.allclose(found, torch.tensor([[0.575, 0.425], [0.4, 0.6], [1.0, 0.0]]))


# Sentiment scores


@pytest.mark.parametrize("fusion", NETS)
def test_scores_are_learned_and_importance_is_about_them(fusion):
    features, label, dominant = synthetic(560, 6)
    sentiment = scores_of(label)
    sentiment[::50] = torch.nan
    train = torch.arange(560) < 420
    found = cross_score(features, sentiment, train, ("sentiment",), FitConfig(epochs=15), folds=2, fusion=fusion)
    held = ~train & sentiment.isfinite()
    values = figures(sentiment_set("mosi"), found.scores.prediction[held].numpy(), sentiment[held].numpy())
    assert values["MAE"] < 1.0 and values["Corr"] > 0.8 and values["Non0_acc_2"] > 0.85
    assert torch.equal(found.scores.target[held], sentiment[held]) and found.scores.target.isfinite().all()
    far = held & (sentiment.abs() > 1.5)
    assert (found.scores.importance.argmax(1) == dominant)[far].float().mean() > 0.8
    assert (found.fold[train & sentiment.isnan()] == -1).all()


def test_the_laplace_heads_likelihood_and_entropy_are_those_of_the_distribution():
    unimodal = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0))
    target = torch.linspace(-3, 3, 6)
    laplace = torch.distributions.Laplace(unimodal[..., 0], log_scale(unimodal).exp())
    assert torch.allclose(entropy_of(unimodal, 1), laplace.entropy(), atol=1e-5)
    expected = laplace.log_prob(target[:, None]) + math.log(2)
    assert torch.allclose(log_likelihood(unimodal, target), expected, atol=1e-5)


def test_the_fused_score_is_fitted_by_l1():
    features, label, _ = synthetic(20, 7)
    net = build("dual-gate", dims={"video": 64, "audio": 64}, n_classes=1).eval()
    out = net(features.values, features.present)
    assert fusion_loss(out, scores_of(label), 0.0) == (out.logits[:, 0] - scores_of(label)).abs().mean()
    assert torch.equal(support(out.logits, scores_of(label)), -(out.logits[:, 0] - scores_of(label)).abs())


def test_scores_that_cannot_be_learned_are_refused():
    features, _, _ = synthetic(30, 8)
    train = torch.ones(30, dtype=torch.bool)
    few = torch.full((30,), torch.nan)
    few[0] = 1.0
    with pytest.raises(InputError, match="1 have a score, too few for 3 folds"):
        cross_score(features, few, train, ("sentiment",), FAST, folds=3)
    with pytest.raises(InputError, match="all 30 have the score 1"):
        cross_score(features, torch.ones(30), train, ("sentiment",), FAST, folds=3)


@pytest.mark.parametrize("value", [4, -3.5, "good", True])
def test_a_sentiment_outside_the_scale_names_the_clip(value, tmp_path):
    with pytest.raises(InputError, match="'c7': sentiment must be a number in"):
        measure.sentiment_of(Clip("c7", tmp_path, None, "train", extra={"sentiment": value}))
    assert math.isnan(measure.sentiment_of(Clip("c7", tmp_path, None, "train")))


# Virtual adversarial training


def test_the_adversarial_step_has_its_radius_spares_absent_modalities_and_hurts_more_than_a_random_one():
    features, label, _ = synthetic(140, 9)
    net = fit(features, label, 7, FitConfig(epochs=5)).train()
    present = features.present.clone()
    present[::2, 1] = False
    torch.manual_seed(0)
    worst = adversarial_loss(net, features.values, present, 0.3)
    assert worst > 0 and worst.requires_grad and net.training
    noise = _scaled({m: torch.randn_like(x) for m, x in features.values.items()}, present, 0.3)
    assert (noise["audio"][::2] == 0).all()
    squares = torch.stack([x.square().sum(1) for x in noise.values()]).sum(0)
    assert torch.allclose(squares.sqrt(), 0.3 * torch.where(present[:, 1], 128.0, 64.0).sqrt(), rtol=1e-4)
    net.eval()
    clean, moved = (net(features.values, present, shift).logits for shift in (None, noise))
    assert worst > 1.5 * divergence(clean, moved).mean()
    assert XI < 0.1 and (divergence(clean, clean).abs() < 1e-6).all()


def test_adversarial_training_makes_the_output_steadier():
    features, label, _ = synthetic(280, 10)
    steadiness = []
    for weight in (0.0, 2.0):
        config = FitConfig(epochs=8, adversarial_weight=weight, adversarial_radius=0.3)
        net = fit(features, label, 7, config).train()
        torch.manual_seed(1)
        steadiness.append(adversarial_loss(net, features.values, features.present, 0.3).item())
    assert steadiness[1] < 0.7 * steadiness[0]


# Trust


def test_calibration_error_and_temperature():
    label = torch.arange(1000) % 2
    right = torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.75
    chosen = torch.where(right, label, 1 - label)
    sure = torch.where(torch.nn.functional.one_hot(chosen, 2).bool(), math.log(99), 0.0)  # says 0.99, is right in 0.75
    assert trust.calibration_error(sure.softmax(1), label) == pytest.approx(
        0.99 - right.float().mean().item(), abs=1e-4
    )
    t = trust.temperature(sure, label)
    assert t == pytest.approx(math.log(99) / math.log(right.sum() / (~right).sum()), rel=0.02)
    assert trust.calibration_error((sure / t).softmax(1), label) < 0.01


def test_agreement_counts_clips_with_an_opinion_only():
    dominant, other = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 1, -1, 1, 1])
    found = trust.agreement(dominant, other, torch.tensor([0, 0, 0, 1, -1]))
    assert (found["n"], found["share"], found["agree"]) == (4, 0.8, 0.75) and found["right"] == pytest.approx(2 / 3)
    assert trust.agreement(dominant, torch.full((5,), -1))["agree"] is None
    drop = torch.tensor([[0.1, 0.5], [torch.nan, torch.nan], [-0.2, -0.1]])
    assert trust.largest(drop).tolist() == [1, -1, -1]


def test_right_alone_needs_exactly_one_right_head(experts):
    scores = experts[0].scores
    found = trust.alone(scores)
    right = scores.unimodal.argmax(2) == scores.target[:, None]
    assert ((found >= 0) == (right.sum(1) == 1)).all()
    assert right[torch.arange(840), found.clamp(min=0)][found >= 0].all()


def test_a_threshold_keeps_the_clear_clips_and_finds_more_of_them():
    importance = torch.tensor([[0.9, 0.1], [0.52, 0.48], [0.2, 0.8], [0.45, 0.55]])
    truth = torch.tensor([0, 1, 1, 0])
    rows = {row["min_margin"]: row for row in trust.threshold_effect(importance, truth, truth)}
    assert rows[0.0]["kept"] == 1 and rows[0.0]["right"] == 0.5
    assert rows[0.2]["kept"] == 0.5 and rows[0.2]["right"] == rows[0.2]["agree"] == 1
    assert rows[0.9]["kept"] == 0 and rows[0.9]["right"] is None


def test_prediction_space_correlation_tells_a_bad_region_from_scattered_errors():
    g = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(60, 5, generator=g), torch.randn(60, 5, generator=g) + 6])
    one_region = (torch.arange(120) >= 60).float()
    scattered = one_region[torch.randperm(120, generator=g)]
    assert trust.prediction_space_correlation(z, one_region) > 0.9
    assert abs(trust.prediction_space_correlation(z, scattered)) < 0.1
    assert trust.prediction_space_correlation(z, torch.zeros(120)) is None


def test_quality_correlation_pairs_the_modalities_that_were_planted(tmp_path):
    def clip(i: int, video: float, audio: float) -> Clip:
        planted = {"quality": {"video": video, "audio": audio}}
        return Clip(f"c{i}", tmp_path, "sad", "test", extra={"planted": planted})

    clips = [clip(0, 0.9, 0.1), clip(1, 0.5, 0.4), clip(2, 0.2, 0.7)]
    importance = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9]])
    assert measure.quality_correlation(clips, importance, ("video", "audio")) == pytest.approx(1.0)
    assert measure.quality_correlation(clips, importance.flip(1), ("video", "audio")) == pytest.approx(-1.0)
    assert measure.quality_correlation([Clip("x", tmp_path, None, "test")], importance[:1], ("video",)) is None


@pytest.mark.slow
def test_scoring_is_linear_in_rows():
    features, label, _ = synthetic(64, 11)
    net = fit(features, label, 7, FAST)
    import time

    def seconds(copies: int) -> float:
        index = torch.arange(64).repeat(copies)
        table, wanted = features.take(index), label[index]
        start = time.process_time()
        score(net, table, wanted)
        return time.process_time() - start

    seconds(50)
    assert seconds(800) < 8 * seconds(200)
