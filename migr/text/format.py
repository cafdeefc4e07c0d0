"""The text format `<think><audio>…</audio><video>…</video> conclusion</think><answer>angry</answer>`: read and written.

One parser serves targets, rewards and evaluation, so that they cannot drift apart. It only uses `str.find` and
`str.split`: time is linear in the text, and no string makes it raise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from migr.errors import InputError

MODALITIES = ("video", "audio", "text")
_TAGS = tuple(f"<{slash}{name}>" for name in ("think", "answer", *MODALITIES) for slash in ("", "/"))


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
class Response:
    """A model's response, taken apart. `error` is None only if the format is exactly right."""

    think: str | None  # the text between the first <think> and the </think> behind it
    answer: str | None  # the raw text of the only answer block
    reasoning: Reasoning | None
    error: str | None


def _between(text: str, name: str) -> str | None:
    start = text.find(f"<{name}>")
    if start < 0:
        return None
    start += len(name) + 2
    end = text.find(f"</{name}>", start)
    return None if end < 0 else text[start:end].strip()


def _segments(think: str) -> tuple[Reasoning, str | None]:
    """Split the think text at its modality tags; the second value says what is wrong with them, if anything."""
    segments: list[tuple[str, str]] = []
    rest: list[str] = []
    seen: set[str] = set()
    error = None
    position = 0
    # The next opening of each tag: searched again only once it is behind us, which keeps the whole scan linear.
    openings = {name: think.find(f"<{name}>") for name in MODALITIES}
    while True:
        for name, start in openings.items():
            if 0 <= start < position:
                openings[name] = think.find(f"<{name}>", position)
        found = [(start, name) for name, start in openings.items() if start >= 0]
        if not found:
            break
        start, name = min(found)
        end = think.find(f"</{name}>", start)
        if end < 0:
            error = f"<{name}> is not closed"
            break
        text = think[start + len(name) + 2 : end].strip()
        if any(tag in text for tag in _TAGS):
            error = f"a tag stands inside <{name}>"
            break
        if not text:
            error = f"<{name}> is empty"
        elif name in seen:
            error = f"<{name}> comes twice"
        seen.add(name)
        segments.append((name, text))
        rest.append(think[position:start])
        position = end + len(name) + 3
    rest.append(think[position:])
    conclusion = " ".join(" ".join(rest).split())
    if error is None and any(tag in conclusion for tag in _TAGS):
        error = "a modality tag is closed but not opened"
    return Reasoning(tuple((name, text) for name, text in segments if text), conclusion), error


def parse(response: str) -> Response:
    """Take a response apart. Never raises; what cannot be found is None.

    Args:
        response: Any string. Time is linear in its length.

    Returns:
        The response's parts. The answer is None if there is none or more than one answer block. Free text without
        modality tags has no segments, and all of it is the conclusion.
    """
    think, answer = _between(response, "think"), _between(response, "answer")
    counts = {tag: response.count(tag) for tag in _TAGS[:4]}
    if counts["<answer>"] > 1 or counts["</answer>"] > 1:
        answer = None
    reasoning, error = _segments(think) if think is not None else (None, None)
    if wrong := [tag for tag, count in counts.items() if count != 1]:
        error = f"{wrong[0]} stands {counts[wrong[0]]} times, not once"
    elif not think or not answer:
        error = "the think or the answer block is empty or out of order"
    else:
        body = response.strip()
        between = body[body.find("</think>") + 8 : body.find("<answer>")] if "</think>" in body else ""
        in_order = body.startswith("<think>") and body.endswith("</answer>")
        if not in_order or body.find("</think>") > body.find("<answer>") or between.strip():
            error = "text stands outside the think and the answer block, or they are out of order"
        elif any(tag in answer for tag in _TAGS):
            error = "a tag stands inside the answer"
    return Response(think or None, answer or None, reasoning, error)


def plain(response: Response) -> str:
    """The reasoning as running text without tags: what a judge reads. Empty if there is no reasoning."""
    text = response.think or ""
    for tag in _TAGS:
        text = text.replace(tag, " ")
    return " ".join(text.split())


def render(segments: Mapping[str, str], conclusion: str, answer: str, order: Sequence[str]) -> str:
    """Write the target text with the segments in the given order, the conclusion last.

    Raises:
        InputError: A segment is missing from the order or the other way round, or what was written cannot be read
            back by `parse` (tags inside a segment, an empty one, …).
    """
    if sorted(order) != sorted(segments):
        raise InputError(f"the order {list(order)} does not name the segments {list(segments)} once each")
    parts = [f"<{name}>{segments[name].strip()}</{name}>" for name in order]
    target = f"<think>{''.join(parts)}{conclusion.strip()}</think><answer>{answer}</answer>"
    read = parse(target)
    expected = tuple((name, segments[name].strip()) for name in order)
    if read.error or read.reasoning is None or read.reasoning.segments != expected or read.answer != answer.strip():
        raise InputError(f"the target cannot be read back: {read.error or 'its parts differ from what was written'}")
    return target
