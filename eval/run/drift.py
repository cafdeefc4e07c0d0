"""Ask a model what shows how far it drifts from the clip: the rows of drift.jsonl (form: `eval.figures.drift`)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from eval.figures.evidence import Ask, drawn, spans_of
from migr.clips.manifest import Clip
from migr.clips.media import blanked
from migr.files.records import Row
from migr.judge import Judge
from migr.planted.truth import cue_emotion
from migr.text.format import Response, parse, tags
from migr.text.labels import LabelSet
from migr.text.spans import touching

if TYPE_CHECKING:
    from migr.engine import Request, Score

AT_ONCE = 16  # clips
Gains = tuple[list[str | None], list[float]]  # modality and gain of each token


@dataclass(frozen=True)
class Beginning:
    """The first segment of a response: its modality, its text, and the response up to its end.

    A closing tag lacks its last character: it makes one token with what follows, which the model is to write.
    """

    modality: str
    text: str
    prefix: str


def beginning_of(response: Response) -> Beginning | None:
    """The first tagged segment; where there are none, the first sentences about one modality. None without either."""
    first = next((part for part in response.parts if part.tagged), None)
    if first is not None:
        modality = first.modalities[0]
        end = response.text.index(tags(modality)[1], first.end) + len(tags(modality)[1]) - 1
        return Beginning(modality, first.text, response.text[:end])
    spans = spans_of(response)
    if not spans:
        return None
    modality, start, _ = spans[0]
    same = [(a, b) for m, a, b in spans if m == modality]
    stop = next((a for m, a, _ in spans if m != modality), len(response.text))
    end = max(b for _, b in same if b <= stop)
    return Beginning(modality, response.text[start:end], response.text[:end])


def continued(response: Response, beginning: Beginning) -> tuple[str, str, str]:
    """What follows a beginning: modality and text of the next segment, and the conclusion; "" for what is not there."""
    rest = [part for part in response.parts if part.start >= len(beginning.prefix)]
    has_tags = any(part.tagged for part in response.parts)
    segments = [part for part in rest if part.tagged or (part.modalities and not has_tags)]
    other = [part for part in segments if part.modalities[0] != beginning.modality]
    modality = other[0].modalities[0] if other else ""
    last = max((part.end for part in segments), default=0)
    conclusion = " ".join(part.text for part in rest if part.start >= last and part not in segments)
    return modality, " ".join(part.text for part in other if part.modalities[0] == modality), conclusion


class Lenders:
    """Which clip lends each clip its first segment: about the same modality, with another emotion; drawn by the seed.

    Args:
        responses: Clip id -> the model's response.
        judge: Reads the first segments alone.
        seed: Draws.
    """

    def __init__(self, responses: Mapping[str, str], judge: Judge, seed: int):
        every = {name: beginning_of(parse(text)) for name, text in responses.items()}
        self.beginnings = {name: beginning for name, beginning in every.items() if beginning is not None}
        texts = list(dict.fromkeys(beginning.text for beginning in self.beginnings.values()))
        emotions = dict(zip(texts, emotions_of(judge, texts), strict=True))
        self.emotions = {name: emotions[beginning.text] for name, beginning in self.beginnings.items()}
        self.seed = seed
        self._others: dict[tuple[str, str], list[str]] = {}

    def of(self, clip_id: str) -> str | None:
        """The clip that lends this one its beginning; None where its own cannot be read, or nobody else's differs."""
        beginning = self.beginnings.get(clip_id)
        if beginning is None or (emotion := self.emotions[clip_id]) is None:
            return None
        if (key := (beginning.modality, emotion)) not in self._others:
            readable = ((name, other) for name, other in self.emotions.items() if other not in (None, emotion))
            same = [name for name, _ in readable if self.beginnings[name].modality == beginning.modality]
            self._others[key] = same
        return drawn(self.seed, clip_id, self._others[key])


def emotions_of(judge: Judge, texts: Sequence[str]) -> list[str | None]:
    """What a judge reads in texts, each alone; None where it cannot tell."""
    return [judgement.emotion for judgement in judge.judge(texts)] if texts else []


def rows_of(
    engine: Any,
    ask: Ask,
    clips: Sequence[Clip],
    responses: Mapping[str, str],
    lenders: Lenders,
    judge: Judge,
    labels: LabelSet,
    dominants: Mapping[str, str],
    attention: bool,
) -> Iterator[Row]:
    """The rows of drift.jsonl, in the clips' order.

    Args:
        engine: Of `migr.engine.open_engine`, or anything that generates and scores as those do.
        ask: Decodes a clip and asks the question about it.
        clips: The clips.
        responses: Clip id -> what the model said of it.
        lenders: Of all responses, these clips' and others'.
        judge: Reads segments, conclusions and whole reasonings.
        labels: What can be answered.
        dominants: Clip id -> dominant modality, where it is known.
        attention: Ask for the attention to media tokens too; the engine must have `attend`.
    """
    source = iter(clips)
    while batch := list(islice(source, AT_ONCE)):
        start = time.monotonic()
        rows = list(_Batch(engine, ask, batch, responses, lenders, attention).rows(judge, labels))
        seconds = (time.monotonic() - start) / len(batch)
        for row in rows:
            row["cost"]["seconds"] = round(seconds, 4)
            yield {**row, "dominant": dominants.get(row["clip_id"])}


class _Batch:
    """What is asked about a few clips: first all that is generated, then all that is scored."""

    def __init__(
        self,
        engine: Any,
        ask: Ask,
        batch: Sequence[Clip],
        responses: Mapping[str, str],
        lenders: Lenders,
        attention: bool,
    ):
        self.engine, self.lenders, self.responses, self.attention = engine, lenders, responses, attention
        self.requests = {clip.clip_id: (clip, ask(clip)) for clip in batch}
        self.cost = {name: {"scored": 0, "generated": 0, "tokens": 0, "attended": 0} for name in self.requests}

    def rows(self, judge: Judge, labels: LabelSet) -> Iterator[Row]:
        behind = self._generated()
        scored = {("response", name): self.responses[name] for name in self.requests}
        scored |= {key: text for key, text in behind.items() if key[0] in ("video", "audio")}
        gains, attention = self._scored(scored), self._attended()
        read = self._read(behind, judge)
        for name, (clip, _) in self.requests.items():
            response = parse(self.responses[name])
            modality, values = gains["response", name]
            yield {
                "clip_id": name,
                "label": clip.label,
                "answer": response.label(labels),
                "evidence": {"modality": modality, "gain": values, "attention": attention.get(name)},
                "pull": self._pull(clip, behind, read, labels),
                "order": {
                    m: {
                        "response": behind[m, name],
                        "answer": parse(behind[m, name]).label(labels),
                        "judged": read[parse(behind[m, name]).plain],
                        "gain": round(sum(gains[m, name][1]), 4),
                        "tokens": len(gains[m, name][1]),
                    }
                    for m in ("video", "audio")
                }
                if ("video", name) in behind
                else None,
                "cost": self.cost[name],
            }

    def _pull(
        self, clip: Clip, behind: Mapping[tuple[str, str], str], read: Mapping[str, str | None], labels: LabelSet
    ) -> Row | None:
        name, lenders = clip.clip_id, self.lenders
        if (lender := lenders.of(name)) is None:
            return None
        pull: Row = {
            "first": lenders.beginnings[name].modality,
            "emotion": lenders.emotions[name],
            "from": lender,
            "exchanged": lenders.emotions[lender],
        }
        for whose, beginning in (("own", lenders.beginnings[name]), ("other", lenders.beginnings[lender])):
            response = parse(behind[whose, name])
            modality, text, conclusion = continued(response, beginning)
            planted = "planted" in clip.extra and modality in ("video", "audio")
            pull[whose] = {
                "response": response.text,
                "next": read.get(text),
                "next_planted": cue_emotion(modality, text) if planted else None,
                "conclusion": read.get(conclusion),
                "answer": response.label(labels),
            }
        return pull

    def _generated(self) -> dict[tuple[str, str], str]:
        """(own, other, video or audio; clip) -> the whole response behind that beginning."""
        begins: dict[tuple[str, str], str] = {}
        for name, (clip, _) in self.requests.items():
            if (lender := self.lenders.of(name)) is not None:
                begins["own", name] = self.lenders.beginnings[name].prefix
                begins["other", name] = self.lenders.beginnings[lender].prefix
            tagged = any(part.tagged for part in parse(self.responses[name]).parts)
            if tagged and {"video", "audio"} <= set(clip.modalities):
                for modality in ("video", "audio"):  # again without the last character
                    begins[modality, name] = tags("think")[0] + tags(modality)[0][:-1]
        requests = [
            replace(self.requests[name][1], key=f"{how} {name}", begins=text) for (how, name), text in begins.items()
        ]
        texts = {}
        for (how, name), answer in zip(begins, self.engine.generate(requests), strict=True):
            texts[how, name] = begins[how, name] + answer.text
            self.cost[name]["generated"] += 1
            self.cost[name]["tokens"] += len(answer.token_ids)
        return texts

    def _scored(self, texts: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], Gains]:
        """Key -> modality and gain of each token of a response's reasoning; equal texts of a clip are scored once."""
        pairs: dict[tuple[str, str], tuple[Request, Request]] = {}
        for (_, name), text in texts.items():
            request = self.requests[name][1]
            if (name, text) not in pairs and parse(text).parts:
                assert request.media is not None
                with_clip = replace(request, key=f"clip {len(pairs)} {name}", begins=text)
                without = with_clip.with_media(f"blank {len(pairs)} {name}", blanked(request.media), "video", "audio")
                pairs[name, text] = with_clip, without
        scores = iter(self.engine.score([request for pair in pairs.values() for request in pair]))
        gains = {}
        for name, text in pairs:
            self.cost[name]["scored"] += 2
            gains[name, text] = _gains(parse(text), next(scores), next(scores))
        return {(how, name): gains.get((name, text), ([], [])) for (how, name), text in texts.items()}

    def _attended(self) -> dict[str, list[float]]:
        """Clip -> share of attention to media of each token of the reasoning."""
        if not self.attention:
            return {}
        parts = {name: parse(self.responses[name]).parts for name in self.requests}
        requests = [
            replace(request, begins=self.responses[name]) for name, (_, request) in self.requests.items() if parts[name]
        ]
        shares = {}
        for looks in self.engine.attend(requests):
            self.cost[looks.key]["attended"] += 1
            places = touching(looks.spans, [(part.start, part.end) for part in parts[looks.key]])
            shares[looks.key] = [round(looks.shares[i], 4) for i, _ in places]
        return shares

    def _read(self, behind: Mapping[tuple[str, str], str], judge: Judge) -> dict[str, str | None]:
        """Text -> emotion, of all that a judge is to read here; nothing said is not read."""
        texts: dict[str, None] = {}
        for (how, name), text in behind.items():
            if how in ("own", "other"):
                lender = name if how == "own" else str(self.lenders.of(name))
                _, segment, conclusion = continued(parse(text), self.lenders.beginnings[lender])
                texts |= dict.fromkeys((segment, conclusion))
            else:
                texts[parse(text).plain] = None
        words = [text for text in texts if text]
        return {"": None, **dict(zip(words, emotions_of(judge, words), strict=True))}


def _gains(response: Response, with_clip: "Score", without: "Score") -> Gains:
    """Modality and gain of each token that touches a part of the reasoning; tags have none."""
    parts = response.parts
    modality = {(a, b): m for m, a, b in spans_of(response)}
    names: list[str | None] = []
    gains = []
    for i, place in touching(with_clip.spans, [(part.start, part.end) for part in parts]):
        part = parts[place]
        names.append(modality.get((part.start, part.end)))
        gains.append(round(with_clip.logprobs[i] - without.logprobs[i], 4))
    return names, gains
