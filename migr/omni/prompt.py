"""The questions asked of the model, and the chat text around them. Wording ours, after the papers' emotion prompts."""

from collections.abc import Iterable
from typing import Any

QUESTION = (
    "Which emotion does the person show: {labels}? Reason in <think></think> about <video></video> and "
    "<audio></audio>, then name it in <answer></answer>."
)
# What a model must be able to do before it can reason: tell what one modality shows, and name the emotion at once.
DESCRIBE = {"video": "Describe what the face shows.", "audio": "Describe how the voice sounds."}
NAME = {
    "video": "Which emotion does the face show?",
    "audio": "Which emotion does the voice carry?",
}
FORMAT = "Put this into think, video, audio and answer tags: {pieces} {conclusion} {answer}"
ANSWER_DIRECTLY = "Which emotion? Answer in <answer></answer>."


def question(labels: Iterable[str]) -> str:
    """The emotion question with its list of labels."""
    return QUESTION.format(labels=", ".join(labels))


def render_prompt(processor: Any, text: str, video: bool, audio: bool) -> str:
    """Chat text of one user turn, ready for the answer: video, then audio, then `text`; one placeholder a modality.

    The template adds the model's default system message.

    Args:
        processor: A `Qwen2_5OmniProcessor`, or anything with its `apply_chat_template`.
        text: What is asked.
        video: Whether frames come with it.
        audio: Whether sound comes with it.
    """
    content: list[dict[str, str]] = []
    if video:
        content.append({"type": "video", "video": ""})
    if audio:
        content.append({"type": "audio", "audio": ""})
    content.append({"type": "text", "text": text})
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
