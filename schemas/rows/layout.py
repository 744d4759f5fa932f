"""How long the lists of a row must be, given its tokens and positions, and which values they may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas.errors import REPAIR, CorruptionError
from schemas.rows.columns import BOXES, OBJECT_BOXES, OBJECT_CLASSES
from schemas.rows.ragged import Array
from schemas.spec import Spec


def expected_lengths(spec: Spec, data: Mapping[str, Any], positions: Array) -> dict[str, Array]:
    """The length of each list column in each row, from the counts of its positions; columns not there are left out."""
    expected: dict[str, Any] = {"position_index": positions, "token_type_ids": data["input_ids"].lengths}
    if spec.score == "softmax":
        expected |= _of_entries(spec, data, positions)
    elif spec.kind.has_positions:
        expected |= dict.fromkeys(("labels", "logits"), positions * spec.vocab_size)
    if spec.kind.has_boxes:
        expected[BOXES] = 4 * positions
        if OBJECT_CLASSES in data:
            expected[OBJECT_BOXES] = 4 * data[OBJECT_CLASSES].lengths
    for feature in spec.features:
        expected[feature.column] = np.full(len(positions), feature.width)
    return {name: lengths for name, lengths in expected.items() if name in data}


def _of_entries(spec: Spec, data: Mapping[str, Any], positions: Array) -> dict[str, Array]:
    scalars = ("top_codes", "entropy_codes", "gold_codes", "word_start_codes")
    expected = dict.fromkeys(("labels", "num_kept", "num_sampled", *scalars), positions)
    expected["logsumexp"] = positions * len(spec.temperatures)
    expected |= dict.fromkeys(("kept_ids", "kept_codes"), data["num_kept"].sums())
    if spec.is_sampling:
        drawn = data["num_sampled"].sums()
        expected |= dict.fromkeys(("sampled_ids", "sampled_codes", "sampled_counts"), drawn)
    return expected


def image_bytes(images: Array) -> Array:
    """How many bytes each image has."""
    return np.fromiter(map(len, images), np.int64, len(images))


def refuse_range(name: str, values: Array, low: int, high: int, where: str) -> None:
    """Asserts that a column's values lie between two, both included.

    Raises:
        CorruptionError: naming the column.
    """
    if values.size and not (values.min() >= low and values.max() <= high):
        raise CorruptionError(
            f"column {name} has a value out of range",
            where=where,
            expected=f"{low} to {high}",
            got=f"{values.min()} to {values.max()}",
            do=REPAIR,
        )
