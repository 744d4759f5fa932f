"""Reading files: every format, compressed or not, gives the same records at the same offsets, whatever the pieces."""

import gzip
import random
import struct
import tracemalloc
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines.config import CorpusConfig
from pipelines.corpus import files as corpus_module
from pipelines.corpus import lines as lines_module
from pipelines.corpus.files import Piece, find_pieces, read_piece
from pipelines.corpus.lines import LongLine
from schemas.errors import CorpusError, TruncatedFileError, UsageError
from tests.pipelines.helpers import compress, write_jsonl, write_parquet

RECORDS = [{"text": f"record {i} " + "x" * (i * 7 % 40)} for i in range(60)]


def records(path, columns=("text",), **changes):
    """(offset, value) of every record of every piece, in the order of the pieces."""
    pieces = find_pieces(CorpusConfig(files=(str(path),), **changes))
    return [tuple(record) for piece in pieces for record in read_piece(piece, columns)]


def truth(path):
    """Lines with the offsets of their first bytes, by the simplest means."""
    found, offset = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        found.append((offset, line.removesuffix(b"\n")))
        offset += len(line)
    return found


@pytest.fixture
def file(tmp_path):
    return write_jsonl(tmp_path / "c.jsonl", RECORDS)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_compressed_file_has_the_records_and_offsets_of_the_plain_one(file, suffix, frames):
    assert records(file) == truth(file)
    assert records(compress(file, suffix, frames=frames)) == truth(file)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64])
def test_chunks_cut_records_anywhere(file, monkeypatch, chunk_bytes):
    monkeypatch.setattr(lines_module, "_CHUNK_BYTES", chunk_bytes)
    for suffix in (".gz", ".zst"):
        assert records(compress(file, suffix, frames=2)) == truth(file)


def test_pieces_of_any_size_hold_every_line_once(tmp_path, monkeypatch):
    dice = random.Random(0)
    for _ in range(60):
        lines = [b"y" * dice.choice([0, 1, 2, 5, 40]) for _ in range(dice.randrange(12))]
        path = tmp_path / "c.txt"
        path.write_bytes(b"\n".join(lines) + dice.choice([b"", b"\n", b"\n\n", b"\r\n"]))
        monkeypatch.setattr(corpus_module, "PIECE_BYTES", dice.randrange(1, 30))
        assert records(path) == truth(path)


def test_a_file_larger_than_a_piece_is_read_in_several(file, monkeypatch):
    monkeypatch.setattr(corpus_module, "PIECE_BYTES", 256)
    pieces = find_pieces(CorpusConfig(files=(str(file),)))
    assert len(pieces) == -(-file.stat().st_size // 256) > 3
    assert [tuple(r) for piece in reversed(pieces) for r in read_piece(piece, ())] != truth(file)
    assert sorted(tuple(r) for piece in reversed(pieces) for r in read_piece(piece, ())) == truth(file)


def test_parquet_gives_rows_by_number_and_only_the_columns_asked_for(tmp_path):
    rows = [{"text": f"t{i}", "label": i, "other": "x"} for i in range(23)]
    path = write_parquet(tmp_path / "c.parquet", rows)
    expected = [(i, {"text": f"t{i}", "label": i}) for i in range(23)]
    assert records(path, ("text", "label", "nowhere")) == expected
    for suffix in (".gz", ".zst"):
        assert records(compress(path, suffix), ("text", "label")) == expected


def test_a_parquet_file_without_the_columns_still_has_its_rows(tmp_path):
    path = write_parquet(tmp_path / "c.parquet", [{"text": "t"}] * 7)
    assert records(path, ("wrong",)) == [(i, {}) for i in range(7)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_cut_anywhere_is_an_error_that_names_it(file, suffix):
    path = compress(file, suffix)
    data = path.read_bytes()
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        with pytest.raises(TruncatedFileError, match=path.name):
            records(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_second_frame_is_seen_too(file, suffix):
    path = compress(file, suffix, frames=2)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(TruncatedFileError):
        records(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".parquet"])
def test_a_file_that_is_not_what_its_name_says_is_an_error_that_names_it(tmp_path, suffix):
    path = tmp_path / f"c.jsonl{suffix}"
    path.write_bytes(b"this is no such file, and long enough to tell" * 9)
    with pytest.raises(CorpusError, match=path.name):
        records(path)


def test_a_flipped_bit_in_a_gz_is_an_error(file):
    path = compress(file, ".gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=path.name):
        records(path)


def test_empty_files_and_empty_members_hold_nothing(tmp_path):
    plain = tmp_path / "c.txt"
    plain.write_bytes(b"")
    assert records(plain) == []
    path = tmp_path / "c.txt.gz"
    path.write_bytes(gzip.compress(b"") + gzip.compress(b"a\n") + gzip.compress(b""))
    assert records(path) == [(0, b"a")]


def test_zstd_frames_to_be_skipped_are_skipped(file):
    path = compress(file, ".zst")
    skipped = struct.pack("<II", 0x184D2A50, 4) + b"junk"
    path.write_bytes(skipped + path.read_bytes() + skipped)
    assert records(path) == truth(file)


def test_globs_and_names_give_each_file_once(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        write_jsonl(tmp_path / "in" / name, RECORDS[:2])
    files = (f"{tmp_path}/in/*.jsonl", f"{tmp_path}/in/a.jsonl", f"{tmp_path}/in/c.txt")
    pieces = find_pieces(CorpusConfig(files=files))
    assert [(piece.path.rsplit("/")[-1], piece.format) for piece in pieces] == [
        ("a.jsonl", "jsonl"),
        ("b.jsonl", "jsonl"),
        ("c.txt", "text"),
    ]


def test_the_format_is_told_by_the_name_or_by_the_flag(tmp_path):
    path = write_jsonl(tmp_path / "c.data.gz", RECORDS)
    with pytest.raises(UsageError, match="--format"):
        find_pieces(CorpusConfig(files=(str(path),)))
    assert find_pieces(CorpusConfig(files=(str(path),), format="text")) == [
        Piece(str(path), "text", 0, -1, path.stat().st_size)
    ]


@pytest.mark.parametrize("pattern", ["nothing/*.jsonl", "nothing.jsonl", "nothing://x/y.jsonl"])
def test_a_glob_without_a_file_is_a_usage_error(tmp_path, pattern):
    place = pattern if "://" in pattern else f"{tmp_path}/{pattern}"
    with pytest.raises(UsageError, match="--corpus"):
        find_pieces(CorpusConfig(files=(place,)))


BOMB_MIB = 512


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_small_file_that_holds_much_takes_little_memory_and_its_other_lines_are_read(tmp_path, suffix):
    path = tmp_path / f"c.jsonl{suffix}"
    packer = zlib.compressobj(9, wbits=31) if suffix == ".gz" else zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as file:
        for part in (b"{}\n", *[b"a" * 2**20] * BOMB_MIB, b"\n{}"):
            file.write(packer.compress(part))
        file.write(packer.flush())
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        found = records(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [value for _, value in found] == [b"{}", LongLine(BOMB_MIB * 2**20), b"{}"]
    assert found[2][0] == BOMB_MIB * 2**20 + 4
    assert peak < 300 * 2**20


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("piece_bytes", [50, 2**26])
def test_lines_beyond_the_limit_are_passed_over_wherever_they_stand(
    tmp_path, monkeypatch, suffix, piece_bytes
):
    monkeypatch.setattr(corpus_module, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(lines_module, "_CHUNK_BYTES", 16)
    sizes = [3, 400, 9, 10, 0, 11, 64]
    plain = tmp_path / "c.txt"
    plain.write_bytes(b"\n".join(b"x" * size for size in sizes))
    path = compress(plain, suffix, frames=3) if suffix else plain
    pieces = find_pieces(CorpusConfig(files=(str(path),)))
    found = [tuple(record) for piece in pieces for record in read_piece(piece, (), 10)]
    expected = [(offset, line if len(line) <= 10 else LongLine(len(line))) for offset, line in truth(plain)]
    assert found == expected


def test_a_frame_that_asks_for_a_huge_window_is_refused(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "c.jsonl.zst"
    path.write_bytes(packer.compress(b"{}") + packer.flush())
    with pytest.raises(CorpusError, match=path.name):
        records(path)


def test_a_string_that_stands_in_many_parquet_rows_is_held_once(tmp_path):
    path = tmp_path / "c.parquet"
    count = 2**10
    long = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["a" * 2**20]))
    pq.write_table(pa.table({"text": long.cast(pa.string())}), path)
    assert path.stat().st_size < 2**20
    before = pa.total_allocated_bytes()
    pieces = find_pieces(CorpusConfig(files=(str(path),)))
    found = []
    for record in read_piece(pieces[0], ("text",), 2**19):
        found.append(record.value)
        assert pa.total_allocated_bytes() - before < 64 * 2**20
    assert found == [LongLine(found[0].size_bytes)] * count


def test_parquet_gives_the_conversations_of_the_jsonl_without_the_nulls_that_it_adds(tmp_path):
    call = {"function": {"name": "f", "arguments": {"a": "b"}}}
    rows = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]},
        {"messages": [{"role": "tool", "content": "x", "name": "f"}]},
    ]
    found = records(write_parquet(tmp_path / "c.parquet", rows), ("messages",))
    assert [value for _, value in found] == rows


def test_how_much_text_a_corpus_holds_is_known_of_plain_files_and_guessed_of_others(tmp_path):
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_bytes(b"x" * 1000)
    packed.write_bytes(b"y" * 10)
    pieces = find_pieces(CorpusConfig(files=(str(plain),)))
    assert corpus_module.text_bytes(pieces) == 1000
    pieces += find_pieces(CorpusConfig(files=(str(packed),)))
    assert 1010 < corpus_module.text_bytes(pieces) < 1100


def test_the_size_of_a_packed_file_is_the_one_that_its_filesystem_lists(monkeypatch):
    """No other is known of a file in a store."""
    monkeypatch.setattr(corpus_module, "_matched", lambda pattern: {pattern: 10**9})
    pieces = find_pieces(CorpusConfig(files=("gs://bucket/c.jsonl.gz",)))
    assert 10**9 < corpus_module.text_bytes(pieces) < 10**10
