"""The text format `<think><audio>…</audio><video>…</video> conclusion</think><answer>angry</answer>`: read and written.

`parse` is the one reading: targets, rewards, evaluation, page and evidence take a response apart with it and nothing
else, so that what is paid and what is counted cannot drift apart. It only searches and splits: time is linear in the
text, and no string makes it raise. No other module spells a tag.

    >>> response = parse("<think><audio>A harsh voice.</audio>So he is cross.</think><answer>angry</answer>")
    >>> response.answer, response.plain, response.order, response.error
    ('angry', 'A harsh voice. So he is cross.', ('audio',), None)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from migr.errors import InputError
from migr.text.labels import LabelSet
from migr.text.sentences import locate, modalities_of, split

MODALITIES = ("video", "audio", "text")
LONGEST = 20_000  # characters: a longer response has an error, and of a longer reasoning the rest is not read
_TAGS = tuple(f"<{slash}{name}>" for name in ("think", "answer", *MODALITIES) for slash in ("", "/"))
_TAG = re.compile("|".join(_TAGS))
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_LONGEST_LABEL = 6  # words: what stands where an answer is looked for, and is longer, is prose


@dataclass(frozen=True)
class Reasoning:
    """What stands in `<think>`: segments (modality, text) in the order in which they come, and the untagged rest."""

    segments: tuple[tuple[str, str], ...]
    conclusion: str

    @property
    def order(self) -> tuple[str, ...]:
        """The modalities in the order of their first segments."""
        return tuple(dict.fromkeys(modality for modality, _ in self.segments))


@dataclass(frozen=True)
class Part:
    """A stretch of a reasoning: a tagged segment, or a sentence outside the tags.

    Attributes:
        modalities: What it gives evidence from: the tag's modality; of a sentence what `modalities_of` says, () where
            it only infers or concludes.
        text: Its text, without tags and answers; of a sentence with white space made single.
        start, end: Where it stands in the response: `response.text[start:end]`.
        tagged: Whether it is a segment.
    """

    modalities: tuple[str, ...]
    text: str
    start: int
    end: int
    tagged: bool


class _Tagged(NamedTuple):
    """A tagged segment: where its tag opens, its text begins and ends, and its closing tag ends."""

    name: str
    opens: int
    start: int
    end: int
    closes: int


@dataclass(frozen=True)
class Response:
    """A model's response, taken apart.

    Attributes:
        text: The response as it came.
        think: The thoughts: between the first <think> and the </think> behind it; up to the answer or the end where
            they are not closed; from the beginning where the prompt has opened them; around the answer block where
            there is no <think> at all. None if there are none.
        answers: The raw text of each answer block; one that is not closed goes on to the end of its line. Where there
            is no block: what stands behind </think>, or the whole response if it has no thoughts, if that is short.
        reasoning: The thoughts as segments and the untagged rest, without an answer that stands among them.
        error: What is not exactly as the format wants it, None if nothing: the strict view (`reward.format`, targets).
        offset: Where the thoughts begin in the text.
    """

    text: str
    think: str | None
    answers: tuple[str, ...]
    reasoning: Reasoning | None
    error: str | None
    offset: int

    @property
    def answer(self) -> str | None:
        """The raw text of the answer; None if there is none, or several that differ."""
        return self.answers[0] if len({answer.casefold() for answer in self.answers}) == 1 else None

    def label(self, labels: LabelSet) -> str | None:
        """The one known label that the response answers, or None: two answers must name the same."""
        named = {labels.canonical(answer) for answer in self.answers}
        return named.pop() if len(named) == 1 else None

    @property
    def hides_answer(self) -> bool:
        """Whether an answer block begins inside the thoughts, where only evidence belongs."""
        return self.think is not None and "<answer>" in self.think

    @cached_property
    def plain(self) -> str:
        """The reasoning as every judge reads it: running text without tags and answers; "" if there is none."""
        return " ".join(_blank_tags(_blank_answers(self.think or "")).split())[:LONGEST]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The reasoning's segments and its untagged sentences, in the order in which they stand."""
        if self.think is None:
            return ()
        think, offset = _blank_answers(self.think), self.offset
        parts: list[Part] = []
        position = 0
        for tagged in _tagged(think)[0]:
            parts += _sentences(think, position, tagged.opens, offset)
            text = think[tagged.start : tagged.end]
            if text:
                parts.append(Part((tagged.name,), text, offset + tagged.start, offset + tagged.end, True))
            position = tagged.closes
        parts += _sentences(think, position, len(think), offset)
        return tuple(parts)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The modalities in the order in which the reasoning comes to them.

        They are the tagged segments. Where there are none (other systems' output) each sentence counts for the
        modalities that it gives evidence from, or for none.
        """
        if self.reasoning is not None and self.reasoning.segments:
            return self.reasoning.order
        return tuple(dict.fromkeys(modality for part in self.parts for modality in part.modalities))


def parse(text: str) -> Response:
    """Take a response apart, leniently: what is not exactly right is in `error`. Never raises.

    Args:
        text: Any string. Time is linear in its length.

    Returns:
        The response's parts. Free text without modality tags has no segments, and all of it is the conclusion.
    """
    start, end = _thoughts(text)
    think = text[start:end].strip()
    reasoning, error = _reasoning(_blank_answers(think)) if think else (None, None)
    offset = text.index(think, start) if think else start
    return Response(text, think or None, _answers(text, end), reasoning, _error(text) or error, offset)


def _thoughts(text: str) -> tuple[int, int]:
    """Where the thoughts begin and end in a response; (0, 0) if there are none."""
    opens, closes = text.find("<think>"), text.find("</think>")
    if opens >= 0:
        start = opens + len("<think>")
        ends = (text.find(tag, start) for tag in ("</think>", "<answer>"))
        return start, next((end for end in ends if end >= 0), len(text))
    if closes >= 0:  # the prompt opened them
        return 0, closes
    block = _ANSWER.search(text)
    if block is None:
        return 0, 0
    return (0, block.start()) if text[: block.start()].strip() else (block.end(), len(text))


def _answers(text: str, think_end: int) -> tuple[str, ...]:
    answers = []
    for match in _ANSWER.finditer(text):
        answer = match[1].strip()
        if not match[0].endswith("</answer>"):  # not closed: what follows the first line is something else
            answer = _TAG.split(answer.partition("\n")[0])[0].strip()
        if answer:
            answers.append(answer)
    if not answers and "<answer>" not in text:
        rest = text[think_end:].removeprefix("</think>").strip()
        is_label = len(rest) < LONGEST and 0 < len(rest.split()) <= _LONGEST_LABEL and not _TAG.search(rest)
        answers = [rest] if is_label else []
    return tuple(answers)


def _error(text: str) -> str | None:
    """What is wrong with the think and answer blocks, if anything; their inside is judged elsewhere."""
    counts = {tag: text.count(tag) for tag in _TAGS[:4]}
    if len(text) > LONGEST:
        return f"longer than {LONGEST:,} characters"
    if wrong := [tag for tag, count in counts.items() if count != 1]:
        return f"{wrong[0]} stands {counts[wrong[0]]} times, not once"
    body = text.strip()
    before, think, rest = body.partition("<think>")
    think, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    answer, _, after = rest.partition("</answer>")
    if not think.strip() or not answer.strip():
        return "the think or the answer block is empty or out of order"
    if before or between.strip() or after:
        return "text stands outside the think and the answer block, or they are out of order"
    return "a tag stands inside the answer" if _TAG.search(answer) else None


def _blank_answers(think: str) -> str:
    """The thoughts with blanks in place of answer blocks: an answer among them must not reach a judge."""
    return _ANSWER.sub(lambda match: " " * len(match.group()), think)


def _blank_tags(text: str) -> str:
    return _TAG.sub(lambda match: " " * len(match.group()), text)


def _sentences(think: str, start: int, end: int, offset: int) -> Iterator[Part]:
    """The sentences of an untagged stretch of the thoughts, as parts."""
    readable = max(start, min(end, LONGEST))
    text = _blank_tags(think[start:readable])
    sentences = split(text)
    for sentence, (first, last) in zip(sentences, locate(text, sentences), strict=True):
        first, last = start + first, start + last
        yield Part(modalities_of(sentence), sentence, offset + first, offset + last, False)
    if readable < end:  # what is not read is of no modality
        yield Part((), think[readable:end], offset + readable, offset + end, False)


def _tagged(think: str) -> tuple[list[_Tagged], str | None]:
    """The tagged segments, empty ones too, and what is wrong with the tags, if anything."""
    segments: list[_Tagged] = []
    names: set[str] = set()
    error = None
    position = 0
    # The next opening of each tag: searched again only once it is behind us, which keeps the whole scan linear.
    openings = {name: think.find(f"<{name}>") for name in MODALITIES}
    while True:
        for name, place in openings.items():
            if 0 <= place < position:
                openings[name] = think.find(f"<{name}>", position)
        ahead = [(place, name) for name, place in openings.items() if place >= 0]
        if not ahead:
            return segments, error
        opens, name = min(ahead)
        start = opens + len(name) + 2
        end = think.find(f"</{name}>", start)
        if end < 0:
            return segments, f"<{name}> is not closed"
        text = think[start:end].strip()
        if _TAG.search(text):
            return segments, f"a tag stands inside <{name}>"
        if not text:
            error = f"<{name}> is empty"
        elif name in names:
            error = f"<{name}> comes twice"
        names.add(name)
        position = end + len(name) + 3
        start = think.index(text, start) if text else start
        segments.append(_Tagged(name, opens, start, start + len(text), position))


def _reasoning(think: str) -> tuple[Reasoning, str | None]:
    """The thoughts as segments and conclusion; the second value says what is wrong with their tags, if anything."""
    tagged, error = _tagged(think)
    bounds = [0, *(bound for segment in tagged for bound in (segment.opens, segment.closes)), len(think)]
    rest = (think[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True))
    conclusion = " ".join(" ".join(rest).split())
    if error is None and _TAG.search(conclusion):
        error = "a modality tag is closed but not opened"
    segments = ((segment.name, think[segment.start : segment.end]) for segment in tagged)
    return Reasoning(tuple((name, text) for name, text in segments if text), conclusion), error


def tags(name: str) -> tuple[str, str]:
    """The opening and the closing tag of "think", "answer" or a modality."""
    return f"<{name}>", f"</{name}>"


def block(name: str, text: str = "") -> str:
    """A text between its tags: `block("answer", "angry")` is `<answer>angry</answer>`."""
    return text.join(tags(name))


def until_answer(think: str) -> str:
    """The beginning of a response up to where the answer is to be named."""
    return block("think", think) + tags("answer")[0]


def render(segments: Mapping[str, str], conclusion: str, answer: str, order: Sequence[str]) -> str:
    """Write the target text with the segments in the given order, the conclusion last.

    Raises:
        InputError: A segment is missing from the order or the other way round, or what was written cannot be read
            back by `parse` (tags inside a segment, an empty one, …).
    """
    if sorted(order) != sorted(segments):
        raise InputError(f"the order {list(order)} does not name the segments {list(segments)} once each")
    think = "".join(block(name, segments[name].strip()) for name in order) + conclusion.strip()
    target = block("think", think) + block("answer", answer)
    response = parse(target)
    written = tuple((name, segments[name].strip()) for name in order), answer.strip()
    if response.error or response.reasoning is None or (response.reasoning.segments, response.answer) != written:
        fault = response.error or "its parts differ from what was written"
        raise InputError(f"the target cannot be read back: {fault}")
    return target
