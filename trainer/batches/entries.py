"""Kept entries of a batch's positions, in flat arrays: gathered from the row groups themselves, straight into place.

Compiled loops (`schemas/rows/kernels.py`) decode each entry where it is written. Policies whose weights differ from
draw to draw, and machines without numba, go by numpy, over rows that were taken first; a test says that both are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from schemas.policies import Sampled, Threshold
from schemas.rows import kernels
from schemas.rows.entries import entries_of
from schemas.rows.ragged import Array, offsets_of
from schemas.rows.rows import Rows
from schemas.spec import Spec

ENTRY_COLUMNS = frozenset(["kept_ids", "kept_codes", "sampled_ids", "sampled_counts", "sampled_codes"])
"""Columns of one value an entry."""
_NONE_DRAWN = np.empty(0, np.int64)


class Entries(NamedTuple):
    """Kept entries, each position's likeliest first."""

    ids: Array
    """int64 [E]"""
    counts: Array
    """int64 [N]"""
    position: Array
    """int64 [E], ascending."""
    logprobs: Array
    """float32 [E]: each entry's own, at temperature 1; NaN for a drawn one where the cache does not store it."""
    weights: Array | None
    """float32 [E]: of a sampling policy, at the temperature that was asked for; of others the trainer makes them."""

    @property
    def mass(self) -> Array:
        """float32 [E]"""
        return np.exp(self.logprobs) if self.weights is None else self.weights


def can_gather(spec: Spec, temperature: float) -> bool:
    """Whether the compiled loops know all that a policy's entries need."""
    alike = isinstance(spec.keep, Threshold) and len(spec.temperatures) == 1 and temperature == 1
    return kernels.IS_COMPILED and spec.score == "softmax" and (alike or not spec.is_sampling)


def gather_entries(
    parts: Sequence[Rows], part: Int64[np.ndarray, " B"], row: Int64[np.ndarray, " B"], taken: Rows
) -> Entries:
    """The entries of B rows, each of which is `row[b]` of `parts[part[b]]`; `taken` are their other columns."""
    spec, kept, drawn = taken.spec, taken.kept_counts, taken.sampled_counts
    counts: Array = kept.astype(np.int64) + drawn
    total = int(counts.sum())
    ids, position = np.empty(total, np.int64), np.empty(total, np.int64)
    logprobs = np.empty(total, np.float32)
    to_position = taken.position_offsets[:-1]
    to_entry = offsets_of(counts)[to_position]
    steps = np.float32(spec.top_step_nats), np.float32(spec.code_step_nats)
    for number in np.unique(part).tolist():
        own = np.flatnonzero(part == number)
        kernels.gather_entries(
            row[own],
            to_position[own],
            to_entry[own],
            *_of_part(parts[number]),
            *steps,
            ids,
            position,
            logprobs,
        )
    weights = None
    if isinstance(spec.keep, Threshold):
        weights = np.exp(logprobs)
        kernels.fill_drawn(kept, counts, np.float32(spec.keep.tau), weights)
    return Entries(ids, counts, position, logprobs, weights)


def _of_part(rows: Rows) -> tuple[Array, ...]:
    data, spec = rows.data, rows.spec
    offsets, num_drawn, drawn_ids, drawn_codes = (
        _NONE_DRAWN,
        np.empty(0, np.int32),
        np.empty(0, np.int32),
        None,
    )
    if spec.is_sampling:
        drawn = rows.ragged("sampled_ids")
        offsets, num_drawn, drawn_ids = drawn.offsets, rows.sampled_counts, drawn.values
        drawn_codes = rows.ragged("sampled_codes").values if "sampled_codes" in data else None
    kept = rows.ragged("kept_ids")
    return (
        *(rows.position_offsets, kept.offsets, offsets, rows.kept_counts, num_drawn),
        *(kept.values, rows.ragged("kept_codes").values, rows.ragged("top_codes").values),
        *(drawn_ids, np.empty(0, np.int16) if drawn_codes is None else drawn_codes),
    )


def take_entries(rows: Rows, temperature: float) -> Entries:
    """The entries of all positions of some rows, whatever their policy.

    Raises:
        ValueError: entries were drawn for other temperatures than this.
    """
    ids, weights = rows.kept_ids, None
    if not rows.spec.is_sampling:
        counts, logprobs = rows.kept_counts.astype(np.int64), rows.kept_logprobs()
    else:
        found = entries_of(rows, temperature)
        ids, counts, logprobs, weights = found.ids, found.counts, found.logprobs, found.weights
    position = np.repeat(np.arange(len(counts)), counts)
    if isinstance(rows.spec.keep, Sampled):
        assert weights is not None
        order = np.lexsort((-weights, position))
        ids, logprobs, weights = ids[order], logprobs[order], weights[order]
    return Entries(ids.astype(np.int64), counts, position, logprobs, weights)
