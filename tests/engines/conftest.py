"""One corpus, one teacher, the in-process runner's cache of them, and engines that start once for all who ask."""

import pytest

from pipelines import ThinConfig, thin
from schemas.policies import Threshold
from tests.engines.flink import Cluster, start_job_server
from tests.engines.jobs import precompute
from tests.pipelines import models
from tests.pipelines.helpers import documents, run, write_jsonl

_LONGEST_FIRST = (
    "test_stores",
    "test_flink_cluster",
    "test_fetch",
    "test_tasks",
    "test_runners",
    "test_two_libraries",
)
"""Two processes take whole files, as servers start once a file. The one that has two tests or fewer left takes the
next, so that Flink's cluster draws the quick file, and the stores' process the runners."""


def pytest_collection_modifyitems(items):
    """Everything in this folder needs the engines."""
    ours = {item: item.path.stem for item in items if "tests/engines/" in item.path.as_posix()}
    for item in ours:
        item.add_marker(pytest.mark.engines)
    items.sort(key=lambda item: _LONGEST_FIRST.index(ours[item]) if item in ours else -1)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """A tiny causal LM: 300 tokens, tied head."""
    return models.causal_teacher(tmp_path_factory.mktemp("teacher") / "llama")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Documents in three files, of which the longer give several windows, and a tenth twice."""
    folder = tmp_path_factory.mktemp("corpus")
    every = documents(60)
    for index in range(3):
        write_jsonl(folder / f"part-{index}.jsonl", every[index::3] + every[:6] * (index == 2))
    return folder / "*.jsonl"


@pytest.fixture(scope="session")
def whole(tmp_path_factory, teacher, corpus):
    """The in-process runner's cache, and its summary: what every engine must agree with."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    (summary,) = precompute(corpus, teacher, cache, report=cache.with_name("report"))
    return cache, summary


@pytest.fixture(scope="session")
def thinned(tmp_path_factory, teacher, corpus):
    """A cache of draws, and the smaller one that the in-process runner makes of it."""
    folder = tmp_path_factory.mktemp("thinned")
    run(corpus, teacher, folder / "drawn", keep=Threshold(tau=1 / 32, k=2), unit_tokens=200)
    keep = Threshold(tau=1 / 8)
    assert thin(ThinConfig(cache=str(folder / "drawn"), out=str(folder / "small"), keep=keep)).committed
    return folder / "drawn", folder / "small"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The port of a job server with Flink inside."""
    port, server = start_job_server(tmp_path_factory.mktemp("embedded"))
    yield port
    server.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Flink cluster with two task managers."""
    found = Cluster(tmp_path_factory.mktemp("cluster"))
    yield found
    found.stop()
