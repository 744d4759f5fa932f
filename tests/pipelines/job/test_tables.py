"""Runs over CSV and TSV: the same examples as over JSONL, what is no row counted, what is no table refused first."""

import json

import pytest

import teachonce
from schemas import Cache
from schemas.errors import CorpusError, TruncatedFileError
from tests.pipelines.corpus.test_tables import write_table
from tests.pipelines.helpers import compress, documents, read, rejects, run, write_jsonl
from tests.pipelines.models import classifier

TEXTS = [{"id": str(i), "text": d["text"] + '\n"and", more'} for i, d in enumerate(documents(9))]


@pytest.fixture(scope="module")
def from_json(tmp_path_factory, teacher):
    folder = tmp_path_factory.mktemp("json")
    run(write_jsonl(folder / "c.jsonl", TEXTS), teacher, folder / "c", id_field="id")
    return read(folder / "c").keys()


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.csv.gz", "c.tsv.zst"])
def test_a_run_has_the_examples_of_the_same_records_in_json(tmp_path, teacher, from_json, name):
    stem, _, suffix = name.removeprefix("c.").partition(".")
    path = write_table(tmp_path / f"c.{stem}", TEXTS, stem)
    path = compress(path, f".{suffix}") if suffix else path
    summary = run(path, teacher, tmp_path / "c", id_field="id")
    assert (summary.documents, dict(summary.rejects)) == (len(TEXTS), {})
    assert read(tmp_path / "c").keys() == from_json
    Cache.open(tmp_path / "c").verify()


def test_labels_by_number_are_those_of_json(tmp_path):
    made = classifier(tmp_path / "t")
    rows = [{**row, "label": i % 3} for i, row in enumerate(TEXTS)]
    flags = {"task": "sequence-classification", "label_field": "label"}
    run(write_jsonl(tmp_path / "c.jsonl", rows), made, tmp_path / "a", **flags)
    summary = run(write_table(tmp_path / "c.csv", rows), made, tmp_path / "b", **flags)
    assert read(tmp_path / "a").keys() == read(tmp_path / "b").keys()
    assert dict(summary.labels) == {"numbers": len(rows)}


def test_what_is_no_row_is_counted_with_its_place(tmp_path, teacher):
    path = write_table(tmp_path / "c.csv", TEXTS, lineterminator="\n")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"one\n\n" + b"8,\xff\n" + b"9,\n")
    summary = run(path, teacher, tmp_path / "c", id_field="id", max_reject_fraction=0.5)
    found = [(e["reason"], e["offset"], e["id"]) for e in rejects(tmp_path / "c", summary)]
    assert sorted(found) == [
        ("bad_row", size, None),
        ("empty", size + 9, "9"),
        ("invalid_utf8", size + 5, None),
    ]
    assert summary.blank_lines == 1


def test_what_cannot_be_read_to_its_end_fails_the_run(tmp_path, teacher):
    path = write_table(tmp_path / "c.csv", TEXTS)
    packed = compress(path, ".gz")
    packed.write_bytes(packed.read_bytes()[:-6])
    with pytest.raises(TruncatedFileError):
        run(packed, teacher, tmp_path / "c")
    path.write_bytes(path.read_bytes() + b'7,"open\n')
    with pytest.raises(CorpusError, match="never closed"):
        run(path, teacher, tmp_path / "c")
    assert not (tmp_path / "c" / "_delta_log").exists()


@pytest.mark.parametrize("verb", ["precompute", "plan", "inspect"])
@pytest.mark.parametrize(
    ("header", "flags", "told"),
    [
        ("id,body", (), "--text_field text: a table's header names no such field"),
        ("id,text,text", (), "text 2 times"),
        ("id,,text", (), "no name, as field 2 of 3"),
        ("id,text", ("--id_field", "key"), "--id_field key"),
        ("id,text", ("--messages_field", "text"), "--messages_field: a field of a table is text"),
    ],
)
def test_a_header_that_will_not_do_is_one_error_before_the_teacher(
    tmp_path, capsys, verb, header, flags, told
):
    for number in range(20):  # the bad one is none of those that are looked into
        (tmp_path / f"{number:02}.csv").write_text("id,key,text\n1,2,a\n")
    (tmp_path / "13.csv").write_text(header + "\n")
    if "messages" in told or "key" in told:
        (tmp_path / "00.csv").write_text(header + "\n")
    cache = [] if verb == "inspect" else ["--task", "causal-lm", "--cache", str(tmp_path / "cache")]
    where = ["--corpus", str(tmp_path / "*.csv"), "--teacher", str(tmp_path / "no-teacher"), *cache]
    assert teachonce.main([verb, *where, *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line


def test_inspect_shows_rows_and_where_they_stand(tmp_path, teacher, capsys):
    path = tmp_path / "c.tsv"
    path.write_bytes(b'id\ttext\n1\t"two\nlines"\n2\n')
    assert teachonce.main(["inspect", "--corpus", str(path), "--teacher", str(teacher)]) == 0
    out = capsys.readouterr().out
    assert "c.tsv byte 8" in out
    assert "c.tsv byte 22" in out
    assert "bad_row: expected 2 fields, as in the header, got 1, on line 4" in out
    assert teachonce.main(["inspect", "--corpus", str(path), "--teacher", str(teacher), "--json"]) == 0
    assert [one["offset"] for one in json.loads(capsys.readouterr().out)] == [8, 22]
