"""What the teacher could not score is tried once; what was forgotten stays out; a run that is out of time goes on."""

import shutil
import time
from dataclasses import replace

import pytest

from pipelines.job.run import prepare
from pipelines.scoring import handler, rescore
from pipelines.tolerances import NOT_FINITE
from schemas import Cache
from schemas.errors import CorruptionError, DriftError, TooManyRejectsError
from schemas.storage.storage import Storage
from schemas.versions.history import living_runs
from schemas.versions.memory import (
    FORGOTTEN_FOLDER,
    UNSCORED_FOLDER,
    Unscored,
    read_forgotten,
    read_unscored,
    remembered_names,
    write_forgotten,
    write_unscored,
)
from tests.pipelines.helpers import config, documents, read, run, unable, write_jsonl
from tests.pipelines.job.test_orphans import UNITS, Asked, crash
from tests.synthetic import causal_spec, header_of

LENIENT = {"max_reject_fraction": 1.0}


@pytest.fixture
def copy(tmp_path, whole):
    return shutil.copytree(whole[0], tmp_path / "copy")


def bad_documents(cache, count=2):
    return sorted({row["document_hash"].tobytes() for row in read(cache).values()})[:count]


def test_what_could_not_be_scored_is_not_tried_again_unless_asked(
    tmp_path, corpus, teacher, whole, monkeypatch
):
    bad = bad_documents(whole[0])
    with monkeypatch.context() as patch:
        unable(patch, lambda example: example.document_hash in bad)
        first = run(corpus, teacher, tmp_path / "c", **UNITS, **LENIENT)
    assert first.rejects == {NOT_FINITE: 2}
    asked = Asked(monkeypatch)
    second = run(corpus, teacher, tmp_path / "c", **UNITS)
    assert asked == []
    assert (second.committed, second.remembered_documents, second.known_documents) == (False, 2, 22)
    assert second.rejects == {}
    third = run(corpus, teacher, tmp_path / "c", **UNITS, retry_rejects=True)
    assert (third.committed, third.new_documents) == (True, 2)
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()
    assert run(corpus, teacher, tmp_path / "c", **UNITS).committed is False


def test_it_is_remembered_also_by_a_run_that_commits_nothing(tmp_path, teacher, whole, monkeypatch):
    bad = bad_documents(whole[0], 24)
    corpus = write_jsonl(tmp_path / "c.jsonl", documents(24))
    unable(monkeypatch, lambda example: example.document_hash in bad)
    assert run(corpus, teacher, tmp_path / "c", **LENIENT).committed is False
    asked = Asked(monkeypatch)
    assert run(corpus, teacher, tmp_path / "c").remembered_documents == 24
    assert asked == []


@pytest.mark.parametrize("end", ["killed", "too many"])
def test_it_is_remembered_also_by_a_run_that_fails(tmp_path, corpus, teacher, whole, monkeypatch, end):
    bad = bad_documents(whole[0])
    with monkeypatch.context() as patch:
        unable(patch, lambda example: example.document_hash in bad)
        if end == "killed":
            crash(monkeypatch, corpus, teacher, tmp_path / "c")
        else:
            with pytest.raises(TooManyRejectsError, match=r"2 of 24.*not_finite.*say --retry_rejects"):
                run(corpus, teacher, tmp_path / "c", **UNITS)
    asked = Asked(monkeypatch)
    second = run(corpus, teacher, tmp_path / "c", **UNITS)
    assert asked == []
    assert (second.committed, second.adopted_documents, second.remembered_documents) == (True, 22, 2)
    for name in Cache.open(tmp_path / "c").record.memory:
        (tmp_path / "c" / name).unlink()
    with pytest.raises(CorruptionError, match="memory are missing"):
        prepare(config(corpus, teacher, tmp_path / "c"))
    assert living_runs(Storage.at(tmp_path / "c")) == []
    assert prepare(config(corpus, teacher, whole[0]), leased=False)


def test_memory_round_trips_and_a_flipped_bit_in_it_is_seen(tmp_path):
    storage = Storage.at(tmp_path)
    written = [Unscored(b"b" * 16, 1, 2, "too_large"), Unscored(b"a" * 16, 0, 1, "not_finite")]
    header = header_of(causal_spec())
    write_unscored(storage, header, written)
    write_unscored(storage, header, written)
    write_unscored(storage, header, [])
    (name,) = remembered_names(storage, UNSCORED_FOLDER)
    assert read_unscored(storage, header, name) == sorted(written)
    assert read_unscored(storage, header_of(causal_spec(max_length=31)), name) == [], "of another spec"
    other = replace(header, fingerprint=replace(header.fingerprint, weights="another"))
    assert read_unscored(storage, other, name) == [], "of another teacher"
    data = bytearray((tmp_path / name).read_bytes())
    data[10] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorruptionError, match="memory is not what was written"):
        read_unscored(storage, header, name)
    with pytest.raises(CorruptionError, match="is missing"):
        read_unscored(storage, header, name.replace("unscored/", "unscored/1"))


def test_the_list_of_what_is_forgotten_tells_nothing_but_membership(tmp_path):
    storage = Storage.at(tmp_path)
    write_forgotten(storage, [b"h" * 16, "alice@example.org"])
    write_forgotten(storage, ["bob"])
    names = remembered_names(storage, FORGOTTEN_FOLDER)
    listed = read_forgotten(storage, names)
    assert len(names) == 2
    assert [listed.has(item) for item in (b"h" * 16, "alice@example.org", "bob", "carol", b"bob")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert not any(
        word in (tmp_path / name).read_bytes() for name in names for word in (b"alice", b"68" * 16, b"bob")
    )


@pytest.mark.parametrize("what", ["document", "id", "example"])
def test_what_is_forgotten_does_not_come_in(tmp_path, teacher, what):
    records = [{"id": f"d{i}", **document} for i, document in enumerate(documents(12))]
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    flags = {"id_field": "id", **UNITS}
    run(corpus, teacher, tmp_path / "full", **flags)
    full = read(tmp_path / "full")
    key, row = next((key, row) for key, row in full.items() if row["window_count"] == 2)
    item = {"document": row["document_hash"].tobytes(), "id": row["document_id"], "example": key}[what]
    out = {
        k
        for k, r in full.items()
        if (k if what == "example" else r["document_id"])
        == (key if what == "example" else row["document_id"])
    }
    write_forgotten(Storage.at(tmp_path / "c"), [item])
    summary = run(corpus, teacher, tmp_path / "c", **flags)
    assert full.keys() - read(tmp_path / "c").keys() == out
    assert summary.forgotten_documents == (what != "example")
    assert run(corpus, teacher, tmp_path / "c", **flags).committed is False


def test_a_run_that_is_out_of_time_commits_what_is_finished_and_the_next_goes_on(
    tmp_path, corpus, teacher, whole, monkeypatch
):
    honest, asked = handler.UnitScorer._asked, []
    clock = time.time

    def slow(self, *given):
        asked.append(given)
        monkeypatch.setattr(time, "time", lambda: clock() + 7200 * (len(asked) >= 2))
        return honest(self, *given)

    monkeypatch.setattr(handler.UnitScorer, "_asked", slow)
    first = run(corpus, teacher, tmp_path / "c", **UNITS, max_hours=1.0)
    assert len(asked) == 2
    assert (first.shards, first.committed) == (2, True)
    assert first.postponed_examples == len(read(whole[0])) - first.totals.examples > 0
    monkeypatch.undo()
    second = run(corpus, teacher, tmp_path / "c", **UNITS, max_hours=1.0)
    assert (second.postponed_examples, second.totals.examples) == (0, first.postponed_examples)
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()


def test_rows_leave_only_when_what_replaces_them_has_come(tmp_path, teacher, monkeypatch):
    """A night of edited documents that runs out of time: nothing leaves before the next one."""
    records = [{"id": f"d{i}", **document} for i, document in enumerate(documents(8))]
    flags = {**UNITS, "id_field": "id", "replace": True}
    run(write_jsonl(tmp_path / "a.jsonl", records), teacher, tmp_path / "c", **flags)
    before = read(tmp_path / "c")
    edited = write_jsonl(tmp_path / "b.jsonl", [{**r, "text": f"edited {r['text']}"} for r in records])
    honest, clock = handler.UnitScorer.score, time.time

    def late(self, unit, examples):
        monkeypatch.setattr(
            time, "time", lambda: clock() + 7200
        )  # the time is over while it waits for its turn
        return honest(self, unit, examples)

    with monkeypatch.context() as patch:
        patch.setattr(handler.UnitScorer, "score", late)
        summary = run(edited, teacher, tmp_path / "c", max_hours=1.0, **flags)
    monkeypatch.setattr(time, "time", clock)
    assert summary.postponed_examples > 0 == summary.replaced_examples
    assert read(tmp_path / "c").keys() >= before.keys()
    assert run(edited, teacher, tmp_path / "c", **flags).replaced_examples == len(before)
    assert not read(tmp_path / "c").keys() & before.keys()


def test_a_drift_that_is_no_number_is_refused(tmp_path, copy, teacher, monkeypatch):
    other, honest = handler.teacher_provenance, rescore.compare
    monkeypatch.setattr(handler, "teacher_provenance", lambda *a: {**other(*a), "torch": "9.9"})
    monkeypatch.setattr(rescore, "compare", lambda *a: replace(honest(*a), mean_kl_nats=float("nan")))
    with pytest.raises(DriftError, match="got nan"):
        run(write_jsonl(tmp_path / "more.jsonl", documents(30)), teacher, copy)


def test_a_teacher_that_is_run_otherwise_scores_a_sample_again(tmp_path, copy, teacher, monkeypatch):
    more = write_jsonl(tmp_path / "more.jsonl", documents(30))
    honest, compared = rescore.compare, []
    monkeypatch.setattr(rescore, "compare", lambda *a: compared.append(honest(*a)) or compared[-1])
    run(more, teacher, copy)
    assert compared == []
    other = handler.teacher_provenance
    monkeypatch.setattr(handler, "teacher_provenance", lambda *a: {**other(*a), "device_name": "another"})
    run(write_jsonl(tmp_path / "more2.jsonl", documents(32)), teacher, copy)
    assert [found.examples > 20 for found in compared] == [True]
    assert Cache.open(copy).record.provenance["device_name"] == "another"


def test_a_teacher_that_drifted_is_refused(tmp_path, copy, teacher, monkeypatch):
    other = handler.teacher_provenance
    monkeypatch.setattr(handler, "teacher_provenance", lambda *a: {**other(*a), "torch": "9.9"})
    honest = rescore.compare
    monkeypatch.setattr(
        rescore, "compare", lambda *a: honest(*a).__class__(**{**honest(*a).to_json(), "mean_kl_nats": 0.3})
    )
    more = write_jsonl(tmp_path / "more.jsonl", documents(30))
    with pytest.raises(DriftError, match=r"torch: .* -> 9\.9.*at most 0\.005 nats.*got 0\.3"):
        run(more, teacher, copy)
    assert Cache.open(copy).version == 0
    assert run(more, teacher, copy, max_drift_kl=0.5).committed
