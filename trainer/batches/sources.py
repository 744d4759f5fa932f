"""Rows that hold a source and its target: cut apart, for a student that reads the one and says the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from schemas.decoder_inputs import IGNORED
from schemas.rows.ragged import Array, Ragged
from schemas.rows.rows import Rows
from schemas.tasks import SOURCE_TOKENS
from trainer.batches.packing import Layout, Stacked

Shift = Callable[[Tensor], Tensor]
"""From target ids `[B, T]`, padded with `IGNORED`, to what a student's decoder is given."""


class Read(NamedTuple):
    """What a student reads of some rows."""

    ids: Ragged
    """All tokens, or the sources'."""
    places: Array
    """Which token of its row, or of its target, each position stands on."""
    targets: Ragged | None = None

    @classmethod
    def of(cls, rows: Rows) -> Read:
        """From rows of any task."""
        if not rows.spec.kind.has_source:
            return cls(rows.input_ids, rows.position_index())
        source = rows.array(SOURCE_TOKENS).astype(np.int64)
        ids, targets = rows.input_ids.split(source)
        behind = np.repeat(source - 1, np.diff(rows.position_offsets))
        return cls(ids, rows.position_index() - behind, targets)

    def decoder_inputs(self, layouts: Stacked, shift: Shift | None) -> list[Tensor | None]:
        """Of each batch whose ids have these layouts; None without targets."""
        if self.targets is None:
            return [None] * len(layouts.layouts)
        assert shift is not None
        lengths = self.targets.lengths
        own = Stacked([Layout.apart(lengths[first:last]) for first, last in layouts.rows])
        return [shift(ids) for ids in own.filled(self.targets, IGNORED)]
