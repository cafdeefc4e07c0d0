"""The lexicon: counts cue words. The rewards' judge."""

import re
from collections.abc import Iterator, Sequence

from migr.judge.base import LONGEST, Judgement
from migr.text.labels import LabelSet
from migr.text.sentences import split

# Cue words by emotion (in DFEW's words). Ours, for descriptions of faces and voices; they cover the planted benchmark's
# train wording, so that a gold target scores 1, and not its test wording (hence no "sags", "shouted", "wrinkles", …).
CUE_WORDS = {
    "happy": """
        smile smiles smiling grin grinning laugh laughs laughing crinkled sparkling twinkling relaxed loose upturned
        bright lilting singing lively warm warmly bouncing bouncy skipping
        smiled grins grinned laughed laughter giggle giggles giggling chuckle chuckles chuckling beams beaming""",
    "sad": """
        slanting drooping droop downcast downturned sagging tearful tears weeping sobbing falling sinking weak faded
        fading dragging slow slowly pauses
        weep weeps wept sob sobs sobbed droops drooped whimpers whimpering""",
    "neutral": """
        level resting steady straight still flat even plain ordinary moderate regular measured expressionless""",
    "angry": """
        lowered frown frowning glare glaring stare clenched pressed tight harsh rough growl growling shout shouting
        booming hammering stabbing
        frowns frowned glares glared growls shouts yells yelled yelling scowl scowls scowling snarls""",
    "surprise": """
        arched shot wide round dropped agape sudden jump leap leaping swelling surges gasp gasps
        gasped jumped leaps gapes gaping""",
    "disgust": """
        uneven dipped squint squinting narrowed curled wrinkled creaky nasal grumbling muttered drawl drawling
        sneer sneering
        sneers squints grimace grimaces grimacing gags gagging retches retching""",
    "fear": """
        tense pinched darting whites quivering stretched trembling trembles shaking hushed breathy panting hurried
        stammer stammering
        tremble trembled quivers quivered stammers stammered cowers cowering shivers shivering""",
}
HEDGES = frozenset({"perhaps", "maybe", "possibly", "might", "may", "unclear", "faint", "faintly", "barely", "seems"})
NEGATIONS = frozenset({"no", "not", "without", "never", "nor", "isn't", "doesn't", "hardly"})
NAMED = 3.0  # a word that names an emotion outright weighs as much as three cues
_WORD = re.compile(r"[a-z']+")


def clauses(text: str) -> Iterator[tuple[str, list[str], bool]]:
    """Each sentence, or part of one up to a semicolon, in lower case: the text, its words, and whether it hedges."""
    for sentence in split(text):
        for clause in sentence.casefold().split(";"):
            words = _WORD.findall(clause)
            yield clause.strip(" .!?…"), words, not HEDGES.isdisjoint(words)


class LexiconJudge:
    """Counts cue words. Clauses that hedge ("perhaps") count only if no plain one holds a cue.

    A cue within three words after a negation is skipped, and one said again does not count again: a policy would learn
    to repeat it. The probability of an emotion is its share of the cues; a text without any cue, or with a tie at the
    top, is a failure. Ours.
    """

    name = "lexicon"
    fast = english = True

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels
        self.weights: dict[str, tuple[str, float]] = {}
        for family, words in CUE_WORDS.items():
            label = labels.canonical(family)
            if label is not None:
                self.weights.update(dict.fromkeys(words.split(), (label, 1.0)))
        cued = {label for label, _ in self.weights.values()}
        self.blind = tuple(label for label in labels.labels if label not in cued)  # it knows their names alone
        for word, label in [*labels.synonyms.items(), *((label, label) for label in labels.labels)]:
            self.weights.setdefault(word, (label, NAMED))

    def _cues(self, text: str) -> list[str]:
        """The cue words that count, each once, in the order of the text."""
        plain: dict[str, None] = {}
        hedged: dict[str, None] = {}
        for _, words, hedges in clauses(text[:LONGEST]):
            cues = hedged if hedges else plain
            for i, word in enumerate(words):
                if word in self.weights and NEGATIONS.isdisjoint(words[max(0, i - 3) : i]):
                    cues[word] = None
        return list(plain or hedged)

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text; time is linear in the text."""
        judgements = []
        for text in texts:
            cues = self._cues(text)
            counts: dict[str, float] = {}
            for label, weight in map(self.weights.__getitem__, cues):
                counts[label] = counts.get(label, 0.0) + weight
            total = sum(counts.values())
            shares = {label: counts[label] / total for label in self.labels.labels if label in counts}
            best = [label for label, share in shares.items() if share == max(shares.values())]
            if len(best) == 1:
                own = tuple(cue for cue in cues if self.weights[cue][0] == best[0])
                judgements.append(Judgement(best[0], shares, evidence=own))
            else:
                judgements.append(Judgement(None, shares, "no cue" if not best else "tie"))
        return judgements
