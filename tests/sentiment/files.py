"""MMSA-shaped content, planted: what the tests of the sentiment field write as pickles."""

import numpy as np
from scipy.special import ndtr

from migr.sentiment.sets import SETS

SHAPES = {"text": (12, 16), "vision": (30, 6), "audio": (25, 5)}


FAINT = 0.3  # how loud a modality contradicts the one that carries the score


def planted(
    counts=(40, 12, 16), seed=0, shapes=SHAPES, sims=False, noise=0.3, aligned=False, dominant=None, keep_known=False
):
    """Train, valid and test in MMSA's layout; scores in fifths of [-3, 3], or of [-1, 1] with SIMS's own labels.

    The score is the mean of two numbers; one is written into the frames of the text, one into those of the audio.
    `dominant`: the one modality that carries the score alone; "either": text or audio, drawn for each clip (a further
    column, `dominant`), and the other one contradicts it, fainter. `keep_known`: further columns, estimates of
    the score from the frames alone by someone who knows how they were drawn: `known`, a plain one, and `exact`, the
    posterior's median on the grid of the scores, than which none has a smaller MAE.
    """
    rng = np.random.default_rng(seed)
    bound = 1.0 if sims else 3.0
    directions = {name: rng.normal(size=dim) / np.sqrt(dim) for name, (_, dim) in shapes.items()}
    table = {}
    for split, count in zip(("train", "valid", "test"), counts, strict=True):
        parts = {name: rng.uniform(-bound, bound, count) for name in shapes}
        columns = {}
        if dominant == "either":
            spoken, truth = rng.random(count) < 0.5, parts["vision"].copy()
            parts["text"], parts["audio"] = (np.where(own, truth, -FAINT * truth) for own in (spoken, ~spoken))
            parts["vision"][:] = 0
            columns["dominant"] = np.where(spoken, "text", "audio")
        else:
            truth = (parts["text"] + parts["audio"]) / 2 if dominant is None else parts[dominant]
        score = np.clip(np.round((truth + noise * rng.normal(size=count) * bound / 3) * 5) / 5, -bound, bound)
        estimates, precisions = {}, {}
        for name, (length, dim) in shapes.items():
            longest = shapes["text"][0] if aligned else length
            own = rng.integers(max(2, longest // 2), longest + 1, count)
            frames = rng.normal(size=(count, longest, dim)) + parts[name][:, None, None] * 3 / bound * directions[name]
            for i, n in enumerate(own):
                frames[i, n:] = 0
            direction = directions[name] * 3 / bound
            precisions[name] = own * (direction @ direction)
            estimates[name] = (frames @ direction).sum(1) / precisions[name]
            columns[name] = frames.astype(np.float32 if name == "text" else np.float64)
            columns[f"{name}_lengths"] = own.tolist()
        if keep_known:
            parts = ("text", "audio") if dominant is None else (dominant,)
            # a uniform prior cut at ±bound, which barely matters: the plain estimate is kept within it
            columns["known"] = np.mean([np.clip(estimates[name], -bound, bound) for name in parts], 0)
            known = [(estimates[name], precisions[name]) for name in parts]
            columns["exact"] = posterior_median(known, bound, noise * bound / 3)
        mask = np.arange(shapes["text"][0]) < np.array(columns.pop("text_lengths"))[:, None]
        columns["text_bert"] = np.stack([mask * 7, mask, mask * 0], 1).astype(np.float32)
        if aligned:
            for name in ("vision", "audio"):
                del columns[f"{name}_lengths"]
                columns[name] *= mask[..., None]
        columns["id"] = [f"video{i // 4}$_${i % 4}" + split for i in range(count)]
        columns["raw_text"] = np.array([f"clip {i} says {'good' if s > 0 else 'bad'}" for i, s in enumerate(score)])
        columns["regression_labels"] = score.astype(np.float32)
        columns["annotations"] = np.array(["Positive" if s > 0 else "Negative" if s < 0 else "Neutral" for s in score])
        columns["classification_labels"] = (np.sign(score) + 1).astype(np.int64)
        if sims:
            for letter, name in (("T", "text"), ("V", "vision"), ("A", "audio")):
                columns[f"regression_labels_{letter}"] = np.round(parts[name] * 5) / 5
        table[split] = columns
    return table


def posterior_median(known, bound, noise, places=301):
    """Median (n,) of a score on the grid of fifths: the rounded mean of numbers, uniform in ±bound, plus normal noise.

    `known`: of each number a normal estimate (n,) and its precision (n,). By sums over grids of `places`.
    """
    values = np.linspace(-bound, bound, places)
    size = len(known) * (places - 1) + 1  # the grid of the sum
    spectrum = 1.0
    for estimate, precision in known:
        exponent = -0.5 * precision[:, None] * (estimate[:, None] - values) ** 2
        weights = np.exp(exponent - exponent.max(1, keepdims=True))
        spectrum = spectrum * np.fft.rfft(weights / weights.sum(1, keepdims=True), 2 * size)
    truth = np.fft.irfft(spectrum, 2 * size)[:, :size].clip(0)
    grid = np.round(np.arange(-round(bound * 5), round(bound * 5) + 1) / 5, 1)
    edges = (grid[1:] + grid[:-1]) / 2
    below = ndtr((edges - np.linspace(-bound, bound, size)[:, None]) / noise)
    return grid[(truth @ below < 0.5).sum(1)]


def tiny_lm(folder, family="qwen2", hidden=64, layers=2, seed=0):
    """A causal language model of about 0.2 M random weights with a BPE of the prompts, as a model folder."""
    import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

    import torch  # isort: skip
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<pad>", "<end>"], initial_alphabet=letters, show_progress=False
    )
    prompts = [dataset.prompt for dataset in SETS.values()]  # or they come out as many tokens as bytes
    tokenizer.train_from_iterator([text for p in prompts for text in (p.prefix, p.suffix, p.task)] * 3, trainer)
    count = tokenizer.get_vocab_size()
    marks = {"eos_token": "<end>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    config, kind = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
    torch.manual_seed(seed)
    model = kind(
        config(
            vocab_size=count,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
            initializer_range=0.2,  # else the frozen head cannot be sure of anything
        )
    )
    model.save_pretrained(folder)
    return folder
