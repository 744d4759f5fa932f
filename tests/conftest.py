"""Fixtures that every half's tests share."""

import os

import numpy as np
import pytest

from tests.shapes import wrap_only_what_says_a_shape

wrap_only_what_says_a_shape()

from tests.synthetic import make_cache  # noqa: E402  the packages come after


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks():
    """Nothing here has to outlive a power failure; the tests of durability watch the calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A small committed causal-LM cache of two shards. Read it, never write to it."""
    return make_cache(tmp_path_factory.mktemp("cache") / "cache")


@pytest.fixture
def own_cache(tmp_path):
    """The same, for one test to break."""
    return make_cache(tmp_path / "cache")
