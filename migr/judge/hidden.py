"""Hide the words that name an emotion, so that a judge must go by the evidence that a reasoning gives.

A reasoning that says "so she is sad" is consistent with the answer "sad" whatever it observed before. The figures with
and without these words show how much of the consistency is such a statement. Ours.
"""

import re
from collections.abc import Sequence

from migr.judge.base import Around, Judge, Judgement
from migr.text.labels import LabelSet, label_set

HIDDEN = "…"
# Stems of English words that name one of DFEW's or MAFW's emotions, with the endings that keep the meaning. What a face
# or a voice does (smile, tears, shout) is evidence and stays.
_STEMS = r"""
    (?:un)?happ(?:y|ier|iest|ily|iness) (?:over|en)?joy\w* cheer(?:ful|fully|fulness|y) delight\w* glad\w* elat\w*
    amus\w* excite\w* content(?:ed|edly|ment) pleas(?:ed|ure) mirth\w* merr(?:y|ily|iment) euphori\w* gleeful\w* glee
    sad sadder saddest sadly sadness sadden\w* sorrow\w* grief griev\w* melanchol\w* heartbroken heartbreak\w*
    miser(?:y|able|ably) depress\w* despair\w* gloom\w* dejected\w* mourn\w* neutral\w* calm\w* emotionless
    ang(?:er\w*|ry|rier|riest|rily) fur(?:y|ious|iously) rag(?:e|es|ed|ing) enrag\w* outrag\w* wrath\w* irritat\w*
    annoy\w* irate mad madly resent\w* hostil\w* indignant\w* indignation
    surpris\w* astonish\w* amaz\w* startl\w* astound\w* shock\w* stunned stunning taken\saback
    disgust\w* repuls\w* revuls\w* revolt(?:ed|ing) loath\w* repell\w* repel repels nausea\w* aversion
    fear\w* afraid scar(?:e|es|ed|y|ing) fright\w* terrif\w* terror\w* panic\w* dread\w* horrif\w* horror\w*
    contempt\w* scorn\w* disdain\w* anxi(?:ous|ously|ety|eties) worr(?:y|ied|ies|ying|iedly) nervous\w* uneas\w*
    helpless\w* disappoint\w* livid seeth\w* infuriat\w* exasperat\w* frustrat\w* upset\w* distress\w* ecsta\w*
    jubilant\w* thrill(?:ed|ing) woeful\w* appall\w* aghast disgruntled"""


class HidingJudge(Around):
    """Another judge that sees `…` in place of the words that name an emotion, the label set's own words among them."""

    def __init__(self, judge: Judge, labels: LabelSet) -> None:
        self.inner, self.name = judge, f"{judge.name}, emotion words hidden"
        sets = (labels, label_set("dfew"), label_set("mafw"))
        names = {word for known in sets for word in (*known.labels, *known.synonyms)}
        own = sorted(map(re.escape, names), key=len, reverse=True)
        spaced = "|".join([*_STEMS.split(), *(word for word in own if word.isascii())])
        unspaced = "|".join(word for word in own if not word.isascii())  # Chinese has no spaces around words
        self.words = re.compile(rf"\b(?:{spaced})\b|{unspaced}", re.IGNORECASE)

    def hide(self, text: str) -> str:
        """The text that the other judge reads."""
        return self.words.sub(HIDDEN, text)

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text."""
        return self.inner.judge([self.hide(text) for text in texts])
