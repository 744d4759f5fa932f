"""Boxes and objects in rows: what breaks a rule is refused, by the writer as by the reader, and shown as it is."""

import json
from dataclasses import replace

import numpy as np
import pytest

from schemas.cli.cache_report import describe_rows
from schemas.errors import CorruptionError
from schemas.rows.boxes import has_no_object, num_named
from schemas.rows.ragged import Ragged
from schemas.rows.rows import Rows
from tests.specs import SPECS, boxes_spec
from tests.synthetic import make_cache, random_rows

BOTH = ("boxes", "boxes_sigmoid")


def changed(rows, name, value):
    """The first of a column's values is another."""
    values = rows.ragged(name).values.copy()
    values[0] = value
    return {name: replace(rows.ragged(name), values=values)}


def shorter(rows, name, number):
    """The last row that has any has fewer."""
    column = rows.ragged(name)
    at = int(np.flatnonzero(column.lengths >= number)[-1])
    offsets = column.offsets - number * (np.arange(len(column.offsets)) > at)
    end = column.offsets[at + 1]
    values = np.delete(column.values, slice(end - number, end))
    return {name: Ragged(values=values, offsets=offsets, valid=column.valid)}


FAULTS = {
    "a box that is no number": lambda rows: changed(rows, "boxes", np.nan),
    "a position without a box": lambda rows: shorter(rows, "boxes", 4),
    "a class that is none": lambda rows: changed(rows, "object_classes", num_named(rows.spec)),
    "a class below 0": lambda rows: changed(rows, "object_classes", -1),
    "an object that is no number": lambda rows: changed(rows, "object_boxes", np.inf),
    "an object beyond its image": lambda rows: changed(rows, "object_boxes", 1.5),
    "an object without a box": lambda rows: shorter(rows, "object_boxes", 4),
    "boxes of nothing known": lambda rows: {
        "object_boxes": Ragged.of([np.zeros(0)] * len(rows), np.float32),
        "object_classes": Ragged.of([None] * len(rows), np.int32),
    },
    "a label": lambda rows: {
        "labels": Ragged.of(
            [np.zeros(5 * (1 if rows.spec.score == "softmax" else 3))] + [None] * (len(rows) - 1),
            rows.ragged("labels").values.dtype,
        )
    },
    "another query": lambda rows: changed(rows, "position_index", 1),
    "a query less": lambda rows: shorter(rows, "position_index", 1),
}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_a_rule_is_refused(name, fault):
    rows = random_rows(SPECS[name], 12, seed=3).rows
    rows.check("whole")
    broken = Rows(spec=rows.spec, data={**rows.data, **FAULTS[fault](rows)})
    with pytest.raises(CorruptionError, match="here"):
        broken.check("here")


def test_the_last_class_of_a_softmax_is_no_object():
    softmax, sigmoid = (SPECS[name] for name in BOTH)
    assert (has_no_object(softmax), num_named(softmax), num_named(sigmoid)) == (True, 2, 3)
    assert not has_no_object(SPECS["images"])


def test_a_row_has_as_many_positions_as_its_setting_says():
    assert boxes_spec().kind.text_positions == 5
    assert boxes_spec().kind.position_bounds(3, 3) == (15, 15)


@pytest.mark.parametrize("name", BOTH)
def test_rows_are_shown_with_boxes_and_objects(tmp_path, name):
    cache = make_cache(tmp_path, SPECS[name], num_rows=6, num_shards=1)
    rows = Rows.concatenate([*cache.read_all()])
    found = json.loads(json.dumps(describe_rows(cache, 6)))
    boxes = [position["box"] for one in found for position in one["positions"]]
    assert boxes == rows.ragged("boxes").values.reshape(-1, 4).tolist()
    classes, known = rows.ragged("object_classes"), [one["objects"] for one in found]
    assert [one is not None for one in known] == classes.validity.tolist()
    shown = [own["id"] for one in known for own in one or ()]
    assert shown == classes.values.tolist()
