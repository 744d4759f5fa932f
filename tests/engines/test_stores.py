"""Corpus and cache on object stores, with the clients that people use: nights, readers, a student, two runs at once."""

import json

import pytest

import teachonce
from pipelines import ThinConfig, thin
from schemas import Cache
from schemas.policies import TopP
from tests.engines import jobs
from tests.engines.jobs import assert_same_bytes, assert_same_rows, precompute
from tests.engines.stores import start_gs, start_s3
from tests.pipelines.helpers import documents, run, write_jsonl
from tests.trainer.tiny import STUDENT

OLD, NEW = documents(30), documents(8, start=30)


def lines(records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.fixture(scope="module", params=[start_s3, start_gs], ids=["s3", "gs"])
def store(request, tmp_path_factory):
    """A bucket with a corpus of one file."""
    found = request.param(tmp_path_factory.mktemp("store"))
    found.upload("corpus/monday.jsonl", lines(OLD))
    yield found
    for server in found.servers:
        server.stop()


@pytest.fixture
def here(store, monkeypatch):
    """This process finds the store too."""
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, teacher):
    """The same nights on a local disk."""
    folder = tmp_path_factory.mktemp("reference")
    corpus = [write_jsonl(folder / "monday.jsonl", OLD)]
    run(corpus, teacher, folder / "cache", unit_tokens=200)
    run([*corpus, write_jsonl(folder / "tuesday.jsonl", NEW)], teacher, folder / "cache", unit_tokens=200)
    return folder / "cache"


def test_nights_readers_and_a_student(store, here, teacher, reference, tmp_path, capsys):
    corpus, cache = f"{store.root}/corpus/*.jsonl", f"{store.root}/nights/cache"
    first, again = precompute(corpus, teacher, cache, report=tmp_path / "monday", times=2, env=store.env)
    assert (first["version"], first["new_documents"], first["shards"] > 2) == (0, 30, True)
    assert (again["committed"], again["known_documents"]) == (False, 30)

    store.upload("corpus/tuesday.jsonl", lines([*NEW, *OLD[:3]]))
    report, out = tmp_path / "tuesday", tmp_path / "student"
    student = tmp_path / "student.json"
    student.write_text(json.dumps(STUDENT))
    flags = ["--max_steps=2", "--per_device_train_batch_size=4", "--use_cpu"]
    jobs.teachonce(
        jobs.call(corpus, teacher, cache, report),
        [
            "train",
            f"--cache={cache}",
            f"--student={student}",
            "--losses",
            "kl=1",
            f"--output_dir={out}",
            *flags,
        ],
        env=store.env,
    )
    night = json.loads(report.read_text())
    assert (night["version"], night["new_documents"], night["known_documents"], night["duplicates"]) == (
        1,
        8,
        30,
        3,
    )
    assert (out / "model.safetensors").stat().st_size > 0

    assert_same_rows(cache, reference)
    assert teachonce.main(["inspect", cache, "--rows=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == len(jobs.read(reference))
    assert teachonce.main(["verify", cache]) == 0
    assert teachonce.main(["verify", cache, "--version=0"]) == 0

    small, local = (
        ThinConfig(cache=cache, out=out, keep=TopP(p=0.8, k=8))
        for out in (f"{store.root}/nights/small", str(tmp_path / "small"))
    )
    told = [thin(small), thin(small)]
    assert [(one.committed, one.version, one.source_version) for one in told] == [(True, 0, 1), (False, 0, 1)]
    assert told[0].added_shards == told[0].shards > 2
    assert thin(local).committed
    assert_same_bytes(small.out, local.out)

    assert teachonce.main(["compact", cache]) == 0
    assert (Cache.open(cache).version, len(Cache.open(cache).shards)) == (2, 1)
    assert_same_rows(cache, reference)


@pytest.mark.parametrize("store", [start_s3], indirect=True, ids=["s3"])
def test_two_runs_at_once_leave_each_row_once(store, here, teacher, tmp_path):
    """Beam is told where the store is by its own flags here, the cache by the environment."""
    store.upload("both/all.jsonl", lines([*OLD, *NEW]))
    corpus, cache = f"{store.root}/both/*.jsonl", f"{store.root}/both/cache"
    env = dict(store.env)
    env["AWS_ENDPOINT"] = endpoint = env.pop("AWS_ENDPOINT_URL")  # boto3 does not know this name
    calls = [
        jobs.call(corpus, teacher, cache, tmp_path / f"r{index}", [f"--s3_endpoint_url={endpoint}"])
        for index in range(2)
    ]
    started = [jobs.start(call, env=env, without=["AWS_ENDPOINT_URL"]) for call in calls]
    ended = [jobs.finish(process) for process in started]
    assert 0 in [status for status, _ in ended], ended
    for status, out in ended:
        assert status == 0 or "the cache has moved on" in out, out
    run(write_jsonl(tmp_path / "all.jsonl", [*OLD, *NEW]), teacher, tmp_path / "one", unit_tokens=200)
    assert_same_rows(cache, tmp_path / "one")
    assert Cache.open(cache).version == 0
    (third,) = precompute(corpus, teacher, cache, report=tmp_path / "third", env=store.env)
    assert (third["committed"], third["known_documents"]) == (False, 38)
