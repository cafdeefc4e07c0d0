"""Judges: they read a reasoning alone, never the answer or the clip, and name the emotion that it conveys.

Two judges are embedded, and they know nothing of each other: a lexicon (the reward's) and a text classifier fitted on
labelled texts (the evaluation's). A judge that cannot tell says so: failure is a status, never a label.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from migr.emotions import LabelSet
from migr.errors import InputError
from migr.records import digest, read_json, write_json

LONGEST = 20_000  # characters of a reasoning that a judge reads; the rest of a runaway text is ignored


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one text: `emotion` is None unless `status` is "ok"."""

    emotion: str | None
    probabilities: dict[str, float]
    status: str = "ok"


class Judge(Protocol):
    """Anything with a name that judges texts."""

    name: str

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text, in order."""
        ...


# Cue words by emotion (in DFEW's words). Ours, for descriptions of faces and voices; they cover the planted benchmark's
# train wording, so that a gold target scores 1, and not its test wording.
CUE_WORDS = {
    "happy": """
        smile smiles smiling grin grinning laugh laughs laughing crinkled sparkling twinkling relaxed loose upturned
        bright lilting singing lively warm warmly bouncing bouncy skipping""",
    "sad": """
        slanting drooping droop downcast downturned sagging tearful tears weeping sobbing falling sinking weak faded
        fading dragging slow slowly pauses""",
    "neutral": """
        level resting steady straight still flat even plain ordinary moderate regular measured expressionless""",
    "angry": """
        lowered frown frowning glare glaring stare clenched pressed tight harsh rough growl growling shout shouting
        booming hammering stabbing""",
    "surprise": """
        arched shot wide round dropped agape sudden jump leap leaping swelling surges gasp gasps""",
    "disgust": """
        uneven dipped squint squinting narrowed curled wrinkled creaky nasal grumbling muttered drawl drawling
        sneer sneering""",
    "fear": """
        tense pinched darting whites quivering stretched trembling trembles shaking hushed breathy panting hurried
        stammer stammering""",
}
HEDGES = frozenset({"perhaps", "maybe", "possibly", "might", "may", "unclear", "faint", "faintly", "barely", "seems"})
NEGATIONS = frozenset({"no", "not", "without", "never", "nor", "isn't", "doesn't", "hardly"})
NAMED = 3.0  # a word that names an emotion outright weighs as much as three cues
_WORD, _SENTENCE = re.compile(r"[a-z']+"), re.compile(r"[.!?;\n]+")


class LexiconJudge:
    """Counts cue words. Sentences that hedge ("perhaps") count only if no plain sentence holds a cue.

    A cue within three words after a negation is skipped. The probability of an emotion is its share of the cues; a
    text without any cue, or with a tie at the top, is a failure. Ours.
    """

    name = "lexicon"

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels
        self.weights: dict[str, tuple[str, float]] = {}
        for family, words in CUE_WORDS.items():
            label = labels.canonical(family)
            if label is not None:
                self.weights.update(dict.fromkeys(words.split(), (label, 1.0)))
        for word, label in [*labels.synonyms.items(), *((label, label) for label in labels.labels)]:
            self.weights.setdefault(word, (label, NAMED))

    def _count(self, text: str) -> dict[str, float]:
        plain: dict[str, float] = {}
        hedged: dict[str, float] = {}
        for sentence in _SENTENCE.split(text[:LONGEST].casefold()):
            words = _WORD.findall(sentence)
            counts = plain if HEDGES.isdisjoint(words) else hedged
            for i, word in enumerate(words):
                if word in self.weights and NEGATIONS.isdisjoint(words[max(0, i - 3) : i]):
                    label, weight = self.weights[word]
                    counts[label] = counts.get(label, 0.0) + weight
        return plain or hedged

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text; time is linear in the text."""
        judgements = []
        for text in texts:
            counts = self._count(text)
            total = sum(counts.values())
            shares = {label: counts[label] / total for label in self.labels.labels if label in counts}
            best = [label for label, share in shares.items() if share == max(shares.values())]
            if len(best) == 1:
                judgements.append(Judgement(best[0], shares))
            else:
                judgements.append(Judgement(None, shares, "no cue" if not best else "tie"))
        return judgements


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


def open_judge(name: str | Path, labels: LabelSet) -> Judge:
    """Open the judge `lexicon`, or the fitted classifier in a folder.

    Raises:
        InputError: No such judge, or a classifier that was fitted for other labels.
    """
    if str(name) == "lexicon":
        return LexiconJudge(labels)
    folder = Path(name)
    if not (folder / "judge.json").is_file():
        raise InputError(f"judge {str(name)!r}: neither 'lexicon' nor a folder with a fitted judge (judge.json)")
    from safetensors.numpy import load_file

    saved = read_json(folder / "judge.json")
    if tuple(saved["labels"]) != labels.labels:
        raise InputError(f"{folder}: the judge was fitted for {saved['labels']}, not for {list(labels.labels)}")
    return ClassifierJudge(labels, saved["vocabulary"], load_file(folder / "judge.safetensors"), saved["name"])
