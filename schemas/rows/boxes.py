"""Boxes: what a detector says beside its scores, and the objects that the corpus says are in an image.

A box is its centre, width and height, as shares of the image's width and height. With softmax scores the last class of
a position is no object; with sigmoid scores no class is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas.errors import REPAIR, CorruptionError
from schemas.rows.columns import BOXES, MAX_OBJECTS, OBJECT_BOXES, OBJECT_CLASSES
from schemas.rows.layout import refuse_range
from schemas.spec import Spec


def has_no_object(spec: Spec) -> bool:
    """Whether the last class stands for no object."""
    return spec.kind.has_boxes and spec.score == "softmax"


def num_named(spec: Spec) -> int:
    """How many classes a model's config names: V, less what stands for no object."""
    return spec.vocab_size - has_no_object(spec)


def check_boxes(spec: Spec, data: Mapping[str, Any], where: str) -> None:
    """Asserts the rules for boxes and objects; their number, `layout.py` asserts.

    Raises:
        CorruptionError: naming the first column that breaks one.
    """
    if not spec.kind.has_boxes:
        return
    if not np.isfinite(data[BOXES].values).all():
        raise CorruptionError(f"column {BOXES} has a value that is not finite", where=where, do=REPAIR)
    classes, boxes = data[OBJECT_CLASSES], data[OBJECT_BOXES]
    if (classes.validity != boxes.validity).any():
        got = f"column {OBJECT_BOXES} is null where {OBJECT_CLASSES} is not, or the other way round"
        raise CorruptionError(got, where=where, do=REPAIR)
    if data["labels"].validity.any():
        raise CorruptionError("column labels stands beside objects", where=where, do=REPAIR)
    refuse_range(f"{OBJECT_CLASSES} (of an image)", classes.lengths, 0, MAX_OBJECTS, where)
    refuse_range(OBJECT_CLASSES, classes.values, 0, num_named(spec) - 1, where)
    if not np.isfinite(boxes.values).all():
        raise CorruptionError(f"column {OBJECT_BOXES} has a value that is not finite", where=where, do=REPAIR)
    refuse_range(OBJECT_BOXES, boxes.values, 0, 1, where)
