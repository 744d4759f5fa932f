"""Objects of an image, as COCO and Hugging Face `datasets` have them: a box in pixels, and a category, each.

A box is left edge, upper edge, width and height. What needs no image is looked at when a record is read; whether a box
lies in its image, when that is decoded (`pipelines/tasks/object_detection.py`).
"""

from __future__ import annotations

import math
from typing import Any

from pipelines.corpus.labels import Labelled, LabelMap, read_label
from pipelines.rejects import BAD_OBJECTS, EMPTY_BOX, RejectedError, kind_of
from schemas.rows.columns import MAX_OBJECTS

_BOX, _CATEGORIES = "bbox", ("category", "category_id")
_EXPECTED = "{bbox: [...], category: [...]}, or a list of {bbox, category}"


def read_objects(value: Any, labels: LabelMap, field: str) -> Labelled:
    """Class, left edge, upper edge, width and height of each object, one after the other; none is an image without any.

    Raises:
        RejectedError: it is no list of objects, there are too many, a class is none of the teacher's, or a box is none.
    """
    boxes, categories = _lists(value, field)
    if len(boxes) != len(categories):
        got = f"{len(boxes)} and {len(categories)}"
        raise RejectedError(BAD_OBJECTS, field=field, expected="as many boxes as categories", got=got)
    if len(boxes) > MAX_OBJECTS:
        expected, got = f"at most {MAX_OBJECTS:,} objects", f"{len(boxes):,}"
        raise RejectedError(BAD_OBJECTS, field=field, expected=expected, got=got)
    found, readings = list[float](), list[str]()
    for box, category in zip(boxes, categories, strict=True):
        known = read_label(category, labels, field)
        assert isinstance(known.label, int)
        found += [float(known.label), *_box(box, field)]
        readings.append(known.reading)
    return Labelled(tuple(found), " and ".join(sorted(set(readings))) or "no object")


def _lists(value: Any, field: str) -> tuple[list[Any], list[Any]]:
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return [one.get(_BOX) for one in value], [_category(one) for one in value]
    boxes, categories = (value.get(_BOX), _category(value)) if isinstance(value, dict) else (None, None)
    if not isinstance(boxes, list) or not isinstance(categories, list):
        raise RejectedError(BAD_OBJECTS, field=field, expected=_EXPECTED, got=kind_of(value))
    return boxes, categories


def _category(value: dict[str, Any]) -> Any:
    return next((value[name] for name in _CATEGORIES if name in value), None)


def _box(value: Any, field: str) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else []
    fine = len(numbers) == 4 and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not (fine and all(math.isfinite(number) and abs(number) < 2**31 for number in numbers)):
        expected = "a box of four numbers: left edge, upper edge, width, height"
        raise RejectedError(BAD_OBJECTS, field=field, expected=expected, got=kind_of(value))
    if not (numbers[2] > 0 and numbers[3] > 0):
        raise RejectedError(EMPTY_BOX, field=field, expected="a width and a height above 0", got="another")
    return tuple(float(number) for number in numbers)
