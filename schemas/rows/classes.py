"""Which ids are classes of a row, where these are its own tokens: as many as it has tokens to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from schemas.errors import REPAIR, CorruptionError
from schemas.rows.ragged import Array
from schemas.spec import Spec

Data = Mapping[str, Any]
NO_CLASS = -1e30
"""The logit of what is no class: finite, so that it times a probability of 0 is 0."""


def has_first(spec: Spec) -> bool:
    """Whether a row's first token is a class too: it stands for none of the others."""
    return not spec.setting("always_answerable")


def class_mask(
    spec: Spec, start: Int64[np.ndarray, " R"], end: Int64[np.ndarray, " R"]
) -> Bool[np.ndarray, "R V"]:
    """Which of the V ids are classes, of rows whose tokens to choose from are those from `start` on, before `end`."""
    every = np.arange(spec.vocab_size)
    found: Array = (every >= start[:, None]) & (every < end[:, None])
    found[:, 0] |= has_first(spec)
    return found


def bounds(spec: Spec, data: Data) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
    """From which token on, and before which, the positions of each row may choose."""
    assert spec.kind.class_columns is not None
    start, end = (data[name].astype(np.int64) for name in spec.kind.class_columns)
    return start, end


def num_classes(spec: Spec, data: Data) -> Int64[np.ndarray, " R"]:
    """How many classes each row has: V, where they are not its own tokens."""
    if not spec.kind.classes_are_tokens:
        return np.full(len(data["input_ids"]), spec.vocab_size, np.int64)
    start, end = bounds(spec, data)
    found: Array = end - start + ((start > 0) & has_first(spec))
    return found


def check_bounds(spec: Spec, data: Data, where: str) -> None:
    """Asserts that each row whose classes are its own tokens has one at least, and none beyond its last token.

    Raises:
        CorruptionError: naming the column.
    """
    if spec.kind.class_columns is None:
        return
    start, end = bounds(spec, data)
    _refuse(
        f"column {spec.kind.class_columns[1]} points outside its example",
        end > data["input_ids"].lengths,
        where,
    )
    _refuse(f"column {spec.kind.class_columns[0]} leaves no token to choose from", start >= end, where)


def check_classes(spec: Spec, data: Data, name: str, counts: Int64[np.ndarray, " R"], where: str) -> None:
    """Asserts that the ids of a column, `counts[r]` a row, are classes of their rows.

    Raises:
        CorruptionError: naming the column.
    """
    if not spec.kind.classes_are_tokens:
        return
    start, end = (np.repeat(bound, counts) for bound in bounds(spec, data))
    ids = data[name].values
    inside = (ids >= start) & (ids < end)
    _refuse(
        f"column {name} has an id that is no class of its row",
        ~(inside | (has_first(spec) & (ids == 0))),
        where,
    )


def check_whole(spec: Spec, data: Data, where: str) -> None:
    """Asserts that every class of each row is kept at each of its positions.

    Raises:
        CorruptionError: fewer are, or more.
    """
    kept = data["num_kept"]
    wrong = kept.values != np.repeat(num_classes(spec, data), kept.lengths)
    _refuse("column num_kept is not the number of its row's classes", wrong, where)


def _refuse(what: str, wrong: Array, where: str) -> None:
    if wrong.any():
        raise CorruptionError(what, where=where, got=f"{int(wrong.sum())} of {wrong.size}", do=REPAIR)
