"""EGMF whole as a network of the importance stage."""

import pytest
import torch
from fusion_data import synthetic

from migr.importance.fit import FitConfig, alternatives, cross_score
from migr.importance.networks.attribution import evidence
from migr.sentiment.network import LanguageHead
from migr.sentiment.settings import NetworkSettings
from migr.text.labels import DFEW
from tests.sentiment.files import tiny_lm


@pytest.mark.slow
@pytest.mark.parametrize("task", ["emotion", "sentiment"])
def test_importance_by_the_language_model_finds_the_dominant_modality(task, tmp_path):
    features, label, dominant = synthetic(420, 6)
    labels = DFEW if task == "emotion" else ()
    target = label if labels else (label.float() - 3).clamp(-3, 3)
    train = torch.arange(420) < 336
    head = LanguageHead(str(tiny_lm(tmp_path / "lm")), labels, NetworkSettings(grid=0.5, lora_r=8))
    config = FitConfig(epochs=12, batch_size=32)
    result = cross_score(features, target, train, labels or ("sentiment",), config, 2, fusion="experts", head=head)
    scores, held = result.scores, ~train
    if labels:
        assert (scores.prediction == label)[held].double().mean() > 0.8
    else:
        assert (scores.prediction - target)[held].abs().mean() < 0.7
        held = held & (target.abs() > 1.5)
    assert (alternatives(scores)["attribution"] == dominant)[held].double().mean() > 0.8
    total = evidence(scores.logits, scores.target)
    torch.testing.assert_close(scores.contributions.sum(1), total, atol=1e-3, rtol=1e-3)
    assert set(result.net.state_dict()) & {"pseudo.linear.weight"} and len(set(result.models)) == 3
    assert not any(name.startswith("lm.") and "lora" not in name for name in result.net.state_dict())
