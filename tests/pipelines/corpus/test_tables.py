"""CSV and TSV: the rows that Python's `csv` wrote, at the bytes where they stand; what is no row is told."""

import csv
import random
import tracemalloc

import pytest

from pipelines.config import CorpusConfig
from pipelines.corpus import lines as lines_module
from pipelines.corpus.documents import Source, parse
from pipelines.corpus.files import find_pieces, read_piece
from pipelines.corpus.labels import LabelMap
from pipelines.corpus.lines import BadRow, LongLine, Record
from pipelines.rejects import RejectedError
from schemas.errors import CorpusError, TruncatedFileError, UsageError
from tests.pipelines.helpers import compress, line

ROWS = [
    {"id": "1", "text": 'two\nlines, "quoted"\r\nand\ttabs', "label": "2"},
    {"id": "2", "text": "é plain", "label": ""},
    {"id": "3", "text": "\n\n", "label": "x\n"},
]


def write_table(path, rows, kind="csv", **how):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if kind == "tsv" else ",", **how)
        writer.writeheader()
        writer.writerows(rows)
    return path


def records(path, limit=2**20, **changes):
    pieces = find_pieces(CorpusConfig(files=(str(path),), **changes))
    return [record for piece in pieces for record in read_piece(piece, (), limit)]


def of_bytes(tmp_path, data, limit=2**20, name="c.csv"):
    (tmp_path / name).write_bytes(data)
    return records(tmp_path / name, limit)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_rows_are_those_that_were_written_whatever_cuts_the_chunks(tmp_path, monkeypatch, kind, ends, suffix):
    monkeypatch.setattr(lines_module, "_CHUNK_BYTES", 7)
    plain = write_table(tmp_path / f"c.{kind}", ROWS, kind, lineterminator=ends)
    found = records(compress(plain, suffix, frames=2) if suffix else plain)
    assert [record.value for record in found] == ROWS
    data = plain.read_bytes()
    for record in found:
        assert data[record.offset :].lstrip(b'"').startswith(record.value["id"].encode())


def test_any_table_that_csv_writes_is_read_back(tmp_path):
    dice = random.Random(0)
    for _ in range(200):
        rows = [{n: "".join(dice.choices('a",\r\n\té', k=dice.randrange(6))) for n in "xy"} for _ in range(5)]
        path = write_table(tmp_path / "c.csv", rows, quoting=csv.QUOTE_ALL)
        assert [record.value for record in records(path)] == rows


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    [found] = of_bytes(tmp_path, b"\xef\xbb\xbfid,text\n1,a\n")
    assert found == Record(11, {"id": "1", "text": "a"})
    [found] = of_bytes(tmp_path, b'\xef\xbb\xbf"id",text\n1,a\n')
    assert found.value == {"id": "1", "text": "a"}


def test_the_format_can_be_said(tmp_path):
    path = write_table(tmp_path / "c.data", ROWS, "tsv")
    assert [record.value for record in records(path, format="tsv")] == ROWS


def test_what_is_no_row_is_told_and_the_rows_behind_it_are_read(tmp_path):
    data = b'id,text\n1,a\n2\n\n3,"x\ny",z\n4,\xff\n5,"a"b\n6,"say "hi""\n7,b\n'
    found = of_bytes(tmp_path, data)
    assert [record.offset for record in found] == [8, 12, 14, 15, 25, 29, 36, 49]
    one, few, blank, many, other, behind, inside, last = [record.value for record in found]
    assert (one, blank, last) == ({"id": "1", "text": "a"}, b"", {"id": "7", "text": "b"})
    assert few == BadRow("bad_row", "2 fields, as in the header", "1, on line 3")
    assert many == BadRow("bad_row", "2 fields, as in the header", "3, on lines 5 to 6")
    assert other == BadRow("invalid_utf8", "UTF-8", "other bytes, on line 7")
    assert (behind.reason, inside.reason) == ("bad_row", "bad_row")
    assert behind.got.endswith("on line 8")
    assert inside.got.endswith("on line 9")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (b'1,"a\nb', "line 2: got one opened there, in the row of line 2 [(]byte 8"),
        (b'1,"a\nb","c\nd\n', "line 3: got one opened there, in the row of line 2 [(]byte 8"),
        (b'1,"a\nb"\n2,"c\nd\n', "line 4: got one opened there, in the row of line 4 [(]byte 16"),
        (b'1,"a\n' + b"long\n" * 99, "line 2: got one opened there"),
        (b'1,a\n2,"', "line 3: got one opened there"),
    ],
)
@pytest.mark.parametrize("limit", [20, 2**20])
def test_a_quote_that_is_never_closed_is_an_error_that_names_its_line(tmp_path, rows, told, limit):
    with pytest.raises(CorpusError, match=f"never closed.*{told}"):
        of_bytes(tmp_path, b"id,text\n" + rows, limit)


def test_a_row_that_is_too_long_is_passed_over_to_its_end(tmp_path):
    long = b'1,"a\n' + b'much ""text"", of it\n' * 50 + b'"\n'
    found = of_bytes(tmp_path, b"id,text\n" + long + b"2,b\n3," + b"c" * 200 + b"\n4,d\n", 100)
    values = [record.value for record in found]
    assert values == [
        LongLine(len(long)),
        {"id": "2", "text": "b"},
        LongLine(203),
        {"id": "4", "text": "d"},
    ]


def test_a_field_may_be_longer_than_csv_itself_allows(tmp_path):
    [found] = of_bytes(tmp_path, b"id,text\n1," + b"a" * 300_000 + b"\n")
    assert len(found.value["text"]) == 300_000


def test_a_long_table_takes_little_memory(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes(b"id,text\n" + (b'1,"a\n' + b"b" * 990 + b'"\n') * 40_000)
    [piece] = find_pieces(CorpusConfig(files=(str(path),)))
    tracemalloc.start()
    count = sum(1 for _ in read_piece(piece, ()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000
    assert peak < path.stat().st_size / 4


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_table_cut_anywhere_is_an_error(tmp_path, suffix):
    rows = [{"id": str(i), "text": f"text {i * i}"} for i in range(99)]
    path = compress(write_table(tmp_path / "c.csv", rows), suffix)
    data = path.read_bytes()
    for length in range(0, len(data), 17):
        path.write_bytes(data[:length])
        with pytest.raises(TruncatedFileError, match=path.name):
            records(path)


def test_a_table_that_became_shorter_is_an_error(tmp_path):
    path = write_table(tmp_path / "c.csv", ROWS)
    [piece] = find_pieces(CorpusConfig(files=(str(path),)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorpusError, match="shorter"):
        list(read_piece(piece, ()))


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"", "nothing"),
        (b"\nid,text\n", "nothing"),
        (b"text,id,text\n", "text 2 times"),
        (b"id,,text\n", "no name, as field 2 of 3"),
        (b'id,"text\n1,a\n', "never closed"),
        (b"id,\xff\n", "UTF-8"),
        (b"\xff\xfei\0d\0\n\0", "UTF-8"),
        (b"id,text\r1,a\r", "new-line character"),
    ],
)
def test_a_header_that_names_no_fields_is_a_usage_error(tmp_path, data, got):
    with pytest.raises(UsageError, match=f"c.csv.*{got}"):
        of_bytes(tmp_path, data)


def document(record, kind, names=(), score="softmax", count=3, **fields):
    corpus = CorpusConfig(files=("c",), label_field="label", **fields)
    return parse(record, Source("c", 0), corpus, LabelMap.of(names, count, score), kind)


@pytest.mark.parametrize(
    ("text", "same", "names", "score"),
    [
        ("2", 2, ("a", "b", "c"), "softmax"),
        (" +1 ", 1, ("a", "b", "c"), "softmax"),
        ("b", "b", ("a", "b", "c"), "softmax"),
        ("2", 2, ("0", "1", "2"), "softmax"),
        ("1.5", 1.5, ("v",), "identity"),
        ("-2e-3", -0.002, ("v",), "identity"),
        ("7", 7, ("v",), "identity"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_labels_text_is_the_number_that_json_would_hold(kind, text, same, names, score):
    count = len(names)
    ours = document(Record(0, {"text": "a", "label": text}), kind, names, score, count)
    json = document(Record(0, line({"text": "a", "label": same})), "jsonl", names, score, count)
    assert (ours.hash, ours.label) == (json.hash, json.label)


@pytest.mark.parametrize(
    ("text", "names", "score", "reason"),
    [
        ("", ("a", "b"), "softmax", "unknown_label"),
        ("2", ("a", "b"), "softmax", "unknown_label"),
        ("1.0", ("a", "b"), "softmax", "unknown_label"),
        ("B", ("a", "b"), "softmax", "unknown_label"),
        ("1", ("1", "2"), "softmax", "ambiguous_label"),
        ("0", ("1", "2"), "softmax", "ambiguous_label"),
        ("x", ("v",), "identity", "unknown_label"),
        ("nan", ("v",), "identity", "unknown_label"),
        ("1e999", ("v",), "identity", "unknown_label"),
        ("1_0", ("v",), "identity", "unknown_label"),
    ],
)
def test_a_labels_text_that_is_none_is_rejected(text, names, score, reason):
    with pytest.raises(RejectedError) as caught:
        document(Record(0, {"text": "a", "label": text}), "csv", names, score, len(names))
    assert str(caught.value) == reason
