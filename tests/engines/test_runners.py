"""The same corpus on every engine leaves the same rows, each once, and a second run finds nothing new; and a cache that
is thinned there is the in-process runner's, byte by byte."""

from schemas import Cache
from tests.engines.flink import embedded_flags
from tests.engines.jobs import assert_same_bytes, assert_same_rows, precompute, thin_call
from tests.engines.servers import engine

COUNTED = ("documents", "duplicates", "known_documents", "new_documents", "rejects", "shards")


def check(corpus, teacher, whole, cache, beam, then=()):
    """A run, its rows and counts against the in-process runner's, and a second run; what further calls told."""
    reference, summary = whole
    report = cache.with_name("report")
    first, again, *others = precompute(corpus, teacher, cache, report=report, beam=beam, times=2, then=then)
    assert_same_rows(cache, reference)
    assert {name: first[name] for name in COUNTED} == {name: summary[name] for name in COUNTED}
    assert first["shards"] > 4
    assert (again["committed"], again["new_documents"], again["known_documents"]) == (False, 0, 60)
    assert Cache.open(cache).version == 0
    return others


def check_both(corpus, teacher, whole, thinned, cache, beam):
    """The same, and the same of a thinning."""
    small = cache.with_name("small")
    calls = [thin_call(thinned[0], small, beam)] * 2
    made, nothing = check(corpus, teacher, whole, cache, beam, calls)
    assert_same_bytes(small, thinned[1])
    assert (made["committed"], made["added_shards"] > 4, nothing["committed"]) == (True, True, False)
    assert Cache.open(small).version == 0


def test_prism(tmp_path, corpus, teacher, whole, thinned):
    binary = engine("bin/prism")
    beam = ["--runner=PrismRunner", f"--prism_location={binary}", "--environment_type=LOOPBACK"]
    check_both(corpus, teacher, whole, thinned, tmp_path / "cache", beam)


def test_flink_embedded(tmp_path, corpus, teacher, whole, thinned, embedded):
    check_both(corpus, teacher, whole, thinned, tmp_path / "cache", embedded_flags(embedded))


def test_every_bundle_twice_in_process(tmp_path, corpus, teacher, whole, thinned):
    check_both(corpus, teacher, whole, thinned, tmp_path / "cache", ["--direct_runner_bundle_repeat=2"])
