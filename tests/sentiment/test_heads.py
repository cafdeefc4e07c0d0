import json
from pathlib import Path

import pytest
import torch

from migr.errors import InputError
from migr.importance.networks.attribution import evidence
from migr.omni.tiny import build_tiny
from migr.sentiment.answers import AnswerTree, answer_texts, expectation
from migr.sentiment.data import SentimentData
from migr.sentiment.encoders import SequenceConfig, SequenceFusion
from migr.sentiment.generative import GenerativeSentiment, Prompts, PromptWriter, PseudoTokens
from migr.sentiment.language_model import embedding_rms, load_language_model
from migr.sentiment.sets import sentiment_set
from migr.sentiment.training import Collator, load_trainable, save_trainable, trainable
from migr.sentiment.value import ValueSentiment
from stages.features import main as features
from tests.sentiment.files import planted, tiny_lm
from tests.sentiment.test_files import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("data")
    table = planted((24, 8, 8))
    table["train"]["audio"][3] = 0.0
    table["train"]["vision"][4, 0, 2] = float("nan")
    path = write(made / "x.pkl", table)
    features(["--source", "mmsa", "--file", str(path), "--set", "mosi", "--out", str(made / "data")])
    tiny_lm(made / "qwen2")
    tiny_lm(made / "llama", "llama")
    return made


def fusion_of(data: SentimentData, kind: str, encoder="attention", classes=1) -> SequenceFusion:
    torch.manual_seed(0)
    net = SequenceFusion(SequenceConfig(data.dims, classes, kind, encoder, 16, 2, 0.1))
    net.set_scaling(data.about["scaling"])
    return net


def generative(folder: Path, family="qwen2", form="repeat", lora_r=4, kind="experts", dataset="mosi", transcript=True):
    data = SentimentData(folder / "data")
    lm, tokenizer = load_language_model(str(folder / family), "float32", lora_r)
    answers = AnswerTree.build(*answer_texts(sentiment_set(dataset), 0.5), tokenizer)
    torch.manual_seed(1)
    pseudo = PseudoTokens(16, 64, 3, form, embedding_rms(lm))
    net = fusion_of(data, kind)
    model = GenerativeSentiment(lm, net, pseudo, answers, sentiment_set(dataset).is_score, transcript=transcript)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    writer = PromptWriter(tokenizer, sentiment_set(dataset).prompt, 3, transcript)
    return model.eval(), data, Collator(data.splits["train"], sentiment_set("mosi"), writer)


def value(folder: Path, kind: str, encoder="attention"):
    data = SentimentData(folder / "data")
    return ValueSentiment(fusion_of(data, kind, encoder)).eval(), data, Collator(data.splits["train"], data.dataset)


HEADS = [
    ("value", "dual-gate", "attention"),
    ("value", "experts", "bilstm"),
    ("value", "concat", "attention"),
    ("qwen2", "experts", "repeat"),
    ("llama", "dual-gate", "free"),
    ("qwen2", "experts", "affine"),
]


def head(folder: Path, case: tuple[str, str, str]):
    return value(folder, case[1], case[2]) if case[0] == "value" else generative(folder, case[0], case[2], kind=case[1])


@pytest.mark.parametrize("case", HEADS, ids=" ".join)
def test_neither_the_batch_nor_padding_changes_an_answer(folder, case):
    model, _, collator = head(folder, case)
    with torch.no_grad():
        whole = model.predict(collator(range(8)))
        alone = [model.predict(collator([i])) for i in range(8)]
        collator.longer = 7
        longer = model.predict(collator(range(8)))
    assert torch.allclose(whole.logits, torch.cat([one.logits for one in alone]), atol=1e-4)
    assert torch.allclose(whole.logits, longer.logits, atol=1e-4)
    for name, values in whole.readings.items():
        assert torch.equal(values.nan_to_num(9), torch.cat([one.readings[name] for one in alone]).nan_to_num(9))
    if case[0] != "value":
        assert torch.allclose(whole.log_p, torch.cat([one.log_p for one in alone]), atol=1e-4)


def test_dropout_does_not_change_the_scale_of_tokens(folder):
    data = SentimentData(folder / "data")
    batch = Collator(data.splits["train"], data.dataset)(range(24))
    net = SequenceFusion(SequenceConfig(data.dims, 1, "dual-gate", "attention", 16, 1, 0.4))
    for layers in net.fusion.reading.project.values():
        layers[0].p = 0.0  # only what stands around the norm
    with torch.no_grad():
        tokens, present = net.eval().encode(batch["frames"], batch["lengths"]), net.visible(batch["lengths"])
        fitted = net.fusion.reading(tokens, present)[0]
        net.train()
        drawn = torch.stack([net.fusion.reading(tokens, present)[0] for _ in range(400)])
    assert (drawn == 0).double().mean() > 0.3
    assert ((drawn.mean(0) * fitted).sum() / fitted.square().sum()).item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("case", HEADS[:4], ids=" ".join)
def test_importance_is_a_share_and_absent_modalities_have_none(folder, case):
    model, _, collator = head(folder, case)
    batch = collator(range(8))
    with torch.no_grad():
        importance, contributions = model.attribute(batch, batch["target"])
        present = model.present(batch)
    assert torch.allclose(importance.sum(1), torch.ones(8), atol=1e-5)
    assert importance[3, 2] == 0 and not present[3, 2]
    if case[0] != "value":  # Shapley values add up to the evidence
        with torch.no_grad():
            total = evidence(model.logits_of(batch, present), batch["target"])
        assert torch.allclose(contributions.sum(1), total, atol=1e-4)


def test_missing_numbers_are_the_median_and_cut_ones_are_far(folder):
    model, _, collator = value(folder, "dual-gate")
    batch = collator([4])
    assert batch["frames"]["video"].isnan().sum() == 1
    encoder = model.fusion.encoders["video"]
    frames = batch["frames"]["video"]
    filled = torch.where(frames.isnan(), encoder.get_buffer("median"), frames)
    lengths = batch["lengths"]["video"]
    assert torch.allclose(encoder(frames, lengths), encoder(filled, lengths))
    assert encoder(torch.full_like(frames, 1e30), lengths).isfinite().all()


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_expected_equals_brute_force_over_all_answers(folder, family):
    model, _, collator = generative(folder, family)
    batch = collator(range(4))
    with torch.no_grad():
        _, pseudo = model.tokens_of(batch, None)
        prompts = Prompts(batch["prompt_ids"], batch["prompt_mask"])
        found, _ = model.log_answers(prompts, pseudo)
        embedded = model.prompt_embeddings(prompts, pseudo)
        for i in range(4):
            own = embedded[i, prompts.mask[i]][None]  # no padding at all, one answer at a time
            for a, ids in enumerate(model.answers.ids):
                answer = torch.tensor(ids)
                whole = torch.cat([own, model.embed(answer[None, :-1])], 1)
                logits = model.lm(inputs_embeds=whole).logits[0, own.shape[1] - 1 :].log_softmax(-1)
                expected = logits.gather(1, answer[:, None]).sum()
                assert found[i, a] == pytest.approx(expected.item(), abs=2e-3)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_greedy_equals_transformers_own_generate(folder, family):
    model, _, collator = generative(folder, family)
    batch = collator(range(6))
    with torch.no_grad():
        _, pseudo = model.tokens_of(batch, None)
        prompts = Prompts(batch["prompt_ids"], batch["prompt_mask"])
        ours = model.greedy(prompts, pseudo)
        theirs = model.lm.generate(
            inputs_embeds=model.prompt_embeddings(prompts, pseudo),
            attention_mask=prompts.mask.long(),
            max_new_tokens=len(ours[0]),
            do_sample=False,
        ).tolist()
    end = model.answers.end
    for a, b in zip(ours, theirs, strict=True):
        stop = a.index(end) + 1 if end in a else len(a)
        assert a[:stop] == b[:stop]


def test_constrained_is_greedy_among_answers(folder):
    model, _, collator = generative(folder)
    batch = collator(range(8))
    with torch.no_grad():
        _, pseudo = model.tokens_of(batch, None)
        prompts = Prompts(batch["prompt_ids"], batch["prompt_mask"])
        _, log_p = model.log_answers(prompts, pseudo)
        found = model.answers.constrained(log_p).tolist()
    tree = model.answers
    for i, a in enumerate(found):
        path: tuple[int, ...] = ()
        while path not in tree.ids:
            after = {row[len(path)] for row in tree.ids if row[: len(path)] == path}
            node = tree.steps[next(b for b, row in enumerate(tree.ids) if row[: len(path)] == path), len(path)]
            path = (*path, max(after, key=lambda token: log_p[i, node, token].item()))
        assert tree.ids[a] == path


def test_training_leaves_frozen_weights_bit_identical(folder):
    model, _, collator = generative(folder)
    before = {name: weight.clone() for name, weight in model.lm.named_parameters() if "lora" not in name}
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    start = [weight.clone() for weight in learned]
    optimizer = torch.optim.AdamW(learned, 1e-2)
    model.train()
    losses = []
    for _ in range(5):
        loss = model(**collator(range(8)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, weight in model.lm.named_parameters():
        if "lora" not in name:
            assert torch.equal(weight, before[name]) and weight.grad is None
    moved = sum(not torch.equal(a, b) for a, b in zip(learned, start, strict=True))
    assert moved > len(learned) / 2
    assert not any("lm.model" in name and "lora" not in name for name in trainable(model))


def test_the_loss_counts_answer_and_end_alone(folder):
    model, _, collator = generative(folder)
    batch = collator(range(4))
    with torch.no_grad():
        _, pseudo = model.tokens_of(batch, None)
        prompts = Prompts(batch["prompt_ids"], batch["prompt_mask"])
        answer = torch.tensor([0, 3, 6, 12])
        found = model.loss(prompts, pseudo, answer)
        log_answers, _ = model.log_answers(prompts, pseudo)
    tokens = sum(len(model.answers.ids[a]) for a in answer)
    assert found.item() == pytest.approx(-log_answers.gather(1, answer[:, None]).sum().item() / tokens, abs=1e-3)


def test_repeated_tokens_are_alike_and_free_ones_are_not():
    torch.manual_seed(0)
    fused = torch.randn(2, 16)
    repeat, affine, free = (PseudoTokens(16, 8, 4, form, 0.1)(fused) for form in ("repeat", "affine", "free"))
    assert repeat.shape == affine.shape == free.shape == (2, 4, 8)
    assert all(torch.equal(repeat[:, 0], repeat[:, k]) for k in range(4))
    assert not torch.allclose(free[:, 0], free[:, 1])
    ratio = affine[:, 1] / affine[:, 0]
    assert torch.allclose(ratio, ratio[:1, :1].expand_as(ratio), atol=1e-3)


def test_what_was_learned_is_saved_and_read(folder, tmp_path):
    model, _, collator = generative(folder)
    save_trainable(model, tmp_path)
    other, _, _ = generative(folder)
    for weight in other.parameters():
        if weight.requires_grad:
            torch.nn.init.zeros_(weight)
    load_trainable(other, tmp_path)
    with torch.no_grad():
        batch = collator(range(3))
        assert torch.equal(model.predict(batch).logits, other.predict(batch).logits)
    with pytest.raises(InputError, match="another model"):
        load_trainable(value(folder, "experts")[0], tmp_path)


def test_answers_of_all_sets(folder):
    _, tokenizer = load_language_model(str(folder / "qwen2"), "float32", 0)
    texts, values = answer_texts(sentiment_set("sims"))
    assert texts[0] == "-1.0" and texts[10] == "+0.0" and len(texts) == 21 and values[10] == 0
    assert len(answer_texts(sentiment_set("mosei"), 0.25)[0][0]) == len("-3.00")
    tree = AnswerTree.build(*answer_texts(sentiment_set("cherma")), tokenizer)
    assert tree.read(tree.ids[2]) == 2 and tree.read([*tree.ids[2], 5, 6]) == 2 and tree.read([5]) == -1
    with pytest.raises(InputError, match="--grid"):
        answer_texts(sentiment_set("mosi"), 0.7)
    with pytest.raises(InputError, match="same tokens"):
        AnswerTree.build(["a", "a"], [0, 1], tokenizer)
    mean, median = expectation(torch.tensor([[0.1, 0.6, 0.3]]).log(), torch.tensor([-1.0, 0.0, 2.0]))
    assert mean.item() == pytest.approx(0.5) and median.item() == 0


def test_without_the_transcript_the_prompt_has_none(folder):
    model, data, collator = generative(folder, transcript=False)
    batch = collator(range(3))
    assert torch.equal(batch["prompt_ids"], batch["bare_ids"])
    assert model.players == ("text", "video", "audio") and data.dims["text"] == 16


@pytest.mark.parametrize("name", ["sims", "simsv2", "cherma"])
def test_chinese_sets_are_asked_in_chinese(folder, name):
    _, tokenizer = load_language_model(str(folder / "qwen2"), "float32", 0)
    ids = PromptWriter(tokenizer, sentiment_set(name).prompt, 2, transcript=True)("我今天很高兴。")
    prompt = tokenizer.decode([token for token in ids if token >= 0])
    assert ids.count(-1) == 2 and prompt.startswith("<多模态>我今天很高兴。</多模态>") and prompt.endswith("情感为")


def test_a_model_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm", "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(InputError, match="remote code") as caught:
        load_language_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_language_model_inside_a_qwen_omni(folder, tmp_path):
    build_tiny(tmp_path / "omni", ["The sentiment is +1.0 -0.5 good or bad"], hidden=64, layers=2)
    data = SentimentData(folder / "data")
    lm, tokenizer = load_language_model(str(tmp_path / "omni"), "float32", 4)
    answers = AnswerTree.build(*answer_texts(data.dataset, 0.5), tokenizer)
    pseudo = PseudoTokens(16, 64, 3, "repeat", embedding_rms(lm))
    model = GenerativeSentiment(lm, fusion_of(data, "experts"), pseudo, answers, True).eval()
    collator = Collator(data.splits["train"], data.dataset, PromptWriter(tokenizer, data.dataset.prompt, 3, True))
    with torch.no_grad():
        whole = model.predict(collator(range(4)))
        alone = torch.cat([model.predict(collator([i])).log_p for i in range(4)])
    assert torch.allclose(whole.log_p, alone, atol=1e-4)
    assert any("lora" in name for name in trainable(model))
