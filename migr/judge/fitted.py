"""The fitted classifier: TF-IDF and logistic regression. The demo's judge for the evaluation (`stages/judge.py`)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from migr.emotions import LabelSet
from migr.errors import InputError
from migr.judge.base import LONGEST, Judgement
from migr.records import digest, read_json, write_json


class ClassifierJudge:
    """TF-IDF over words and character n-grams, then logistic regression (scikit-learn), fitted on labelled texts.

    Stored as `judge.json` and `judge.safetensors`: numbers and words, no pickle. An empty text is a failure.
    """

    def __init__(self, labels: LabelSet, vocabulary: list[str], arrays: dict[str, np.ndarray], name: str) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self.labels, self.name = labels, name
        self.vectorizer = TfidfVectorizer(vocabulary=vocabulary, **_TFIDF)
        self.vectorizer.idf_ = arrays["idf"]
        self.model = LogisticRegression()
        self.model.classes_ = np.arange(len(labels.labels))
        self.model.coef_, self.model.intercept_ = arrays["coef"], arrays["intercept"]

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text."""
        if not texts:
            return []
        chances = self.model.predict_proba(self.vectorizer.transform([text[:LONGEST] for text in texts]))
        judgements = []
        for text, row in zip(texts, chances, strict=True):
            probabilities = {label: float(p) for label, p in zip(self.labels.labels, row, strict=True)}
            if text.strip():
                judgements.append(Judgement(self.labels.labels[int(row.argmax())], probabilities))
            else:
                judgements.append(Judgement(None, {}, "empty"))
        return judgements


_TFIDF = {"analyzer": "char_wb", "ngram_range": (3, 5), "sublinear_tf": True}


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
    vectorizer = TfidfVectorizer(max_features=20_000, **_TFIDF)
    model = LogisticRegression(C=10.0, max_iter=1000)
    model.fit(vectorizer.fit_transform(texts), [labels.index(emotion) for emotion in emotions])
    arrays = {"idf": vectorizer.idf_, "coef": model.coef_, "intercept": model.intercept_}
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = vectorizer.get_feature_names_out().tolist()
    name = f"classifier-{digest(vocabulary, [a.tobytes().hex() for a in arrays.values()])[:8]}"
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, out / "judge.safetensors")
    write_json(out / "judge.json", {"name": name, "labels": list(labels.labels), "vocabulary": vocabulary})
    return ClassifierJudge(labels, vocabulary, arrays, name)


def open_fitted(folder: Path, labels: LabelSet) -> ClassifierJudge:
    """Open a classifier that `fit_classifier` saved.

    Raises:
        InputError: It was fitted for other labels.
    """
    from safetensors.numpy import load_file

    saved = read_json(folder / "judge.json")
    if tuple(saved["labels"]) != labels.labels:
        raise InputError(f"{folder}: the judge was fitted for {saved['labels']}, not for {list(labels.labels)}")
    return ClassifierJudge(labels, saved["vocabulary"], load_file(folder / "judge.safetensors"), saved["name"])
