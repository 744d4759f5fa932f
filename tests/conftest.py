"""Fixtures that every half's tests share."""

import os
import signal

import numpy as np
import pytest

from tests.shapes import wrap_only_what_says_a_shape

wrap_only_what_says_a_shape()

from tests.synthetic import make_cache  # noqa: E402  the packages come after
from tests.unmeasured import UNMEASURED, untraced  # noqa: E402


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if item.path not in UNMEASURED:
        return (yield)
    with untraced():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks():
    """Nothing here has to outlive a power failure; the tests of durability watch the calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heard():
    """Also where the tests run in the background, or under nohup, which have them ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    ignored = [number for number, handler in before.items() if handler is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


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
