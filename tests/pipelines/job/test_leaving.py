"""Rows leave with their documents: pruned, or replaced by an edited document's. The teacher is not asked for it."""

import shutil

import numpy as np
import pytest

from pipelines.scoring import handler
from schemas import Cache
from schemas.errors import TooManyMissingError, TruncatedFileError, UsageError
from tests.pipelines.helpers import compress, config, documents, read, run, unable, write_jsonl

ALL = {"max_prune_fraction": 1.0}
IDS = {"id_field": "id", "unit_tokens": 400, "row_group_tokens": 100}


@pytest.fixture
def copy(tmp_path, whole):
    """A copy of the finished cache, to change."""
    return shutil.copytree(whole[0], tmp_path / "copy")


@pytest.fixture(scope="module")
def with_ids(tmp_path_factory, teacher):
    """A finished cache of ten documents that have ids."""
    folder = tmp_path_factory.mktemp("ids")
    run(write_jsonl(folder / "a.jsonl", numbered(10)), teacher, folder / "cache", **IDS)
    return folder / "cache"


@pytest.fixture
def own(tmp_path, with_ids):
    return shutil.copytree(with_ids, tmp_path / "own")


def numbered(count: int) -> list[dict]:
    return [{"id": f"d{i}", **document} for i, document in enumerate(documents(count))]


def no_teacher(monkeypatch):
    def refuse(*_):
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(handler, "open_teacher", refuse)


def ids_of(cache) -> set[str]:
    return {row["document_id"] for row in read(cache).values()}


def equal(one: dict, other: dict) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_rows_of_documents_that_are_gone_leave_in_one_commit_without_the_teacher(
    tmp_path, copy, teacher, monkeypatch
):
    no_teacher(monkeypatch)
    before = read(copy)
    tonight = write_jsonl(tmp_path / "tonight.jsonl", documents(24)[3:])
    summary = run(tonight, teacher, copy, prune=True, **ALL)
    after = read(copy)
    opened = Cache.open(copy)
    assert (summary.committed, summary.version, summary.totals.examples) == (True, 1, 0)
    assert summary.pruned_examples == len(before) - len(after) > 0
    assert all(equal(row, before[key]) for key, row in after.items())
    assert opened.verify().examples == opened.totals.examples == len(after)
    assert read(Cache.open(copy, 0)).keys() == before.keys()
    assert opened.record.provenance["device"] == "cpu"
    assert run(tonight, teacher, copy, prune=True, **ALL).committed is False


def test_what_left_is_exactly_what_a_run_over_less_would_not_hold(tmp_path, copy, teacher):
    tonight = write_jsonl(tmp_path / "tonight.jsonl", documents(30)[5:])
    run(tonight, teacher, copy, prune=True, **ALL)
    run(tonight, teacher, tmp_path / "fresh")
    assert read(copy).keys() == read(tmp_path / "fresh").keys()
    mine, fresh = Cache.open(copy).totals, Cache.open(tmp_path / "fresh").totals
    for name in ("examples", "tokens", "positions", "entries", "clamped_codes", "length_histogram"):
        assert getattr(mine, name) == getattr(fresh, name)
    # the rows that were copied tell their entropies rounded: errors of half a step at most, with no mean
    rounding = Cache.open(copy).spec.scalar_step_nats / 2 * mine.positions**0.5
    assert mine.entropy_sum_nats == pytest.approx(fresh.entropy_sum_nats, abs=rounding)
    assert mine.kept_mass_sum == pytest.approx(fresh.kept_mass_sum, rel=0.05)


def test_a_shard_of_which_every_row_leaves_is_only_removed(tmp_path, copy, teacher):
    run(write_jsonl(tmp_path / "new.jsonl", documents(26)), teacher, copy)
    run(write_jsonl(tmp_path / "old.jsonl", documents(24)), teacher, copy, prune=True, **ALL)
    assert Cache.open(copy).shards == Cache.open(copy, 0).shards


def test_too_many_missing_rows_are_refused_before_the_teacher(tmp_path, copy, teacher, monkeypatch):
    no_teacher(monkeypatch)
    tonight = write_jsonl(tmp_path / "tonight.jsonl", documents(60)[12:])
    with pytest.raises(TooManyMissingError, match=r"--prune would remove \d+ of \d+ rows.*at most 5\.00%"):
        run(tonight, teacher, copy, prune=True)
    assert Cache.open(copy).version == 0


def test_without_the_flag_nothing_leaves(tmp_path, copy, teacher):
    before = read(copy)
    summary = run(write_jsonl(tmp_path / "t.jsonl", documents(2)), teacher, copy)
    assert (summary.committed, summary.pruned_examples) == (False, 0)
    assert read(copy).keys() == before.keys()


def test_a_glob_that_matches_nothing_or_a_file_that_was_cut_prunes_nothing(tmp_path, copy, teacher):
    file = write_jsonl(tmp_path / "a" / "t.jsonl", documents(20))
    with pytest.raises(UsageError, match="matches no file"):
        run([file, tmp_path / "b" / "*.jsonl"], teacher, copy, prune=True, **ALL)
    cut = compress(file, ".gz")
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(TruncatedFileError):
        run(cut, teacher, copy, prune=True, **ALL)
    assert Cache.open(copy).version == 0


def test_a_damaged_record_could_be_any_document_so_nothing_is_pruned(tmp_path, copy, teacher):
    records = [*documents(24)[2:], b'{"text": "cut in the mid']
    tonight = write_jsonl(tmp_path / "t.jsonl", records)
    summary = run(tonight, teacher, copy, prune=True, max_reject_fraction=0.5, **ALL)
    assert (summary.prune_withheld, summary.pruned_examples, summary.committed) == (1, 0, False)


def test_a_document_that_is_rejected_tonight_is_not_a_missing_one(tmp_path, copy, teacher):
    before = read(copy)
    longest = max(len(document["text"]) for document in documents(24))
    tonight = write_jsonl(tmp_path / "t.jsonl", documents(24))
    flags = {"max_document_chars": longest - 1, "max_reject_fraction": 0.5}
    summary = run(tonight, teacher, copy, prune=True, **flags, **ALL)
    assert sum(summary.rejects.values()) > 0
    assert summary.pruned_examples == 0
    assert read(copy).keys() == before.keys()


def test_with_ids_a_rejected_document_keeps_its_rows_and_one_without_an_id_keeps_all(tmp_path, own, teacher):
    bad = [{"id": "d0", "text": 7}, *numbered(10)[1:9]]
    flags = {**IDS, "prune": True, "max_reject_fraction": 0.5, **ALL}
    assert run(write_jsonl(tmp_path / "a.jsonl", bad), teacher, own, **flags).pruned_examples > 0
    assert ids_of(own) == {f"d{i}" for i in range(9)}
    nameless = [{"text": "no id"}, *numbered(10)[1:5]]
    summary = run(write_jsonl(tmp_path / "b.jsonl", nameless), teacher, own, **flags)
    assert (summary.prune_withheld, summary.pruned_examples) == (1, 0)


def test_an_edited_document_replaces_its_old_rows_and_no_others(tmp_path, own, teacher):
    before = read(own)
    edited = {"id": "d4", "text": "quite another text"}
    summary = run(write_jsonl(tmp_path / "a.jsonl", [edited]), teacher, own, replace=True, **IDS)
    after = read(own)
    old = {key for key, row in before.items() if row["document_id"] == "d4"}
    assert (summary.replaced_examples, summary.pruned_examples) == (len(old), 0)
    assert before.keys() - after.keys() == old
    assert [row["document_id"] for key, row in after.items() if key not in before] == ["d4"]
    Cache.open(own).verify()


@pytest.mark.parametrize("flag", ["replace", "prune"])
def test_an_edited_document_that_is_rejected_later_than_when_read_keeps_its_old_rows(
    tmp_path, own, teacher, monkeypatch, flag
):
    """By the tokeniser (one token predicts nothing), or by the teacher: also in the nights after."""
    before = read(own)
    edited = {"d1": "a", "d2": "not to be scored", "d3": "quite another text"}
    records = [{**record, "text": edited.get(record["id"], record["text"])} for record in numbered(10)]
    tonight = write_jsonl(tmp_path / "a.jsonl", records)
    flags = {**IDS, flag: True, "max_reject_fraction": 0.5}
    old = {key: row["document_id"] for key, row in before.items()}
    stay = {key for key, document in old.items() if document != "d3"}
    with monkeypatch.context() as patch:
        unable(patch, lambda example: example.document_id == "d2")
        first = run(tonight, teacher, own, **flags)
    assert dict(first.rejects) == {"not_finite": 1, "nothing_supervised": 1}
    assert (first.replaced_examples, first.pruned_examples) == (len(old) - len(stay), 0)
    assert before.keys() & read(own).keys() == stay
    second = run(tonight, teacher, own, **flags)
    assert (second.committed, second.remembered_documents) == (False, 1)
    third = run(tonight, teacher, own, **flags, retry_rejects=True)
    assert third.replaced_examples == sum(document == "d2" for document in old.values())
    assert {old[key] for key in old.keys() - read(own).keys()} == {"d2", "d3"}


def test_without_replace_both_states_of_an_edited_document_stay(tmp_path, own, teacher):
    before = read(own)
    run(write_jsonl(tmp_path / "a.jsonl", [{"id": "d4", "text": "another"}]), teacher, own, **IDS)
    assert before.keys() < read(own).keys()


def test_prune_with_ids_replaces_too(tmp_path, own, teacher):
    records = [{"id": "d0", "text": "edited"}, *numbered(10)[2:]]
    summary = run(write_jsonl(tmp_path / "a.jsonl", records), teacher, own, prune=True, **IDS, **ALL)
    assert summary.pruned_examples > 0 < summary.replaced_examples
    run(write_jsonl(tmp_path / "b.jsonl", records), teacher, tmp_path / "fresh", **IDS)
    assert read(own).keys() == read(tmp_path / "fresh").keys()


def test_a_document_that_comes_back_is_computed_again(tmp_path, copy, teacher):
    before = read(copy)
    run(write_jsonl(tmp_path / "a.jsonl", documents(24)[1:]), teacher, copy, prune=True, **ALL)
    summary = run(write_jsonl(tmp_path / "b.jsonl", documents(24)), teacher, copy)
    assert (summary.new_documents, summary.adopted_documents) == (1, 0)
    assert read(copy).keys() == before.keys()


def test_replace_needs_ids():
    with pytest.raises(ValueError, match="replace without id_field"):
        config("a.jsonl", "t", "c", replace=True)
