"""The same corpus on every engine leaves the same rows, each once, and a second run finds nothing new."""

from schemas import Cache
from tests.engines.flink import embedded_flags
from tests.engines.jobs import assert_same_rows, precompute
from tests.engines.servers import engine

COUNTED = ("documents", "duplicates", "known_documents", "new_documents", "rejects", "shards")


def check(corpus, teacher, whole, cache, beam):
    """A run, its rows and counts against the in-process runner's, and a second run."""
    reference, summary = whole
    report = cache.with_name("report")
    first, again = precompute(corpus, teacher, cache, report=report, beam=beam, times=2)
    assert_same_rows(cache, reference)
    assert {name: first[name] for name in COUNTED} == {name: summary[name] for name in COUNTED}
    assert first["shards"] > 4
    assert (again["committed"], again["new_documents"], again["known_documents"]) == (False, 0, 60)
    assert Cache.open(cache).version == 0


def test_prism(tmp_path, corpus, teacher, whole):
    binary = engine("bin/prism")
    beam = ["--runner=PrismRunner", f"--prism_location={binary}", "--environment_type=LOOPBACK"]
    check(corpus, teacher, whole, tmp_path / "cache", beam)


def test_flink_embedded(tmp_path, corpus, teacher, whole, embedded):
    check(corpus, teacher, whole, tmp_path / "cache", embedded_flags(embedded))


def test_every_bundle_twice_in_process(tmp_path, corpus, teacher, whole):
    check(corpus, teacher, whole, tmp_path / "cache", ["--direct_runner_bundle_repeat=2"])
