"""Say it when responses are in another language than a reward, or its judge, reads."""

from collections.abc import Sequence
from typing import Any

from migr.judge import Judge, reads_english_alone
from migr.text.format import parse
from migr.text.language import share_of_others
from reward.score import text_of

ENOUGH = 16  # responses with words in them
MOST_FOREIGN = 0.2  # share of them: an untrained policy also writes what is in no language


def english_readers(names: Sequence[str], judge: Judge, hide_emotion_words: bool) -> list[str]:
    """What of these rewards reads English alone."""
    readers = ["the reward grounding"] if "grounding" in names else []
    if "consistency" in names:
        readers += [f"judge {judge.name.partition(',')[0]}"] if reads_english_alone(judge) else []
        readers += ["hide_emotion_words"] if hide_emotion_words else []
    return readers


class LanguageNote:
    """A reward that prints one line if its first responses are in a language that `readers` do not read."""

    def __init__(self, reward: Any, readers: Sequence[str]) -> None:
        self.reward, self.readers = reward, readers
        self._texts: list[str] | None = []  # None once it is decided

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        """The other reward's values; `completions` and `columns` as for `reward.Reward`."""
        if self._texts is not None:
            plain = (parse(text_of(completion)).plain for completion in completions)
            self._texts += [text for text in plain if any(map(str.isalpha, text))]
            if len(self._texts) >= ENOUGH:
                self._decide(self._texts)
        values: list[float | None] = self.reward(completions=completions, **columns)
        return values

    def _decide(self, texts: list[str]) -> None:
        if (share := share_of_others(texts)) > MOST_FOREIGN:
            print(
                f"note: {100 * share:.0f} % of the first {len(texts)} sampled reasonings are not in English, the one "
                f"language that {', '.join(self.readers)} can read (docs/rewards.md: Language)"
            )
        self._texts = None
