"""Where rows have classes of their own: what is none of them has no probability, and is never kept.

Softmax needs all V logits of a chunk alike. So what is no class gets a logit so low that its exponential is 0 also in
float64, and finite: 0 times it is 0, where 0 times infinity would be no number.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float

from pipelines.keep.select import Selected
from schemas.rows.classes import NO_CLASS


def only(
    logits: Float[torch.Tensor, "N S"], classes: Bool[torch.Tensor, "N V"]
) -> Float[torch.Tensor, "N V"]:
    """float32 logits of each position's classes, of which S <= V were scored (the others are none)."""
    width = classes.shape[1]
    logits = torch.nn.functional.pad(logits.float(), (0, max(0, width - logits.shape[1])))[:, :width]
    return logits.masked_fill_(~classes, NO_CLASS)


def within_classes(selected: Selected) -> Selected:
    """What a policy keeps of classes alone: exact entries descend, so the others stand behind them."""
    possible = (selected.logprobs > NO_CLASS / 2).sum(1)
    return selected._replace(counts=torch.minimum(selected.counts, possible))
