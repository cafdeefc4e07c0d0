"""Free-form reasoning: split into sentences, each assigned to the modalities that it gives evidence from.

The words that decide are in `migr/text/modality_words.py`; `eval/bench/sentences.py` measures the assignment. All of it
is ours. Time is linear in the text.
"""

import re
from collections.abc import Iterable, Iterator

from migr.text import modality_words as known

# --- splitting ------------------------------------------------------------------------------------------------------

_LONGESTQUOTE = 600  # characters; a quotation mark without its partner in this distance opens nothing
_PAIRS = {"“": "”", "„": "“", "«": "»", "(": ")", "「": "」", "『": "』"}
_END = re.compile(r"[.!?…]+[\"'”’»)\]*_]*|[。！？]+[”’」』）]*")
# Never at the end of a sentence, and at the end of one only before a word that likes to begin one.
_TITLES = re.compile(r"mrs?|ms|dr|prof|st|sr|jr|gen|lt|col|sgt|e\.g|i\.e|cf|vs|viz|approx|ca|fig|eq|resp")
_SHORT = re.compile(r"etc|[ap]\.m|u\.[sk]|nos?|vol|secs?|min|al|inc|ltd|co|dept|est|[a-hj-z]")
_BEGINS = re.compile(
    r"the|an?|s?he|they|it|we|i|his|her|their|its|th[eo]se|this|that|t?here|in|at|on|from|as|when|while|after|before|then"
    r"|also|but|and|so|however|therefore|overall|both|one|another|some|no|if|with|by|for|to"
)
# "1. ", "(2) ", "3) ", "a) ", "- ", "• ", "* "; also "Step 2: "
MARKER = re.compile(
    r"\s*(?:\(?\d{1,3}[.)](?=\s)|\(?[a-zA-Z]\)(?=\s)|[-–—*•·](?=\s)|(?:step|point)\s\d{1,2}[:.](?=\s))\s*", re.I
)


def split(text: str) -> list[str]:
    """The sentences of a text in order; joined by spaces they are the text again, with white space made single.

    Abbreviations, initials, decimals, ellipses within a sentence and list numbers end none; a quotation or bracket
    stays with the sentence that it stands in; a blank line, a list item or a line that begins with a capital letter
    ends one even without a full stop.
    """
    parts: list[str] = []
    for block in _blocks(text):
        start = 0
        for end in _ends(block):
            parts.append(" ".join(block[start:end].split()))
            start = end
        parts.append(" ".join(block[start:].split()))
    sentences: list[list[str]] = []
    words = True  # whether the last sentence holds a word: "..." or a stray dash is no sentence of its own
    for piece in filter(None, parts):
        here = any(map(str.isalnum, piece))
        if sentences and not (here and words):
            sentences[-1].append(piece)
            words = words or here
        else:
            sentences.append([piece])
            words = here
    return [" ".join(pieces) for pieces in sentences]


def locate(text: str, sentences: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Where the sentences that `split` made of a text stand in it: (first character, behind the last)."""
    position = 0
    for sentence in sentences:
        while text[position].isspace():
            position += 1
        start = position
        missing = sum(not character.isspace() for character in sentence)
        while missing:
            missing -= not text[position].isspace()
            position += 1
        yield start, position


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs, list items and lines; a line that goes on in the next one (lower case) is put together with it."""
    block = ""
    for line in text.splitlines():
        line = line.strip()
        goes_on = block and line and not MARKER.match(line) and not (line[0].isupper() or line[0] in "\"'“‘#*")
        if goes_on:
            block += f" {line}"
        else:
            if block:
                yield block
            block = line
    if block:
        yield block


def _quoted(text: str) -> list[tuple[int, int]]:
    """Spans of quotations and brackets (open, close), in order; straight quotation marks take turns."""
    spans: list[tuple[int, int]] = []
    opened, closer = -1, ""
    for i, character in enumerate(text):
        if opened >= 0 and i - opened > _LONGESTQUOTE:
            opened = -1
        if opened >= 0:
            if character == closer:
                spans.append((opened, i))
                opened = -1
        elif character in _PAIRS:
            opened, closer = i, _PAIRS[character]
        elif character == '"' and (i == 0 or not text[i - 1].isalnum()):
            opened, closer = i, '"'
    return spans


def _ends(text: str) -> Iterator[int]:
    """Where the sentences of one block end, but for the last."""
    spans, at = _quoted(text), 0
    for match in _END.finditer(text):
        while at < len(spans) and spans[at][1] < match.end() - 1:
            at += 1
        if at < len(spans) and spans[at][0] < match.end() - 1 < spans[at][1]:
            continue  # inside a quotation
        if _ends_here(text, match):
            yield match.end()


def _ends_here(text: str, match: re.Match[str]) -> bool:
    marks, end = match.group(), match.end()
    if end == len(text):
        return False
    if marks[0] in "。！？":
        return True
    head = text[max(0, match.start() - 60) : match.start()]
    token = head.rsplit(None, 1)[-1] if head.strip() and not head[-1].isspace() else ""
    word = token.lstrip("(\"'“‘[*").casefold()
    if not text[end].isspace():  # "He smiles.She nods." is common in written-up reasoning; "3.5" and "e.g.x" are not
        return marks[0] in ".!?" and len(word) > 2 and word.isalpha() and text[end].isupper()
    after = text[end : end + 40].split(None, 1)
    if not after:
        return False
    first = after[0].lstrip("(\"'“‘[*")
    begins = bool(_BEGINS.fullmatch(first.rstrip(",;:.!?\"'”’)").casefold())) and first[:1].isupper()
    ahead = head[: len(head) - len(token)].rstrip()
    if MARKER.match(f"{token}{marks} ") and (not ahead or ahead[-1] in ".!?:;"):
        return False  # a list number
    if marks[0] == ".":
        if _TITLES.fullmatch(word):
            return False
        if _SHORT.fullmatch(word):
            return begins
    if marks.startswith(("..", "…")):
        return first[:1].isupper() and first not in ("I", "I'm", "I've", "I'll")
    if first[:1].islower():
        return marks[-1] in ".!?"  # behind a quotation the sentence goes on: "Stop!" he says
    return True


# --- assignment -----------------------------------------------------------------------------------------------------

QUOTE = re.compile(r"[\"“„«「][^\"“”„«»「」]{1,600}[\"”“»」]|(?<!\w)['‘][^'‘’\"]{2,200}[.,!?]?['’](?!\w)")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_VOCAL = re.compile(
    r"\b(?:says?|said|saying|repeats?|utter|shout|yell|scream|whisper|murmur|mutter|cr(?:y|ies)|call|word)"
)
_THAT = re.compile(r"\b(?:whisper|shout|yell|scream|murmur|mutter|mumbl|say|said|sob|sigh|groan|stammer)\w* that\b")
_LONGEST = 2000  # characters of a sentence that are looked at


def modalities_of(sentence: str) -> tuple[str, ...]:
    """The modalities that a sentence gives evidence from, by the words in it, in the order of their first words.

    Plain cues ("brow", "pitch", "subtitle") count before weak ones ("room", "talks", "word"), which count only where
    there is no plain one. A sentence that only infers or sums up ("Therefore …", "This may be …") is of none; so is
    what one infers behind its evidence ("…, indicating that …").
    """
    text = sentence[:_LONGEST].casefold().replace("’", "'")
    strong: dict[str, int] = {}  # modality -> where its first cue stands
    weak: dict[str, int] = {}
    if any(" " in quote.group().strip() or _VOCAL.search(text) for quote in QUOTE.finditer(text)):
        strong["text"] = text.index(next(QUOTE.finditer(text)).group())
    text = _blank(known.IDIOMS, _blank(QUOTE, text))
    if back := known.BACK.match(text):
        _cues(text[: back.end()], strong, weak)
        return tuple(modality for modality in strong if modality != "text")
    guess = known.GUESS.match(text)
    if guess and not any(known.cue(word.group())[0] for word in _WORD.finditer(guess.group())):
        return ()
    tail = known.TAIL.search(text)
    head = text[: tail.start()] if tail else text
    lead = _cues(head, strong, weak)
    if tail and not (strong or weak):
        head = text
        lead = _cues(head, strong, weak)

    opens, infers = known.OPENERS.match(text), known.INFERENCE.search(head)
    if opens and "combin" in opens.group() and len({*strong, *weak}) == 1:
        return (*strong, *weak)[:1]  # "Combined with the text, …"
    if opens and (infers or tail or len(strong) != 1):
        return ()
    if known.WEIGHS.search(text) or (len(strong) > 1 and known.SUMMARY.search(text)):
        return ()
    if lead == "audio" and set(strong) == {"text"}:
        return "audio", "text"  # In the audio, "…" is stressed
    if strong:
        return tuple(sorted(strong, key=strong.__getitem__))
    if not weak:
        return ()
    first = min(weak, key=weak.__getitem__)
    if infers and lead is None and not (weak[first] < infers.start() and known.SUBJECT.match(text[: weak[first]])):
        return ()
    return (lead or first,)


def _cues(text: str, strong: dict[str, int], weak: dict[str, int]) -> str | None:
    """Note where the first plain and weak cue of each modality stands; returns that of "In the video, …", if any."""

    def note(kind: dict[str, int], modality: str, at: int) -> None:
        kind[modality] = min(at, kind.get(modality, at))

    lead: str | None = None
    for frame in known.FRAMES.finditer(text):
        strongly, weakly = known.cue(frame["of"])
        if modality := weakly or strongly:
            note(weak, modality, frame.start())
            if frame.start() < 3 or text[: frame.start()].endswith(", "):
                lead = lead or modality
    text = _blank(known.FRAMES, text)
    for pattern, modality in known.PHRASES:
        if match := pattern.search(text):
            note(strong, modality, match.start())
            text = _blank(pattern, text)
    if that := _THAT.search(text):
        note(strong, "text", that.start())
    for word in _WORD.finditer(text):
        strongly, weakly = known.cue(word.group())
        if strongly:
            note(strong, strongly, word.start())
        elif weakly:
            note(weak, weakly, word.start())
    return lead


def _blank(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda match: "_" * len(match.group()), text)


def concludes(sentence: str) -> bool:
    """Whether a sentence begins like a conclusion: "Therefore", "Based on …", "Overall", …"""
    return bool(known.OPENERS.match(sentence.casefold()))
