"""Every loss by its name. A family is a file with `LOSSES`; a new one gets its line here."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.losses import (
    boxes,
    contrast,
    cross_tokenizer,
    decoupled,
    divergences,
    features,
    impossible,
    labels,
    lists,
    pointwise,
    ranking,
    relations,
    weighted,
)
from trainer.losses.loss import Loss

FAMILIES = (
    divergences,
    weighted,
    decoupled,
    labels,
    pointwise,
    ranking,
    lists,
    features,
    relations,
    contrast,
    boxes,
    cross_tokenizer,
    impossible,
)
LOSSES: Mapping[str, Loss] = {loss.name: loss for family in FAMILIES for loss in family.LOSSES}
