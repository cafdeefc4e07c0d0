"""Ask the MLLM itself: how much does log p(label) of its direct answer fall when a modality is left out?

p(label) is the probability that `<answer>label</answer>` has if decoding is constrained to the label set: at each token
the model's probabilities are shared out among the tokens with which some label goes on. So it does not count how likely
the model is to answer in this form at all, which a missing modality changes as well. Ours.

"Left out" means: the modality's tokens are neither in the prompt nor in the features (a transcript's sentence is taken
from the question). Nothing is zeroed or silenced, which the model would read as darkness or as a silent person. All
versions of a clip, the whole one and one without each modality, go through the model in one batched forward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from migr.clips.manifest import Clip
from migr.importance.features import transcript_of
from migr.omni.inputs import OmniInputs
from migr.omni.prompt import ANSWER_DIRECTLY, TRANSCRIPT, render_prompt
from migr.text.format import block


def answer_drops(
    thinker: Any, inputs: OmniInputs, clips: Sequence[Clip], modalities: Sequence[str], labels: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Leave-one-modality-out on the MLLM.

    Args:
        thinker: Of `migr.omni.load.load_thinker`.
        inputs: Prepares clips for its processor.
        clips: Labelled clips.
        modalities: The M modalities to leave out in turn; others of a clip are not shown at all.
        labels: The label set.

    Returns:
        (n, M) log p(label | all) − log p(label | all but m), NaN where the clip lacks m or has nothing else, and (n,)
        log p(label | all), in nats.
    """
    drops = torch.full((len(clips), len(modalities)), torch.nan)
    whole = torch.zeros(len(clips))
    for i, clip in enumerate(tqdm(clips, desc="asking the model", unit="clip")):
        have = [name for name in modalities if name in clip.modalities]
        out = have if len(have) > 1 else []
        versions = [have, *([m for m in have if m != gone] for gone in out)]
        log_probs = label_log_probs(thinker, inputs, clip, versions, labels)
        whole[i] = log_probs[0]
        for value, gone in zip(log_probs[1:], out, strict=True):
            drops[i, modalities.index(gone)] = log_probs[0] - value
    return drops, whole


@torch.inference_mode()
def label_log_probs(
    thinker: Any, inputs: OmniInputs, clip: Clip, versions: Sequence[Sequence[str]], labels: Sequence[str]
) -> Tensor:
    """log p of the clip's label as direct answer with each set of modalities, (len(shown),), one forward pass."""
    assert clip.label is not None and clip.label in labels
    tokenizer = inputs.processor.tokenizer
    answers = {name: tokenizer(block("answer", name), add_special_tokens=False).input_ids for name in labels}
    target = answers[clip.label]
    features, prompts = [], []
    for names in versions:
        transcript = TRANSCRIPT.format(transcript=transcript_of(clip)) if "text" in names else ""
        media = inputs.features(clip, names)
        prompt = render_prompt(inputs.processor, transcript + ANSWER_DIRECTLY, "video" in names, "audio" in names)
        features.append(media)
        prompts.append(inputs.prompt_ids(prompt, media))
    length = max(map(len, prompts)) + len(target)
    ids = torch.full((len(versions), length), tokenizer.pad_token_id)
    mask = torch.zeros((len(versions), length), dtype=torch.long)
    for row, before in enumerate(prompts):
        ids[row, : len(before) + len(target)] = torch.tensor([*before, *target])
        mask[row, : len(before) + len(target)] = 1
    device = thinker.lm_head.weight.device
    batch = {name: tensor.to(device) for name, tensor in inputs.collate(features).items()}
    states = thinker.backbone(input_ids=ids.to(device), attention_mask=mask.to(device), **batch).last_hidden_state
    # the states that predict the target's tokens, and the head on these alone
    ends = [states[row, len(p) - 1 : len(p) - 1 + len(target)] for row, p in enumerate(prompts)]
    logits = thinker.lm_head(torch.stack(ends)).float()
    total = torch.zeros(len(versions))
    for place, token in enumerate(target):
        same = [a for a in answers.values() if a[:place] == target[:place] and len(a) > place]
        allowed = sorted({a[place] for a in same})
        total += logits[:, place, allowed].log_softmax(-1)[:, allowed.index(token)].cpu()
    return total
