"""`forget`: rows leave every version, and nothing of them is left in the folder."""

import json

import pytest

from pipelines.upkeep import forgetting
from pipelines.upkeep.erasure import as_hash
from schemas import Cache
from schemas.errors import CorruptionError, NoCacheError, TeachonceError
from schemas.storage.storage import Storage
from schemas.versions.history import LEASES_FOLDER
from schemas.versions.memory import UNSCORED_FOLDER, Unscored, remembered_names, write_unscored
from tests.pipelines.helpers import read, run
from tests.pipelines.people import FLAGS, call, document_of, orphan_of, traces
from tests.synthetic import add, begin, causal_spec, random_rows


def test_by_document_id_every_trace_is_gone_and_the_rest_is_untouched(nights):
    cache, _ = nights
    before = read(cache)
    digest, examples = document_of(cache, "user-3")
    needles = ("secret-of-3.", "user-3'", digest, *examples)
    orphan = orphan_of(cache, "user-3")
    (cache / f"{orphan}.part-0123abcd").write_bytes(b"PAR1 secret-of-3.")
    held = traces(cache, *needles)
    assert orphan in held
    assert len(held) >= 3
    done = call(cache, "user-3")
    assert (done.committed, done.version, done.documents) == (True, 2, 1)
    assert (done.examples, done.not_found) == (len(examples), ())
    assert done.deleted_files == len(held)
    assert done.deleted_bytes > 0
    assert traces(cache, *needles) == set()
    after = Cache.open(cache)
    assert after.verify().examples == len(before) - len(examples)
    rows = read(cache)
    assert rows.keys() == before.keys() - set(examples)
    assert all((rows[e]["logprobs"] == before[e]["logprobs"]).all() for e in rows)
    assert all(rows[e]["text"] == before[e]["text"] for e in rows)
    assert done.unreadable_versions == (0, 1)
    for version in (0, 1):
        with pytest.raises(NoCacheError, match=f"version {version} can no longer be read"):
            Cache.open(cache, version).verify()
    assert after.storage.names(LEASES_FOLDER) == []
    told = json.loads((cache / "_teachonce" / "runs" / f"{done.run}.json").read_text())
    assert (told["examples"], told["version"]) == (len(examples), 2)


def test_shards_that_never_held_it_stay_as_they_are(nights):
    cache, _ = nights
    digest, examples = document_of(cache, "user-17")
    opened = Cache.open(cache)
    clean = {s for s in opened.shards if not set(opened.identities(s).example_ids) & set(examples)}
    done = call(cache, "user-17")
    assert clean < set(opened.shards)
    assert clean <= set(Cache.open(cache).shards)
    assert done.rewritten_shards == len(opened.shards) - len(clean)
    assert done.unreadable_versions == (1,), "the first night did not know user-17"
    assert Cache.open(cache, 0).verify().examples > 0
    assert traces(cache, digest) == set()


def test_lines_about_it_leave_too(nights):
    cache, _ = nights
    storage = Storage.at(cache)
    digest, examples = document_of(cache, "user-3")
    other, _ = document_of(cache, "user-4")
    header = Cache.open(cache).header
    write_unscored(
        storage, header, [Unscored(digest, 1, 3, "not_finite"), Unscored(other, 1, 3, "too_large")]
    )
    write_unscored(storage, header, [Unscored(b"d" * 16, 0, 1, "not_finite")])
    storage.put(f"{UNSCORED_FOLDER}/9-{'0' * 32}.json", b"a damaged list")
    ids = ("user-3", "user-33", None, examples[0].hex(), digest.hex(), "gone-user")
    lines = [json.dumps({"reason": "empty", "file": "f", "offset": n, "id": i}) for n, i in enumerate(ids)]
    storage.put("_teachonce/rejects/r.jsonl", "\n".join([*lines, "no json", ""]).encode())
    storage.put("_teachonce/rejects/s.jsonl", b"")
    done = call(cache, "user-3", "gone-user", (b"d" * 16).hex())
    assert done.not_found == ()
    assert done.remembered_lines == 4 + 2
    assert storage.read("_teachonce/rejects/r.jsonl").decode().split("\n") == [
        lines[1],
        lines[2],
        "no json",
        "",
    ]
    left = [json.loads(storage.read(name))["windows"] for name in remembered_names(storage, UNSCORED_FOLDER)]
    assert left == [[[other.hex(), 1, 3, "too_large"]]]
    assert traces(cache, digest, "user-3'", *examples) == set()
    Cache.open(cache).verify()  # none of the files that went is missed


@pytest.mark.parametrize("place", ["commit_change", "erase", "read_entries"])
def test_a_crash_is_finished_by_the_same_call(nights, teacher, monkeypatch, place):
    cache, corpus = nights
    digest, examples = document_of(cache, "user-3")
    before, real, calls = read(cache), getattr(forgetting, place), []

    def crash(*arguments, **named):
        calls.append(place)
        if place != "read_entries" or len(calls) == 2:
            raise RuntimeError("the power failed")
        return real(*arguments, **named)

    monkeypatch.setattr(forgetting, place, crash)
    with pytest.raises(TeachonceError, match=r"the same call finishes what it began.*the power failed"):
        call(cache, "user-3")
    monkeypatch.undo()
    committed = place != "commit_change"
    assert Cache.open(cache).version == 1 + committed
    assert (digest in {r["document_hash"].tobytes() for r in read(cache).values()}) != committed
    assert bool(traces(cache, digest)) == (place != "read_entries")
    assert run(corpus, teacher, cache, **FLAGS).forgotten_documents == 1, "it is on the list already"
    done = call(cache, "user-3")
    assert done.examples == (0 if committed else len(examples))
    assert traces(cache, digest, "secret-of-3.", *examples) == set()
    assert read(cache).keys() == before.keys() - set(examples)
    assert done.unreadable_versions[:2] == (0, 1)
    Cache.open(cache).verify()


def test_a_broken_live_shard_is_told_and_broken_files_of_no_version_go(nights):
    cache, _ = nights
    shard = Cache.open(cache).shards[0].name
    orphan = cache / f"{'1' * 32}-{'2' * 32}.parquet"
    orphan.write_bytes(b"not a shard at all")
    data = (cache / shard).read_bytes()
    (cache / shard).write_bytes(data[:-30])
    with pytest.raises(CorruptionError, match=rf"a live shard is broken.*{shard}.*--repair"):
        call(cache, "nobody")
    assert orphan.exists()
    (cache / shard).write_bytes(data)
    assert call(cache, "nobody").deleted_files == 1
    assert not orphan.exists()


def test_every_row_may_be_forgotten(tmp_path):
    rows = random_rows(causal_spec(), 6).rows
    storage = begin(tmp_path / "cache", causal_spec())
    add(storage, None, [rows])
    ids = tuple(example.hex() for example in rows.example_ids)
    done = call(tmp_path / "cache", *ids)
    assert (done.examples, done.documents, done.rewritten_shards) == (6, 0, 1)
    assert Cache.open(tmp_path / "cache").verify().examples == 0
    assert not list((tmp_path / "cache").glob("*.parquet"))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ab" * 16, b"\xab" * 16),
        ("AB" * 16, b"\xab" * 16),
        ("ab" * 15, None),
        ("zz" * 16, None),
        ("ab " * 10 + "ab", None),
    ],
)
def test_32_hex_digits_may_be_a_hash(line, found):
    assert as_hash(line) == found
