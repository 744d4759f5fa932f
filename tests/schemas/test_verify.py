"""`verify` counts for itself: shards whose seals hold, but whose writer did not keep to the format."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import Cache
from schemas.errors import CorruptionError, FormatError
from schemas.policies import KeepAll
from schemas.rows.columns import write_options
from schemas.rows.rows import Rows
from schemas.shards.reader import read_group
from schemas.shards.seal import FOOTER_KEY, LISTED_KEY, Shard, ShardFooter, Totals, bytes_hash, ranking_of
from schemas.upkeep.repair import repair
from schemas.versions.commits import commit, record_after
from tests.synthetic import (
    SPECS,
    add,
    begin,
    causal_spec,
    header_of,
    ragged,
    random_rows,
    seal,
    table_of,
    unit_of,
)


def foreign_shard(rows, *, extra=None, listed=None, says=None, **options):
    """A sealed shard as another writer would make it."""
    table = table_of(rows) if extra is None else table_of(rows).append_column(*extra)
    sink = pa.BufferOutputStream()
    good = seal(rows, groups=1).footer
    with pq.ParquetWriter(sink, table.schema, **{**write_options(rows.spec), **options}) as writer:
        writer.write_table(table, row_group_size=len(rows))
        size = sink.tell()
        data = _so_far(table, rows, options)[:size]
        group = {**good.row_groups[0].__dict__, "end": size, "hash": bytes_hash(data)}
        footer = json.loads(good.to_bytes()) | {"row_groups": [group]} | (says or {})
        ids = ranking_of([rows]).to_bytes() if listed is None else listed
        writer.add_key_value_metadata({FOOTER_KEY: json.dumps(footer).encode(), LISTED_KEY: ids})
    whole = sink.getvalue().to_pybytes()
    return f"{unit_of(rows)}-{bytes_hash(whole[size:])}.parquet", whole


def _so_far(table, rows, options):
    """The same bytes again: a stream cannot be read while it is written."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **{**write_options(rows.spec), **options}) as writer:
        writer.write_table(table, row_group_size=len(rows))
    return sink.getvalue().to_pybytes()


def test_a_footer_that_says_more_is_a_newer_formats(tmp_path):
    rows = random_rows(causal_spec(), 12).rows
    cache = committed(tmp_path, rows, *foreign_shard(rows, says={"mood": 0.5}))
    with pytest.raises(FormatError, match=r"footer says what this reader does not know.*mood.*newer"):
        next(cache.read_all())
    with pytest.raises(FormatError):
        repair(tmp_path)  # it is no damage


def committed(path, rows, name, data):
    storage = begin(path, rows.spec)
    storage.put(name, data)
    found = [Shard(name, len(data), len(rows))]
    said = json.loads(pq.read_metadata(pa.BufferReader(data)).metadata[FOOTER_KEY])
    totals = Totals.from_json(said["totals"])
    record = record_after(None, found, totals, run="r", header_hash=header_of(rows.spec).to_json()["hash"])
    commit(storage, rows.spec, None, found, record)
    return Cache.open(path)


def test_an_unknown_column_is_ignored(tmp_path):
    rows = random_rows(causal_spec(), 12).rows
    extra = (pa.field("mood", pa.list_(pa.float64())), pa.array([[0.5]] * 12, pa.list_(pa.float64())))
    cache = committed(tmp_path, rows, *foreign_shard(rows, extra=extra))
    assert cache.verify().examples == 12
    read = Rows.concatenate(list(cache.read_all()))
    assert "mood" not in read.data
    assert (read.kept_ids == rows.kept_ids).all()


@pytest.mark.parametrize(
    ("options", "column"),
    [
        ({"use_dictionary": True, "column_encoding": None}, "example_id"),
        ({"use_dictionary": False}, "window_index"),
        ({"column_encoding": {"kept_ranks.element": "BYTE_STREAM_SPLIT"}}, "input_ids.list.element"),
    ],
)
def test_other_encodings_are_read_but_verify_tells(tmp_path, options, column):
    rows = random_rows(causal_spec(), 12).rows
    cache = committed(tmp_path, rows, *foreign_shard(rows, **options))
    assert (Rows.concatenate(list(cache.read_all())).kept_ids == rows.kept_ids).all()
    with pytest.raises(CorruptionError, match=f"{column} is not encoded"):
        cache.verify()


def test_a_missing_or_wrong_column_is_told(tmp_path):
    rows = random_rows(causal_spec(), 12).rows
    more = random_rows(causal_spec(has_text=True), 12).rows
    name, data = foreign_shard(rows)
    cache = committed(tmp_path, rows, name, data)
    opened = cache.open_shard(cache.shards[0])
    with pytest.raises(CorruptionError, match=r"column text breaks the schema.*no such column"):
        read_group(cache.storage, name, opened, 0, more.spec)
    with pytest.raises(CorruptionError, match="column labels breaks the schema"):
        read_group(
            cache.storage,
            name,
            opened,
            0,
            replace(rows.spec, task="sequence-classification", score="identity", keep=KeepAll()),
        )


def lying_footer(rows, **changes):
    """A sealed shard whose footer counts wrongly."""
    real = ShardFooter.to_bytes

    def lie(self):
        return json.dumps(json.loads(real(self)) | changes).encode()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardFooter, "to_bytes", lie)
        shard = seal(rows, groups=1)
    return shard.name, bytes(shard.data)


@pytest.mark.parametrize("count", ["tokens", "positions", "entries", "ids_hash", "start"])
def test_verify_counts_for_itself(tmp_path, count):
    rows = random_rows(causal_spec(), 12).rows
    footer = json.loads(seal(rows, groups=1).footer.to_bytes())
    group, totals = footer["row_groups"][0], footer["totals"]
    group[count] = "0" * 32 if count == "ids_hash" else group[count] + 1
    if count in totals:
        totals[count] += 1
    cache = committed(tmp_path, rows, *lying_footer(rows, row_groups=[group], totals=totals))
    with pytest.raises(CorruptionError, match="1 of 1 shards"):
        cache.verify()


def test_verify_adds_up_footers(tmp_path):
    rows = random_rows(causal_spec(), 12).rows
    totals = json.loads(seal(rows, groups=1).footer.to_bytes())["totals"]
    cache = committed(tmp_path, rows, *lying_footer(rows, totals={**totals, "tokens": 1}))
    with pytest.raises(CorruptionError, match="footer's tokens do not add up"):
        cache.verify()


def test_verify_counts_what_it_checked(cache):
    found = cache.verify()
    assert (found.shards, found.row_groups, found.examples) == (2, 4, 24)
    assert (found.tokens, found.bytes) == (cache.totals.tokens, cache.size_bytes)
    assert found.bytes == sum(path.stat().st_size for path in Path(cache.storage.root).glob("*.parquet"))


def test_verify_sees_examples_that_stand_twice(tmp_path):

    rows = random_rows(causal_spec(), 12).rows
    storage = begin(tmp_path, rows.spec)
    add(storage, None, [rows, rows.take(np.arange(3, 9))])
    with pytest.raises(CorruptionError, match="more than once"):
        Cache.open(tmp_path).verify()


def test_verify_sees_ids_out_of_order(tmp_path):

    rows = random_rows(causal_spec(), 12).rows
    for order in ([0, 1, 2, 3, 4, 5, 7, 6], [0, 0, 1, 2], [9, 1]):
        path = tmp_path / str(len(order))
        add(begin(path, rows.spec), None, [rows.take(np.array(order))])
        with pytest.raises(CorruptionError, match="do not ascend"):
            Cache.open(path).verify()


@pytest.mark.parametrize("total", ["tokens", "positions", "clamped_codes", "length_histogram"])
def test_verify_sees_totals_that_are_not_those_of_the_shards(cache, total):
    value = getattr(cache.totals, total)
    wrong = replace(cache.totals, **{total: value[::-1] if isinstance(value, tuple) else value + 1})
    broken = replace(cache, record=replace(cache.record, totals=wrong))
    with pytest.raises(CorruptionError, match=f"log's {total}"):
        broken.verify()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logsumexp", np.inf, "logsumexp.*not finite"),
        ("kept_codes", -3, "negative code"),
        ("top_codes", -1, "negative code"),
        ("entropy_codes", -1, "negative code"),
        ("gold_codes", -1, "negative code"),
        ("sampled_codes", -1, "negative code"),
    ],
)
def test_verify_sees_values_that_cannot_be(tmp_path, name, value, message):

    rows = random_rows(SPECS["temperatures" if name == "sampled_codes" else "top_p"], 12).rows
    values = rows.ragged(name).values.copy()
    values[5] = value
    broken = Rows(spec=rows.spec, data={**rows.data, name: ragged(values, rows.ragged(name).lengths)})
    add(begin(tmp_path, rows.spec), None, [broken])
    with pytest.raises(CorruptionError, match=message):
        Cache.open(tmp_path).verify()
