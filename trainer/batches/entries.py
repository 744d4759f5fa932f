"""Kept entries of a batch's positions, in flat arrays: gathered from the row groups themselves, straight into place.

Compiled loops (`trainer/batches/kernels.py`) decode each entry where it is written. Policies whose weights differ from
draw to draw, and machines without numba, go by numpy, over rows that were taken first; a test says that both are equal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from schemas.policies import Sampled, Threshold
from schemas.rows import kernels
from schemas.rows.blocks import arrays
from schemas.rows.columns import BOX_COLUMNS, IMAGE
from schemas.rows.entries import entries_of
from schemas.rows.ragged import Array, offsets_of
from schemas.rows.rows import Rows
from schemas.spec import Spec
from schemas.tasks import CLASS_COLUMNS, SOURCE_TOKENS, VIEW_INDEX
from trainer.batches.kernels import gather_exact, gather_weighted

ENTRY_COLUMNS = frozenset(
    ["kept_ids", "kept_codes", "sampled_ids", "sampled_counts", "sampled_codes", "top_codes"]
)
"""Columns of one value an entry, and the log-probabilities from which these are counted."""
BATCH_COLUMNS = frozenset(
    [
        *("example_id", "input_ids", "token_type_ids", "position_index", "labels", "logits", "num_kept"),
        *("kept_ids", "kept_codes", "top_codes", "num_sampled", "sampled_ids", "sampled_counts"),
        *("sampled_codes", "entropy_codes", "logsumexp", SOURCE_TOKENS, *CLASS_COLUMNS),
        *(IMAGE, VIEW_INDEX.name, *BOX_COLUMNS),
    ]
)
"""What of a row a batch is made from, beside the features that are asked for, or an error tells."""
_NO_CODES = np.empty(0, np.int16)
_NOTHING_NATS, _LARGEST_TABLE = 128, 2**15
"""Below a position's top, where a probability is none in float32; and how many code steps it may be away."""


class Entries(NamedTuple):
    """Kept entries of N positions, which stand in several batches; each position's likeliest first."""

    ids: Array
    """int32 [E]"""
    counts: Array
    """int64 [N]"""
    logprobs: Array
    """float32 [E]: each entry's own, at temperature 1; NaN for a drawn one where the cache does not store it."""
    weights: Array | None
    """float32 [E]: of a sampling policy, at the temperature that was asked for; of others at temperature 1, or None."""
    sums: Array | None
    """float32 [2, N]: each position's tail and its negentropy, at temperature 1, where the loops made them."""


def can_gather(spec: Spec, temperature: float) -> bool:
    """Whether the compiled loops know all that a policy's entries need."""
    alike = isinstance(spec.keep, Threshold) and len(spec.temperatures) == 1 and temperature == 1
    is_coarse = _LARGEST_TABLE * spec.code_step_nats > _NOTHING_NATS
    return kernels.IS_COMPILED and spec.score == "softmax" and is_coarse and (alike or not spec.is_sampling)


def gather_entries(places: Iterable[tuple[Rows, Array, Array]], taken: Rows) -> Entries:
    """The entries of the rows that stand in these `places` of a pool; `taken` are their other columns."""
    spec, firsts = taken.spec, taken.position_offsets[:-1]
    counts: Array = taken.kept_counts.astype(np.int64)
    if spec.is_sampling:
        counts += taken.sampled_counts
    ends = offsets_of(counts)
    total, number = int(ends[-1]), len(counts)
    shapes = [(np.int32, total), (np.float32, total), (np.float32, total), (np.float32, 2 * number)]
    ids, logprobs, weights, sums = arrays(shapes)
    sums = sums.reshape(2, number)
    to = np.stack([firsts, ends[firsts]])
    tables = _exponentials(spec.top_step_nats), _exponentials(spec.code_step_nats)
    into = tables, (ids, logprobs, weights), sums
    for part, own, rows in places:
        kept, codes = part.ragged("kept_ids"), part.ragged("kept_codes").values
        tops, where = part.ragged("top_codes").values, (rows, to[:, own], part.position_offsets)
        if isinstance(spec.keep, Threshold):
            drawn, counts_of = part.ragged("sampled_ids"), (part.kept_counts, part.sampled_counts)
            drawn_codes = part.ragged("sampled_codes").values if "sampled_codes" in part.data else _NO_CODES
            steps = np.array([spec.top_step_nats, spec.code_step_nats, spec.keep.tau])
            pairs = (
                (kept.offsets, drawn.offsets),
                counts_of,
                (kept.values, codes),
                (drawn.values, drawn_codes),
            )
            gather_weighted(*where, *pairs, tops, steps, *into)
        else:
            steps = np.array([spec.top_step_nats, spec.code_step_nats, spec.vocab_size])
            gather_exact(*where, kept.offsets, part.kept_counts, kept.values, codes, tops, steps, *into)
    return Entries(ids, counts, logprobs, weights, sums)


@functools.lru_cache(maxsize=8)
def _exponentials(step: float) -> Array:
    """Of 0, 1, 2, ... steps down, in float32."""
    steps = np.arange(math.ceil(_NOTHING_NATS / step) + 1, dtype=np.float64)
    return np.exp(-step * steps).astype(np.float32)


def take_entries(rows: Rows, temperature: float) -> Entries:
    """As `gather_entries`, of rows that were taken with all columns, whatever their policy.

    Raises:
        ValueError: entries were drawn for other temperatures than this.
    """
    ids, weights = rows.kept_ids, None
    if not rows.spec.is_sampling:
        counts, logprobs = rows.kept_counts.astype(np.int64), rows.kept_logprobs()
    else:
        found = entries_of(rows, temperature)
        ids, counts, logprobs, weights = found.ids, found.counts, found.logprobs, found.weights
    if isinstance(rows.spec.keep, Sampled):
        assert weights is not None
        order = np.lexsort((-weights, np.repeat(np.arange(len(counts)), counts)))
        ids, logprobs, weights = ids[order], logprobs[order], weights[order]
    return Entries(ids, counts, logprobs, weights, None)
