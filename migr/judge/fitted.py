"""The fitted classifier: TF-IDF and logistic regression. `stages/demo/judge.py` fits the demo's."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from migr.errors import InputError, as_input_error
from migr.files.records import atomic_path, digest, read_object, write_json
from migr.judge.base import LONGEST, Judgement
from migr.judge.lexicon import clauses
from migr.text.labels import LabelSet

_SHOWN = 4  # words of evidence


class ClassifierJudge:
    """TF-IDF over character n-grams, then logistic regression (scikit-learn), fitted on labelled texts.

    N-grams of a sentence that hedges ("perhaps") are features of their own, so that the fit can learn how little they
    weigh beside plain ones: without that, one hedged cue outvotes two plain ones (docs/results.md has figures).
    Stored as `judge.json` and `judge.safetensors`: numbers and words, no pickle. An empty text is a failure.
    """

    fast = True

    def __init__(self, labels: LabelSet, vocabulary: list[str], arrays: dict[str, np.ndarray], name: str) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self.labels, self.name = labels, name
        self.places = {gram: place for place, gram in enumerate(vocabulary)}
        self.vectorizer = TfidfVectorizer(vocabulary=vocabulary, **_TFIDF)
        self.vectorizer.idf_ = arrays["idf"]
        self.model = LogisticRegression()
        self.model.classes_ = np.arange(len(labels.labels))
        coef = self.model.coef_ = arrays["coef"]
        self.model.intercept_ = arrays["intercept"]
        self.margins = coef - coef.mean(0) if len(coef) > 1 else np.vstack([-coef, coef])  # (labels, n-grams)

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text."""
        if not texts:
            return []
        texts = [text[:LONGEST] for text in texts]
        values = self.vectorizer.transform(texts)
        judgements = []
        for i, (text, row) in enumerate(zip(texts, self.model.predict_proba(values), strict=True)):
            probabilities = {label: float(p) for label, p in zip(self.labels.labels, row, strict=True)}
            if text.strip():
                best = int(row.argmax())
                evidence = self._evidence(text, dict(zip(values[i].indices, values[i].data, strict=True)), best)
                judgements.append(Judgement(self.labels.labels[best], probabilities, evidence=evidence))
            else:
                judgements.append(Judgement(None, {}, "empty"))
        return judgements

    def _evidence(self, text: str, values: dict[int, float], label: int) -> tuple[str, ...]:
        """The words with the largest shares in a label's logit beyond the mean one, in the order of the text.

        What an n-gram adds to the logit is shared equally among the places where it stands; `values` has the n-grams'
        TF-IDF, by their place in the vocabulary.
        """
        words = [(word, [self.places.get(gram, -1) for gram in grams]) for word, grams in _words(text)]
        counts = Counter(place for _, places in words for place in places)
        shares: dict[str, float] = {}
        for word, places in words:
            bare = word.strip("\"'“”‘’()[],:;.!?…")
            share = sum(values[p] * self.margins[label, p] / counts[p] for p in places if p in values)
            shares[bare] = shares.get(bare, 0.0) + share
        most = {word for word in sorted(shares, key=lambda word: -shares[word])[:_SHOWN] if shares[word] > 0}
        return tuple(word for word in shares if word in most)


FEATURES = 2  # of `_ngrams`; a judge of another version would read other features than it was fitted on


def _words(text: str) -> Iterator[tuple[str, list[str]]]:
    """The words of a text, each with its n-grams of 3 to 5 characters; those of hedging sentences are marked."""
    for clause, _, hedges in clauses(text):
        mark = "?" if hedges else ""
        for word in clause.split():
            padded = f" {word} "
            yield word, [mark + padded[i : i + n] for n in (3, 4, 5) for i in range(max(1, len(padded) - n + 1))]


def _ngrams(text: str) -> list[str]:
    return [gram for _, grams in _words(text) for gram in grams]


_TFIDF = {"analyzer": _ngrams, "sublinear_tf": True}


def fit_classifier(texts: Sequence[str], emotions: Sequence[str], labels: LabelSet, out: str | Path) -> ClassifierJudge:
    """Fit a classifier judge on labelled texts and save it to the folder `out`.

    Raises:
        InputError: A label of the set has no text.
    """
    from safetensors.numpy import save_file
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    if missing := sorted(set(labels.labels) - set(emotions)):
        raise InputError(f"no text to fit the judge on for {', '.join(missing)}")
    vectorizer = TfidfVectorizer(max_features=30_000, **_TFIDF)
    model = LogisticRegression(C=10.0, max_iter=1000)
    model.fit(vectorizer.fit_transform(texts), [labels.index(emotion) for emotion in emotions])
    arrays = {"idf": vectorizer.idf_, "coef": model.coef_, "intercept": model.intercept_}
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = vectorizer.get_feature_names_out().tolist()
    name = f"classifier-{digest(vocabulary, [a.tobytes().hex() for a in arrays.values()])[:8]}"
    with atomic_path(out / "judge.safetensors") as partial:
        save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, partial)
    about = {"name": name, "features": FEATURES, "labels": list(labels.labels), "vocabulary": vocabulary}
    write_json(out / "judge.json", about)
    return ClassifierJudge(labels, vocabulary, arrays, name)


def open_fitted(folder: Path, labels: LabelSet) -> ClassifierJudge:
    """Open a classifier that `fit_classifier` saved.

    Raises:
        InputError: It was fitted for other labels, or reads text as an older version did.
    """
    from safetensors.numpy import load_file

    saved = read_object(folder / "judge.json", labels=list, vocabulary=list, name=str)
    if saved.get("features") != FEATURES:
        raise InputError(f"{folder}: the judge was fitted by an older version; fit it again with stages/demo/judge.py")
    if tuple(saved["labels"]) != labels.labels:
        raise InputError(f"{folder}: the judge was fitted for {saved['labels']}, not for {list(labels.labels)}")
    with as_input_error(f"judge {folder}: judge.safetensors cannot be used"):
        arrays = load_file(folder / "judge.safetensors")
        words, many = saved["vocabulary"], len(labels.labels)
        shapes = {"idf": (len(words),), "coef": (many if many > 2 else 1, len(words))}
        if (
            any(arrays[key].shape != shape for key, shape in shapes.items())
            or len(arrays["intercept"]) != shapes["coef"][0]
        ):
            raise ValueError("its sizes are not those of judge.json")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("its weights are not finite numbers")
        if not all(isinstance(word, str) for word in words) or len(set(words)) < len(words):
            raise ValueError("a word of its vocabulary stands there twice")
        return ClassifierJudge(labels, words, arrays, saved["name"])
