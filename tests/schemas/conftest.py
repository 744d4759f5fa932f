"""Fixtures of the contract's tests."""

import numpy as np
import pytest

from tests.synthetic import begin, causal_spec, random_rows


@pytest.fixture
def new_cache(tmp_path):
    """The storage of a cache in which nothing was committed."""
    return begin(tmp_path / "cache", causal_spec())


@pytest.fixture
def batches():
    """Rows enough for six shards."""
    rows = random_rows(causal_spec(), 30).rows
    return [rows.take(part) for part in np.array_split(np.arange(30), 6)]
