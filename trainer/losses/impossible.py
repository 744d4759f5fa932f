"""What the field distils with and no cache can serve: named, so that the refusal can say what to use in its place."""

from __future__ import annotations

from trainer.losses.loss import Loss
from trainer.losses.serving import EVERY_TOKEN

LOSSES = (
    Loss(
        name="attention",
        formula="KL of the last layer's attention and value relations, token by token (MiniLM)",
        paper="arXiv:2002.10957",
        kind=EVERY_TOKEN,
    ),
    Loss(
        name="hidden_states",
        formula="mean (h - t)^2 of every token's states and attention scores (TinyBERT)",
        paper="arXiv:1909.10351",
        kind=EVERY_TOKEN,
    ),
)
