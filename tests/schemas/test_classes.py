"""Rows whose classes are their own tokens: how many there are, and what no reader takes for one."""

from dataclasses import replace

import numpy as np
import pytest

from schemas.errors import CorruptionError
from schemas.policies import Threshold, TopK
from schemas.rows.classes import bounds, class_mask, num_classes
from schemas.rows.ragged import Ragged
from schemas.rows.rows import Rows
from schemas.spec import Spec
from schemas.tasks import QUESTION_ANSWERING
from tests.synthetic import SPECS, answers_spec, random_rows

ALWAYS = {"task_settings": QUESTION_ANSWERING.settled({"always_answerable": True})}


@pytest.mark.parametrize("settings", [{}, ALWAYS])
def test_classes_are_the_tokens_of_a_context_and_the_first(settings):
    spec = answers_spec(**settings)
    rows = random_rows(spec, 40, seed=1).rows
    mask = class_mask(spec, *bounds(spec, rows.data))
    for row in range(40):
        own = set(range(rows.array("context_start")[row], rows.array("context_end")[row]))
        assert set(np.flatnonzero(mask[row]).tolist()) == own | ({0} if not settings else set())
    assert num_classes(spec, rows.data).tolist() == mask.sum(1).tolist()
    assert rows.class_counts.tolist() == np.repeat(mask.sum(1), 2).tolist()
    others = random_rows(SPECS["classes"], 3).rows
    assert others.class_counts.tolist() == [3] * 3


def test_v_is_the_longest_example():
    with pytest.raises(ValueError, match="vocab_size"):
        answers_spec(vocab_size=31)


def broken(rows: Rows, name, change):
    column = rows.data[name]
    values = (column.values if isinstance(column, Ragged) else column).copy()
    change(values)
    changed = replace(column, values=values) if isinstance(column, Ragged) else values
    return Rows(spec=rows.spec, data={**rows.data, name: changed})


def put(place, value):
    def change(values):
        values[place] = value

    return change


FAULTS = [
    ("context_end", put(0, 33), "context_end points outside its example"),
    ("context_end", put(0, 0), "context_start leaves no token to choose from"),
    ("context_start", put(0, -1), "context_start has a value out of range"),
    ("has_answer", put(0, 2), "has_answer has a value out of range"),
    ("labels", put(0, 31), "labels has an id that is no class of its row"),
    ("kept_ids", put(0, 31), "kept_ids has an id that is no class of its row"),
    ("position_index", put(1, 0), r"position_index \(of a text\)"),
]


@pytest.mark.parametrize(("name", "change", "said"), FAULTS, ids=lambda one: str(one)[:30])
@pytest.mark.parametrize("keep", [TopK(k=3), Threshold(tau=1 / 8)], ids=str)
def test_what_is_no_class_is_refused(keep, name, change, said):
    rows = few(answers_spec(keep=keep))
    rows.check("")
    with pytest.raises(CorruptionError, match=said):
        broken(rows, name, change).check("shard")


def test_drawn_ids_are_classes_too():
    rows = few(answers_spec(keep=Threshold(tau=1 / 8)))
    with pytest.raises(CorruptionError, match="sampled_ids has an id that is no class of its row"):
        broken(rows, "sampled_ids", put(0, 31)).check("shard")


def few(spec: Spec) -> Rows:
    """Rows of which none has all tokens to choose from, the last one least of all; the first has labels."""
    rows = random_rows(spec, 60, seed=3).rows
    known = rows.ragged("labels").validity & (rows.array("context_end") < 31)
    return rows.take(np.flatnonzero(known))


def test_all_are_all_classes_of_a_row():
    rows = random_rows(answers_spec(), 20, seed=2).rows
    rows.check("")
    moved = rows.array("context_end") > rows.array("context_start") + 1
    less = np.where(moved, rows.array("context_end") - 1, rows.array("context_end")).astype(np.int32)
    with pytest.raises(CorruptionError, match=r"is no class of its row|not the number of its row's classes"):
        Rows(spec=rows.spec, data={**rows.data, "context_end": less}).check("shard")
    more = np.minimum(rows.array("context_end") + 1, rows.input_ids.lengths).astype(np.int32)
    with pytest.raises(CorruptionError, match="num_kept is not the number of its row's classes"):
        Rows(spec=rows.spec, data={**rows.data, "context_end": more}).check("shard")
