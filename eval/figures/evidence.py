"""How far a segment rests on the clip and an answer on the reasoning: what eval/grounding.py measures. Ours."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from migr.clips.manifest import Clip
from migr.clips.media import blanked
from migr.files.records import Row, digest
from migr.statistics import estimate, quotient, resampled_sums
from migr.text.format import Response, parse, until_answer
from migr.text.labels import LabelSet
from migr.text.spans import touching

if TYPE_CHECKING:
    from migr.clips.media import Media
    from migr.engine import Request, Score

CHANGES = ("blank", "other")  # what is done to a segment's modality
Ask = Callable[[Clip], "Request"]


def spans_of(response: Response) -> list[tuple[str, int, int]]:
    """Where a response speaks of which modality: (modality, first character, behind the last), in order.

    They are the tagged segments. Where there are none (other systems' output), each sentence of the reasoning counts
    for the first modality that it gives evidence from, or not at all.
    """
    segments = [part for part in response.parts if part.tagged]
    return [(part.modalities[0], part.start, part.end) for part in segments or response.parts if part.modalities]


def changed(media: "Media", modality: str, how: str, donor: "Media") -> "Media":
    """The clip with one modality blanked (mid-grey frames, silence; as long as before), or another clip's instead."""
    if modality == "video":
        assert media.frames is not None
        if how == "blank":
            return blanked(media, ("video",))
        return replace(media, frames=donor.frames, fps=donor.fps)
    assert media.waveform is not None
    if how == "blank":
        return blanked(media, ("audio",))
    return replace(media, waveform=donor.waveform)


def drawn(seed: int, clip_id: str, names: Sequence[str]) -> str | None:
    """One of the names, by the seed and the clip's own name alone; None where there is none."""
    return random.Random(digest(seed, clip_id)).choice(names) if names else None


class Donors:
    """Which clip lends each clip its video, its sound and its reasoning; drawn by the seed and its name alone."""

    def __init__(self, rows: Sequence[Row], clips: Mapping[str, Clip], labels: LabelSet, seed: int):
        self.clips, self.seed = clips, seed
        responses = {row["clip_id"]: parse(row["response"]) for row in rows}
        self.answers = {name: response.label(labels) for name, response in responses.items()}
        self.think = {name: response.think or "" for name, response in responses.items()}
        self._others: dict[tuple[str, str | None], list[str]] = {}

    def of_media(self, clip: Clip, modality: str) -> Clip | None:
        """A clip with this modality and another label."""
        if (key := (modality, clip.label)) not in self._others:
            donors = (c for c in self.clips.values() if modality in c.modalities and c.label != clip.label)
            self._others[key] = [c.clip_id for c in donors]
        name = drawn(self.seed, clip.clip_id, self._others[key])
        return self.clips[name] if name else None

    def of_reasoning(self, clip_id: str) -> str | None:
        """A clip to which the model gave a reasoning and another readable answer."""
        answer = self.answers[clip_id]
        if not answer or not self.think[clip_id]:
            return None
        if (key := ("reasoning", answer)) not in self._others:
            donors = ((name, other) for name, other in self.answers.items() if other not in (None, answer))
            self._others[key] = [name for name, _ in donors if self.think[name]]
        return drawn(self.seed, clip_id, self._others[key])


def gains(engine: Any, ask: Ask, batch: Sequence[tuple[Clip, str]], donor: Callable[[Clip, str], Clip | None]) -> Row:
    """Grounding gain of each segment of the responses.

    Args:
        engine: Of `migr.engine.open_engine`.
        ask: Decodes a clip and asks the question about it.
        batch: (clip, response).
        donor: The clip that lends (clip, modality), or None.

    Returns:
        Clip id -> list of segments: `modality`, `tokens`, `logprob`, `blank` and `other` (the gains in nats; `other` is
        None without a donor).
    """
    requests, offsets, unchanged = [], {}, {}
    for clip, response in batch:
        spans = [span for span in spans_of(parse(response)) if span[0] in clip.modalities and span[0] != "text"]
        offsets[clip.clip_id] = spans
        if not spans:
            continue
        whole = replace(ask(clip), begins=response)  # cut short, its last word would be another token
        requests.append(whole)
        assert whole.media is not None
        for modality in dict.fromkeys(span[0] for span in spans):
            lender = donor(clip, modality)
            media = ask(lender).media if lender else None
            for how in CHANGES if media else CHANGES[:1]:
                other = changed(whole.media, modality, how, media or whole.media)
                key = f"{how} {modality} {clip.clip_id}"
                if _same(other, whole.media):  # silence made silent: asked twice, rounding would show as a gain
                    unchanged[key] = clip.clip_id
                else:
                    requests.append(whole.with_media(key, other, modality))
    scores = {score.key: score for score in engine.score(requests)}
    scores |= {key: scores[name] for key, name in unchanged.items()}
    rows: Row = {}
    for name, spans in offsets.items():
        rows[name] = []
        for modality, start, end in spans:
            logprob, tokens = _sum(scores[name], start, end)
            segment = {"modality": modality, "tokens": tokens, "logprob": logprob}
            for how in CHANGES:
                score = scores.get(f"{how} {modality} {name}")
                segment[how] = logprob - _sum(score, start, end)[0] if score else None
            rows[name].append(segment)
    return rows


def _same(one: "Media", other: "Media") -> bool:
    pairs = ((one.frames, other.frames), (one.waveform, other.waveform))
    return one.fps == other.fps and all(
        a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs
    )


def _sum(score: "Score", start: int, end: int) -> tuple[float, int]:
    """log p of the tokens that touch these characters, and their number."""
    values = [score.logprobs[token] for token, _ in touching(score.spans, [(start, end)])]
    return float(sum(values)), len(values)


def answers(
    engine: Any, ask: Ask, batch: Sequence[tuple[Clip, str, str]], labels: LabelSet
) -> dict[str, tuple[str, str]]:
    """What the model answers to a clip behind its own reasoning and behind another; both read in the same way.

    Args:
        engine: Of `migr.engine.open_engine`.
        ask: Decodes a clip and asks the question about it.
        batch: (clip, own reasoning, other reasoning), as they stand inside <think>.
        labels: What the model can answer.

    Returns:
        Clip id -> (answer behind its own reasoning, answer behind the other).
    """
    requests = []
    for clip, original, other in batch:
        request = replace(ask(clip), choices=labels.labels)
        for name, think in (("own", original), ("other", other)):
            requests.append(replace(request, key=f"{name} {clip.clip_id}", begins=until_answer(think)))
    texts = {answer.key: answer.text for answer in engine.generate(requests)}
    return {clip.clip_id: (texts[f"own {clip.clip_id}"], texts[f"other {clip.clip_id}"]) for clip, *_ in batch}


def measure(rows: Sequence[Row], resamples: int, seed: int) -> dict[str, Any]:
    """The means over all segments and clips, with percentile bootstrap intervals over the clips (95 %)."""
    segments = [(row, segment) for row in rows for segment in row["segments"]]
    figures: dict[str, Any] = {"n": len(rows), "n_segments": len(segments), "gain": {}}
    for modality in ("video", "audio"):
        for how in CHANGES:
            values = [
                [
                    (s[how], s["tokens"], s[how] > 0)
                    for s in row["segments"]
                    if s["modality"] == modality and s[how] is not None
                ]
                for row in rows
            ]
            totals = np.array([[*np.sum(v, axis=0), len(v)] for v in values if v], float).reshape(-1, 4).T
            figures["gain"].setdefault(modality, {})[how] = {
                "n": int(totals[3].sum()),
                **_ratio("mean", totals[0], totals[3], resamples, seed),
                **_ratio("per_token", totals[0], totals[1], resamples, seed),
                **_ratio("positive", totals[2], totals[3], resamples, seed),
            }
    exchanged = [row for row in rows if row["reasoning_from"] is not None]
    stays = np.array([row["answer_behind_other"] == row["answer_behind_own"] for row in exchanged], float)
    follows = np.array([row["answer_behind_other"] == row["other_answer"] for row in exchanged], float)
    figures["answer_support"] = {
        "n": len(exchanged),
        **_ratio("stays", stays, np.ones(len(exchanged)), resamples, seed),
        **_ratio("follows", follows, np.ones(len(exchanged)), resamples, seed),
    }
    return figures


def _ratio(name: str, parts: np.ndarray, wholes: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """Sum of parts over sum of wholes, one of each a clip, and its interval; both None without a clip."""
    sums = resampled_sums(np.stack([parts, wholes], 1), resamples, seed)
    return estimate(name, quotient(sums[:, 0], sums[:, 1]))
