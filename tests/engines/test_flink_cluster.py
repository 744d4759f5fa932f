"""Flink with two task managers, each with a Python worker of its own; and one of them killed at work."""

import json
import time

import pytest

from schemas import Cache
from tests.engines import jobs
from tests.engines.jobs import assert_same_rows
from tests.engines.test_runners import check
from tests.pipelines.helpers import documents, run, write_jsonl

MANY_UNITS = 60


@pytest.fixture(scope="module")
def many(tmp_path_factory, teacher):
    """A corpus of many units, and the in-process runner's cache of it."""
    corpus = write_jsonl(tmp_path_factory.mktemp("many") / "corpus.jsonl", documents(200))
    cache = tmp_path_factory.mktemp("reference") / "cache"
    assert run(corpus, teacher, cache, unit_tokens=100).shards > MANY_UNITS
    return corpus, cache


def shards(folder):
    """The shards that lie in a cache's folder, live or not."""
    return {path.name for path in folder.glob("*.parquet")}


def test_two_task_managers(tmp_path, corpus, teacher, whole, cluster):
    cache = tmp_path / "cache"
    check(corpus, teacher, whole, cache, cluster.flags)
    workers = [set(names) for names in cluster.scored().values() if names]
    assert len(workers) == 2
    assert workers[0] | workers[1] == {shard.name for shard in Cache.open(cache).shards}


def test_a_task_manager_is_killed_at_work(tmp_path, teacher, many, cluster):
    """Flink starts the work again on the one that is left; what the dead one had written does no harm."""
    corpus, reference = many
    cache, report = tmp_path / "cache", tmp_path / "report.json"
    before = set(cluster.scored())
    job = jobs.start(jobs.call(corpus, teacher, cache, report, cluster.flags, unit_tokens=100))
    deadline = time.monotonic() + 180
    while not shards(cache) and job.poll() is None:
        assert time.monotonic() < deadline, "no shard in three minutes"
        time.sleep(0.01)
    cluster.task_managers[0].kill()
    done = len(shards(cache))
    status, out = jobs.finish(job)
    assert status == 0, out[-3000:]
    assert 0 < done < MANY_UNITS
    assert_same_rows(cache, reference)
    summary = json.loads(report.read_text())
    assert (summary["documents"], summary["new_documents"]) == (200, 200)
    assert summary["totals"]["examples"] == len(jobs.read(cache))
    workers = {name: names for name, names in cluster.scored().items() if name not in before}
    assert sum(map(len, workers.values())) > summary["shards"], "some units ran twice"
    cluster.wait_for_slots(2)
