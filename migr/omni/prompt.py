"""The questions asked of the model, and the chat text around them. Wording ours, after the papers' emotion prompts."""

from collections.abc import Iterable, Sequence
from typing import Any

from migr.clips.manifest import Clip
from migr.omni.templates import render
from migr.text.format import MODALITIES, block, tags

QUESTION = (
    f"Which emotion does the person show: {{labels}}? Reason in {block('think')} about {{streams}}, "
    f"then name it in {block('answer')}."
)
TRANSCRIPT = 'The person says: "{transcript}" '
# What a model must be able to do before it can reason: tell what one modality shows, and name the emotion at once.
DESCRIBE = {"video": "Describe what the face shows.", "audio": "Describe how the voice sounds."}
NAME = {
    "video": "Which emotion does the face show?",
    "audio": "Which emotion does the voice carry?",
}
FORMAT = "Put this into think, video, audio and answer tags: {pieces} {conclusion} {answer}"
ANSWER_DIRECTLY = f"Which emotion? Answer in {block('answer')}."


def question(labels: Iterable[str], modalities: Sequence[str] = ("video", "audio"), transcript: str = "") -> str:
    """The emotion question with its list of labels; it asks to reason about what is there, and about nothing else.

    Args:
        labels: What may be answered.
        modalities: What the clip has, of `MODALITIES`.
        transcript: The words that are spoken, where "text" is among them; they come first.
    """
    streams = [block(modality) for modality in MODALITIES if modality in modalities]
    named = " and ".join(filter(None, (", ".join(streams[:-1]), streams[-1])))
    words = TRANSCRIPT.format(transcript=" ".join(transcript.replace("<|", "< |").split())) if transcript else ""
    return words + QUESTION.format(labels=", ".join(labels), streams=named)


def question_about(clip: Clip, labels: Iterable[str]) -> str:
    """The emotion question about this clip."""
    return question(labels, clip.modalities, str(clip.extra.get("transcript") or ""))


def render_prompt(processor: Any, text: str, video: bool, audio: bool) -> str:
    """Chat text of one user turn, ready for the answer: video, then audio, then `text`; one placeholder a modality.

    The template adds the model's default system message. Where it opens the thoughts for the model (Thinking models),
    that opening is left out: responses and targets open them themselves, once, whatever the template does.

    Args:
        processor: A `Qwen2_5OmniProcessor`, or anything with its `tokenizer` and `chat_template`.
        text: What is asked.
        video: Whether frames come with it.
        audio: Whether sound comes with it.

    Raises:
        InputError: The template is broken, or goes beyond a bound (`migr.omni.templates`).
    """
    content: list[dict[str, str]] = []
    if video:
        content.append({"type": "video", "video": ""})
    if audio:
        content.append({"type": "audio", "audio": ""})
    content.append({"type": "text", "text": text})
    prompt = render(processor.tokenizer, processor.chat_template, content)
    opening = tags("think")[0]
    return prompt.rstrip().removesuffix(opening) if prompt.rstrip().endswith(opening) else prompt
