"""The wrapper that the whole suite runs under sees a wrong shape, and a wrong type."""

from __future__ import annotations

import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Float64, TypeCheckError, jaxtyped

from schemas.identity import is_held_out
from schemas.rows.ragged import Ragged, segmented_sums
from schemas.shards.seal import Totals


def test_a_shape_that_does_not_fit_fails():
    lists = Ragged.of([np.arange(2), np.arange(1)], np.int64)
    assert lists.take(np.array([1, 0])).lengths.tolist() == [1, 2]
    with pytest.raises(TypeCheckError):
        lists.take(np.array([[1, 0]]))
    with pytest.raises(TypeCheckError):
        lists.take(np.array([1.0, 0.0]))
    with pytest.raises(TypeCheckError):
        segmented_sums(np.arange(3), np.array([[1, 2]]))
    with pytest.raises(TypeCheckError):
        Ragged(values=np.arange(2), offsets=np.array([[0, 2]]))


@jaxtyped(typechecker=beartype)
def without_first(
    one: Float64[np.ndarray, " R"], two: Float64[np.ndarray, " R"], count: int = 0
) -> Float64[np.ndarray, " R"]:
    return (one + two)[count:] if len(one) == len(two) else one


def test_axes_of_one_name_are_as_long_within_a_call_and_of_any_length_in_the_next():
    for length in (2, 3):
        assert without_first(np.zeros(length), np.ones(length)).shape == (length,)
    with pytest.raises(TypeCheckError):
        without_first(np.zeros(2), np.ones(3))
    with pytest.raises(TypeCheckError):
        without_first(np.zeros(2), np.ones(2), count=1)


def test_a_type_that_does_not_fit_fails():
    with pytest.raises(TypeCheckError):
        is_held_out("no bytes", 0.5)
    with pytest.raises(TypeCheckError):
        Totals(examples="many")
