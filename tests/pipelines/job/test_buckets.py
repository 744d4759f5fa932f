"""Corpus and cache meet in buckets: however many there are, and however short their lists, a run does the same."""

import itertools
import sys

import pytest
from apache_beam.pvalue import TaggedOutput

from pipelines.corpus.documents import Document
from pipelines.job import lists, steps
from pipelines.job import run as run_module
from pipelines.job.existing_rows import BUCKET_BYTES, BUCKET_ROWS, bucket_of, in_buckets, num_buckets
from pipelines.job.lists import in_lists
from pipelines.job.run import prepare
from tests.pipelines.helpers import config, read, run


def made(text):
    return tuple(Document(text.encode(), None, text, None, None, "c.jsonl", 0))


@pytest.mark.parametrize("buckets", [1, 2, 7, 2**24])
def test_buckets_are_equal_ranges_of_hashes(buckets):
    edges = [b"\0" * 16, b"\x7f" + b"\xff" * 15, b"\x80" + b"\0" * 15, b"\xff" * 16]
    found = [bucket_of(edge, buckets) for edge in edges]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, buckets - 1)
    assert found == [int.from_bytes(edge, "big") * buckets // 2**128 for edge in edges]


def test_there_are_as_many_as_corpus_or_cache_needs():
    assert num_buckets(0, 0) == 1
    assert num_buckets(BUCKET_BYTES * 5, 1) == 5
    assert num_buckets(1, BUCKET_ROWS * 3 + 1) == 4


def test_what_is_read_falls_into_buckets_whole(monkeypatch):
    windows = [(bytes([n * 37 % 256]) * 16, (n,)) for n in range(100)]
    found = list(in_buckets("shard", lambda source, root: iter(windows), 5, root="r"))
    assert sorted(one for _, part in found for one in part) == sorted(windows)
    assert all(bucket_of(digest, 5) == bucket for bucket, part in found for digest, _ in part)
    assert len(found) == 5


def test_lists_end_where_they_are_long_enough_and_tags_go_by(monkeypatch):
    monkeypatch.setattr(lists, "LIST_DOCUMENTS", 3)
    monkeypatch.setattr(lists, "LIST_BYTES", 2 * 300 + 50)
    tag = TaggedOutput("counts", ("a", 1))
    found = list(in_lists([(made("a"), []), tag, (made("b" * 20), []), (made("c"), [0]), (made("d"), [])]))
    assert found[0] is tag
    assert [[one[0][2] for one in part] for part in found[1:]] == [["a", "b" * 20], ["c", "d"]]


@pytest.mark.parametrize(("buckets", "held"), [(1, 2**23), (40, 2**23), (3, 100)])
def test_a_run_scores_the_same_in_however_many_buckets(
    tmp_path, corpus, teacher, whole, monkeypatch, buckets, held
):
    monkeypatch.setattr(run_module, "num_buckets", lambda *_: buckets)
    monkeypatch.setattr(lists, "HELD_BYTES", held)
    monkeypatch.setattr(lists, "LIST_DOCUMENTS", 2)
    first = run(corpus, teacher, tmp_path / "c")
    assert (first.documents, first.new_documents) == (24, 24)
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()
    again = run(corpus, teacher, tmp_path / "c")
    assert (again.committed, again.known_documents, again.new_documents) == (False, 24, 0)


def test_examples_that_carry_much_go_on_in_lists_of_so_many_bytes(tmp_path, corpus, teacher, monkeypatch):
    job, _ = prepare(config(corpus, teacher, tmp_path / "c"))
    step = steps.Tokenise(job.config, job.run)
    step.setup()
    element = [(made(f"Text {number} of a few."), []) for number in range(9)]

    def parts():
        return [part for part in step.process(element) if not isinstance(part, TaggedOutput)]

    [together] = parts()
    monkeypatch.setattr(lists, "EXAMPLES_BYTES", lists.size_of(together[0]))
    assert [len(part) for part in parts()] == [2, 2, 2, 2, 1]
    assert list(itertools.chain.from_iterable(parts())) == together


def test_the_words_of_a_document_count_too():
    plain = Document(*made("a b"))
    told = plain._replace(words=tuple(range(4_000)))
    assert lists.size_of(told) - lists.size_of(plain) >= sys.getsizeof(told.words)
