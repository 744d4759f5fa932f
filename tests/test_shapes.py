"""The wrapper that the whole suite runs under sees a wrong shape, and a wrong type."""

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

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


def test_a_type_that_does_not_fit_fails():
    with pytest.raises(BeartypeCallHintViolation):
        is_held_out("no bytes", 0.5)
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        Totals(examples="many")
