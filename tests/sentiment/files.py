"""MMSA-shaped content, planted: what the tests of the sentiment field write as pickles."""

import numpy as np

SHAPES = {"text": (12, 16), "vision": (30, 6), "audio": (25, 5)}


def planted(counts=(40, 12, 16), seed=0, shapes=SHAPES, sims=False, noise=0.3, aligned=False, dominant=None):
    """Train, valid and test in MMSA's layout; scores in fifths of [-3, 3], or of [-1, 1] with SIMS's own labels.

    The score is the mean of two numbers; one is written into the frames of the text, one into those of the audio.
    `dominant`: the one modality that carries the score alone.
    """
    rng = np.random.default_rng(seed)
    bound = 1.0 if sims else 3.0
    directions = {name: rng.normal(size=dim) / np.sqrt(dim) for name, (_, dim) in shapes.items()}
    table = {}
    for split, count in zip(("train", "valid", "test"), counts, strict=True):
        parts = {name: rng.uniform(-bound, bound, count) for name in shapes}
        truth = (parts["text"] + parts["audio"]) / 2 if dominant is None else parts[dominant]
        score = np.clip(np.round((truth + noise * rng.normal(size=count) * bound / 3) * 5) / 5, -bound, bound)
        columns = {}
        for name, (length, dim) in shapes.items():
            longest = shapes["text"][0] if aligned else length
            own = rng.integers(max(2, longest // 2), longest + 1, count)
            frames = rng.normal(size=(count, longest, dim)) + parts[name][:, None, None] * 3 / bound * directions[name]
            for i, n in enumerate(own):
                frames[i, n:] = 0
            columns[name] = frames.astype(np.float32 if name == "text" else np.float64)
            columns[f"{name}_lengths"] = own.tolist()
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
