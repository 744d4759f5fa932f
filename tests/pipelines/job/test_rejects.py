"""Rejects: each counted, and written with its source, reason and id, never its text; too many fail the run."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import tolerances
from pipelines.corpus import files as corpus_module
from pipelines.job import pipeline as job
from pipelines.scoring import handler
from schemas import Cache
from schemas.errors import NoCacheError, TooManyRejectsError, UsageError
from tests.pipelines.helpers import compress, documents, read, rejects, run, write_jsonl, write_parquet

BAD = [
    (b'{"text": "SECRET', "not_json", None),
    (b'{"id": "b", "no": "SECRET"}', "field_missing", "b"),
    (b'{"id": "c", "text": ["SECRET"]}', "not_a_string", "c"),
    (b'{"id": "d", "text": "  "}', "empty", "d"),
    (b'{"id": "e", "text": "SECRET \xff"}', "invalid_utf8", None),
    (b'{"id": "\\ud800", "text": "SECRET"}', "invalid_utf8", None),
    (b'{"id": 7, "text": "%s"}' % (b"SECRET" * 60), "too_long", "7"),
    (b"[" * 100_000, "not_json", None),
]
GOOD = [{"id": f"good{i}", **document} for i, document in enumerate(documents(8))]
FLAGS = {"id_field": "id", "max_document_chars": 300, "max_reject_fraction": 0.6}


def mixed():
    """Good and bad records in turn, with blank lines between."""
    return [part for bad, good in zip(BAD, GOOD, strict=True) for part in (bad[0], good, b"", b" ")]


@pytest.mark.parametrize(("suffix", "piece_bytes"), [("", 64), ("", 2**26), (".gz", 64), (".zst", 64)])
def test_every_reject_is_written_with_its_source(tmp_path, teacher, monkeypatch, suffix, piece_bytes):
    monkeypatch.setattr(corpus_module, "PIECE_BYTES", piece_bytes)
    plain = write_jsonl(tmp_path / "c.jsonl", mixed())
    file = compress(plain, suffix, frames=2) if suffix else plain
    summary = run(file, teacher, tmp_path / "c", **FLAGS)
    data, lines = plain.read_bytes(), rejects(tmp_path / "c", summary)
    assert sorted((e["reason"], e["id"] or "") for e in lines) == sorted((r, i or "") for _, r, i in BAD)
    for entry in lines:
        assert set(entry) == {"reason", "file", "offset", "id", "line", "field", "expected", "got"}
        assert entry["line"] == 1 + data[: entry["offset"]].count(b"\n")
        assert entry["expected"]
        assert entry["field"] is None or entry["field"] in FLAGS.values() or entry["field"] == "text"
        assert entry["file"] == str(file)
        raw = data[entry["offset"] :].split(b"\n")[0]
        assert (raw, entry["reason"], entry["id"]) in BAD
    counted = {reason: sum(r == reason for _, r, _ in BAD) for _, reason, _ in BAD}
    assert dict(summary.rejects) == counted == Cache.open(tmp_path / "c").record.rejects
    assert (summary.documents, summary.blank_lines) == (16, 16)
    assert {row["document_id"] for row in read(tmp_path / "c").values()} == {g["id"] for g in GOOD}
    assert "SECRET" not in (tmp_path / "c" / "_teachonce" / "rejects" / f"{summary.run}.jsonl").read_text()


def test_a_parquet_row_is_named_by_its_number(tmp_path, teacher):
    rows = [{"text": d["text"], "id": f"k{i}"} for i, d in enumerate(documents(12))]
    rows[4]["text"], rows[7]["text"], rows[11]["id"] = None, " ", None
    file = write_parquet(tmp_path / "c.parquet", rows)
    summary = run(file, teacher, tmp_path / "c", id_field="id", max_reject_fraction=0.3)
    found = [(line["reason"], line["offset"], line["id"]) for line in rejects(tmp_path / "c", summary)]
    assert found == [("empty", 7, "k7"), ("field_missing", 4, "k4"), ("field_missing", 11, None)]


def test_a_parquet_string_that_is_not_utf8_is_rejected_alone(tmp_path, teacher):
    values = [d["text"].encode() for d in documents(6)]
    values[3] = b"SECRET \xff\xfe"
    table = pa.table({"text": pa.array(values, pa.binary()).view(pa.string())})
    pq.write_table(table, tmp_path / "c.parquet")
    summary = run(tmp_path / "c.parquet", teacher, tmp_path / "c", max_reject_fraction=0.2)
    [line] = rejects(tmp_path / "c", summary)
    assert (line["reason"], line["offset"], summary.new_documents) == ("invalid_utf8", 3, 5)


@pytest.fixture
def no_teacher(monkeypatch):
    def refuse(*_):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(handler, "open_teacher", refuse)


@pytest.mark.usefixtures("no_teacher")
@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_wrong_text_field_is_found_before_the_teacher_starts(tmp_path, teacher, write):
    name = "c.jsonl" if write is write_jsonl else "c.parquet"
    file = write(tmp_path / name, documents(9))
    with pytest.raises(UsageError, match=r"--text_field content: none of the first 9 records .*: text"):
        run(file, teacher, tmp_path / "c", text_field="content")
    assert not (tmp_path / "c").exists()


@pytest.mark.usefixtures("no_teacher")
def test_a_run_that_fails_of_its_rejects_tells_the_first_with_line_and_field(tmp_path, teacher):
    file = write_jsonl(tmp_path / "c.jsonl", [*documents(2), {"text": ["SECRET"]}, {"text": 3}])
    with pytest.raises(
        TooManyRejectsError, match="2 of 4 documents are rejected, most as not_a_string"
    ) as error:
        run(file, teacher, tmp_path / "c")
    assert f"{file} line 3: field text, expected a string, got a list of 1" in str(error.value)
    with pytest.raises(NoCacheError):
        Cache.open(tmp_path / "c")
    [written] = (tmp_path / "c" / "_teachonce" / "rejects").glob("*.jsonl")
    assert str(written) in str(error.value)
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert [(line["line"], line["field"], line["got"]) for line in lines] == [
        (3, "text", "a list of 1"),
        (4, "text", "a whole number"),
    ]


@pytest.mark.usefixtures("no_teacher")
def test_a_tokenisers_rejects_count_before_the_teacher_starts(tmp_path, teacher):
    records = [{"messages": [{"role": "user", "content": "Nobody answers."}]}] * 3
    file = write_jsonl(tmp_path / "c.jsonl", [*records, {"messages": "no"}])
    flags = {"messages_field": "messages", "supervise": "assistant"}
    with pytest.raises(TooManyRejectsError, match="2 of 4 documents"):
        run(file, teacher, tmp_path / "c", **flags)


def test_the_tolerance_is_a_share_of_the_documents_read_repeats_included(tmp_path, teacher):
    corpus = write_jsonl(tmp_path / "c.jsonl", documents(1) * 9 + [{"no": 1}])
    with pytest.raises(TooManyRejectsError, match=r"expected at most 9\.99%, got 10\.00%"):
        run(corpus, teacher, tmp_path / "c", max_reject_fraction=0.0999)
    assert run(corpus, teacher, tmp_path / "c", max_reject_fraction=0.1).rejects == {"field_missing": 1}


def test_at_most_so_many_lines_a_reason_are_written_and_all_are_counted(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(tolerances, "MAX_REJECT_LINES", 5)
    monkeypatch.setattr(job, "MAX_REJECT_LINES", 5)
    bad = [{"no": i} for i in range(30)] + [b"{"] * 3
    corpus = write_jsonl(tmp_path / "c.jsonl", bad + documents(3))
    summary = run(corpus, teacher, tmp_path / "c", max_reject_fraction=1.0)
    lines = rejects(tmp_path / "c", summary)
    assert summary.rejects == {"field_missing": 30, "not_json": 3}
    firsts = [line["offset"] for line in lines if line["reason"] == "field_missing"]
    expected = [sum(len(json.dumps(d)) + 1 for d in bad[:i]) for i in range(5)]
    assert (firsts, len(lines)) == (expected, 8)


def test_a_run_of_which_every_document_is_rejected_commits_nothing(tmp_path, teacher):
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": 1}])
    summary = run(corpus, teacher, tmp_path / "c", max_reject_fraction=1.0)
    assert (summary.committed, summary.version) == (False, -1)
    with pytest.raises(NoCacheError):
        Cache.open(tmp_path / "c")


def test_unknown_labels_are_rejected(tmp_path, classifier):
    labels = ["label0", "label9", 2, 3]
    records = [{**d, "label": label} for d, label in zip(documents(4), labels, strict=True)]
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    flags = {"task": "sequence-classification", "label_field": "label", "max_reject_fraction": 0.5}
    assert run(corpus, classifier, tmp_path / "c", **flags).rejects == {"unknown_label": 2}
