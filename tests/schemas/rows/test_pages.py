"""Lists out of Parquet's pages equal those that Arrow reads; whatever has another form is left to Arrow."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import schemas.shards.reader
from schemas.policies import Sampled, Threshold, TopK, TopP
from schemas.rows import kernels
from schemas.rows.columns import Column, columns
from schemas.rows.pages import read_lists
from schemas.rows.ragged import Ragged, offsets_of
from schemas.shards.reader import open_footer, read_group
from schemas.storage.storage import Storage
from tests.synthetic import causal_spec, random_rows, seal, table_of

OPTIONS = {
    "compression": "zstd",
    "use_dictionary": False,
    "column_encoding": {"lists.list.element": "BYTE_STREAM_SPLIT"},
    "write_page_checksum": True,
}


def required(dtype):
    return pa.list_(pa.field("element", pa.from_numpy_dtype(dtype), nullable=False))


def lists_of(values, lengths):
    return pa.ListArray.from_arrays(
        pa.array(offsets_of(np.asarray(lengths)), pa.int32()), pa.array(values), type=required(values.dtype)
    )


def written(array, *, nullable=False, **options):
    """One row group, and what its footer says of it."""
    schema = pa.schema([pa.field("lists", array.type, nullable=nullable)])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([array], schema=schema), sink, **{**OPTIONS, **options})
    data = memoryview(sink.getvalue())
    return data, pq.read_metadata(io.BytesIO(data)).row_group(0).column(0)


def column_of(array, *, nullable=False):
    return Column("lists", array.type, "BYTE_STREAM_SPLIT", nullable)


def by_pages(array, *, nullable=False, **options):
    data, chunk = written(array, nullable=nullable, **options)
    return read_lists(data, chunk, 0, column_of(array, nullable=nullable), len(array))


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def is_compiled(request, monkeypatch):
    monkeypatch.setattr(kernels, "IS_COMPILED", request.param)
    return request.param


def values_of(dtype, size, rng):
    if dtype == np.float32:
        values = rng.normal(size=size).astype(np.float32)
        values[rng.integers(0, size, 20)] = rng.choice([np.inf, -np.inf, -0.0, np.nan, 1e-45], 20)
        return values
    limits = np.iinfo(dtype)
    low = 0 if dtype == np.int16 else limits.min
    top = rng.choice([2**7, 2**8, 2**12, limits.max])
    return rng.integers(max(low, -int(top)), int(top), size, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
@pytest.mark.parametrize("seed", range(8))
def test_lists_are_those_that_arrow_reads(seed, dtype, is_compiled):
    """Pages of several sizes, most of which begin inside a list; lists of every length modulo 8."""
    rng = np.random.default_rng(seed)
    least = int(rng.choice([1, 40, 900])) if is_compiled else 4_500
    lengths = rng.integers(least, 2 * least, rng.integers(1, 40))
    array = lists_of(values_of(dtype, lengths.sum(), rng), lengths)
    found = by_pages(array, data_page_size=int(rng.choice([2**14, 2**17, 2**20])))
    assert found is not None, "such lists are what this is for"
    assert found.type == array.type
    assert found.offsets.equals(array.offsets)
    assert found.values.to_numpy().tobytes() == array.values.to_numpy().tobytes()


@pytest.mark.parametrize("seed", range(60))
def test_lists_of_any_lengths_are_equal_or_left_to_arrow(seed, is_compiled):
    rng = np.random.default_rng(seed)
    shortest, longest = sorted(rng.choice([0, 1, 3, 40, 900, 4_500, 12_000], 2, replace=False))
    lengths = rng.integers(shortest, longest, rng.integers(1, 60))
    array = lists_of(rng.integers(0, 2**17, lengths.sum(), np.int32), lengths)
    found = by_pages(array, data_page_size=int(rng.choice([2**10, 2**14, 2**20])))
    if found is not None:
        assert found.equals(array)
    else:
        assert shortest < (1 if is_compiled else 4_500)


def test_a_page_may_hold_many_lists_or_a_part_of_one():
    array = lists_of(np.arange(300_000, dtype=np.int32), [300_000])
    data, chunk = written(array, data_page_size=2**14)
    assert chunk.total_uncompressed_size > 2**20
    assert read_lists(data, chunk, 0, column_of(array), len(array)).equals(array)


def test_a_row_group_need_not_begin_where_the_file_does():
    array = lists_of(np.arange(40_000, dtype=np.int32), [15_000, 25_000])
    sink = io.BytesIO()
    table = pa.Table.from_arrays([array], schema=pa.schema([pa.field("lists", array.type, nullable=False)]))
    pq.write_table(table, sink, row_group_size=1, **OPTIONS)
    metadata = pq.read_metadata(sink)
    chunk = metadata.row_group(1).column(0)
    start = chunk.data_page_offset - 3
    found = read_lists(memoryview(sink.getvalue())[start:], chunk, start, column_of(array), 1)
    assert found.values.to_pylist() == list(range(15_000, 40_000))


LONG = lists_of(np.arange(20_000, dtype=np.int32), [5_000] * 4)
NEGATIVE = lists_of(np.arange(-1, 19_999, dtype=np.int16), [5_000] * 4)
OTHERS = {
    "an empty list": (lists_of(np.arange(20_000, dtype=np.int32), [0, 10_000, 0, 10_000]), {}),
    "nothing but empty lists": (lists_of(np.arange(0, dtype=np.int32), [0, 0]), {}),
    "no lists": (lists_of(np.arange(0, dtype=np.int32), []), {}),
    "a null list": (pa.concat_arrays([LONG, pa.nulls(1, LONG.type)]), {"nullable": True}),
    "short lists": (lists_of(np.arange(4_000, dtype=np.int32), [8] * 500), {}),
    "one short list": (lists_of(np.arange(3, dtype=np.int32), [3]), {}),
    "numbers below 0 in 16 bits": (NEGATIVE, {}),
    "a dictionary": (LONG, {"use_dictionary": True, "column_encoding": None}),
    "plain values": (LONG, {"column_encoding": {"lists.list.element": "PLAIN"}}),
    "pages of version 2": (LONG, {"data_page_version": "2.0"}),
    "no compression": (LONG, {"compression": "none"}),
    "another compression": (LONG, {"compression": "snappy"}),
    "64 bits": (lists_of(np.arange(20_000), [5_000] * 4), {}),
}


READ_WHERE_COMPILED = {"short lists", "one short list"}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_form_is_left_to_arrow(name, is_compiled):
    array, options = OTHERS[name]
    found = by_pages(array, **options)
    if name == "no lists" or (is_compiled and name in READ_WHERE_COMPILED):
        assert found.equals(array)
    else:
        assert found is None
    assert by_pages(LONG) is not None, "this alone makes the difference"


def test_lists_that_may_be_null_and_are_not(is_compiled):
    assert by_pages(LONG, nullable=True).equals(LONG)


@pytest.mark.parametrize(
    "keep",
    [TopK(k=16), TopP(p=0.9, k=16), Threshold(tau=1 / 16, k=1), Sampled(n=20)],
    ids=str,
)
def test_row_groups_of_long_texts_are_those_that_arrow_reads(tmp_path, monkeypatch, keep, is_compiled):
    """The write path's own files: entries go by pages, and all values are the same."""
    spec = causal_spec(
        keep=keep, max_length=3_000, temperatures=(1.0,), own_logits=keep == Threshold(tau=1 / 16, k=1)
    )
    rows = random_rows(spec, 40, 3).rows
    rows = rows.take(
        np.flatnonzero((rows.input_ids.lengths > 1_500) & (np.diff(rows.position_offsets) > 1_000))
    )
    sealed = seal(rows)
    storage = Storage.at(tmp_path)
    storage.put(sealed.name, sealed.data)
    opened = open_footer(storage, sealed.name)
    used = []

    def watched(*arguments):
        found = read_lists(*arguments)
        used.append(found is not None)
        return found

    def all_groups():
        return [
            read_group(storage, sealed.name, opened, i, spec) for i in range(len(sealed.footer.row_groups))
        ]

    monkeypatch.setattr(schemas.shards.reader, "read_lists", watched)
    ours = all_groups()
    assert sum(used) >= 2 * len(ours), "entries have been read by pages"
    monkeypatch.setattr(schemas.shards.reader, "read_lists", lambda *_: None)
    for mine, arrows in zip(ours, all_groups(), strict=True):
        assert table_of(mine).equals(table_of(arrows))
        assert {name: kind(mine.data[name]) for name in mine.data} == {
            name: kind(arrows.data[name]) for name in arrows.data
        }


def kind(column):
    return column.values.dtype if isinstance(column, Ragged) else column.dtype


def test_every_column_in_byte_planes_is_asked_for():
    """Or a new one would go by Arrow unseen."""
    spec = causal_spec(keep=Sampled(n=3), own_logits=True, temperatures=(1.0,))
    asked = {c.name for c in columns(spec) if c.is_planes_of_lists}
    assert {"kept_ranks", "kept_codes", "sampled_gaps", "sampled_counts", "sampled_codes"} <= asked
