"""One prompt, many completions: the generations of a clip share one copy of its prompt.

GRPO samples and scores `num_generations` completions of each prompt. As rows of their own, each repeats the whole
prompt with its media tokens, which is most of the text.

Scoring (`pack`): a group is one row, the prompt once, then a branch for each completion, which sees the prompt and
itself and stands at the positions that it would have alone. Sampling (`OmniThinker.generate`): the prompt is read once,
and its keys and values are copied for each completion. Log-probabilities and their gradients are the same
(tests/training/test_shared_prefix.py); only the work is less. Ours; the idea is that of prefix caching.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100  # label of positions that are not scored
PROMPT, PADDING = -1, -2  # in place of a branch's number


class Packed(NamedTuple):
    """Rows of (G, L): P - 1 prompt tokens, the branches' tokens without gaps, padding up to the longest row."""

    input_ids: Tensor  # (G, L)
    mask: Tensor  # (G, 1, L, L) bool, True where the query (third axis) sees the key (fourth)
    position_ids: Tensor  # (3, G, L): time, height, width
    shift_labels: Tensor  # (G, L): the token that follows; IGNORED outside the branches
    source: tuple[Tensor, Tensor]  # (N,) row and column among the B x C completion tokens, of every real one
    place: tuple[Tensor, Tensor]  # (N,) row and column of the same token among the G x L

    def unpack(self, values: Tensor, shape: tuple[int, int]) -> Tensor:
        """Values at the packed positions, (G, L), as rows of completions, (B, C), 0 on padding."""
        rows = values.new_zeros(shape)
        rows[self.source] = values[self.place]
        return rows


def pack(
    input_ids: Tensor,
    attention_mask: Tensor,
    completion: int,
    rows: Sequence[int],
    positions: Callable[[Tensor, Tensor], Tensor],
) -> Packed:
    """Put completions of equal prompts into one row.

    Every branch begins with its own copy of the prompt's last token, because that is what its first token follows.

    Args:
        input_ids: (B, P + C) prompts padded on the left, completions padded on the right.
        attention_mask: (B, P + C), 0 on padding.
        completion: C.
        rows: B numbers, in any order; equal numbers mean equal prompts.
        positions: Called with the G prompts' ids and masks, (G, P) each; returns their positions, (3, G, P).
    """
    device, prompt = input_ids.device, input_ids.shape[1] - completion
    numbers = list(dict.fromkeys(rows))
    first = [rows.index(number) for number in numbers]
    ids, visible = input_ids[first, :prompt], attention_mask[first, :prompt].bool()
    at = positions(ids, visible.long())
    shared, real = prompt - 1, attention_mask[:, prompt:].bool()

    # where each branch begins behind the shared part
    ends = [0] * len(numbers)
    begins = []
    groups = [numbers.index(number) for number in rows]
    for group, length in zip(groups, real.sum(1).tolist(), strict=True):
        begins.append(ends[group])
        ends[group] += length
    source: tuple[Tensor, Tensor] = real.nonzero(as_tuple=True)  # type: ignore[assignment]
    row = torch.tensor(groups, device=device)[source[0]]
    column = shared + torch.tensor(begins, device=device)[source[0]] + source[1]

    size = (len(numbers), shared + max(ends))
    packed_ids = ids.new_full(size, int(ids[0, -1]))
    packed_ids[:, :shared] = ids[:, :shared]
    packed_ids[row, column] = input_ids[:, prompt - 1 : -1][source]
    labels = ids.new_full(size, IGNORED)
    labels[row, column] = input_ids[:, prompt:][source]
    branch = ids.new_full(size, PADDING)
    branch[:, :shared] = torch.where(visible[:, :shared], PROMPT, PADDING)
    branch[row, column] = source[0]
    position_ids = at.new_zeros((3, *size))
    position_ids[:, :, :shared] = at[:, :, :shared]
    position_ids[:, row, column] = at[:, row, -1] + source[1]

    mask = (branch[:, :, None] == branch[:, None]) | (branch[:, None] == PROMPT)
    mask &= torch.ones(size[1], size[1], dtype=torch.bool, device=device).tril()
    # padding sees padding, itself at least: a query without any key would give NaN
    return Packed(packed_ids, mask[:, None], position_ids, labels, source, (row, column))
