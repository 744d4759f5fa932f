"""How many rows of each row group are held out at the default fraction, as a shard's footer says it.

It stands under a key of its own, and not in the entries of row groups: a reader of an earlier release refuses an entry
with a number that it does not know, and passes over a key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from schemas.errors import REPAIR
from schemas.identity import DEFAULT_EVAL_FRACTION, held_out, held_out_below
from schemas.limits import OF_JSON, conform, parse_json, told
from schemas.rows.rows import Rows

HELD_OUT_KEY = b"teachonce.held_out"
"""In the footer: `{"fraction": F, "rows": [N, ...]}`."""

GroupCounts = Int32[np.ndarray, "G 2"]
"""Of each row group the rows in all, and those held out."""


def num_held_out(rows: Rows) -> int:
    """How many rows are held out at the default fraction."""
    return int(held_out(rows.array("document_hash"), DEFAULT_EVAL_FRACTION).sum())


def held_out_to_bytes(counts: Sequence[int]) -> bytes:
    """The value of the footer's key, for a shard whose row groups hold out so many rows."""
    value = {"fraction": DEFAULT_EVAL_FRACTION, "rows": list(counts)}
    return json.dumps(value, separators=(",", ":")).encode()


def parse_held_out(data: bytes | None, examples: Sequence[int], where: str) -> tuple[int, ...] | None:
    """Rows held out of each row group of so many examples; None where the footer says none, or of another fraction.

    Raises:
        CorruptionError: they are not such counts.
    """
    if data is None:
        return None
    with told("a footer's counts of held-out rows cannot be", where, REPAIR, also=OF_JSON):
        value = parse_json(data)
        below = held_out_below(conform(float, value["fraction"], "fraction"))
        counts: tuple[int, ...] = conform(tuple[int, ...], value["rows"], "rows")
        pairs = zip(counts, examples, strict=True)
        if any(not 0 <= count <= most for count, most in pairs):
            raise ValueError(f"{max(counts)} of {max(examples)}")
    return counts if below == held_out_below(DEFAULT_EVAL_FRACTION) else None


def counts_to_bytes(examples: Sequence[int], held_out_rows: Sequence[int]) -> bytes:
    """Counts of a shard's row groups as they travel from who sealed it to who commits it."""
    return np.array([examples, held_out_rows], "<i4").T.tobytes()


def counts_from_bytes(data: bytes) -> GroupCounts:
    """What `counts_to_bytes` was given."""
    return np.frombuffer(data, "<i4").reshape(-1, 2).astype(np.int32)
