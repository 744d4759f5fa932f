"""Other tools open a shard, and `docs/cache-format.md` is right: its recipes run, its example and hashes hold."""

import hashlib
import json
import re
import tempfile
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from schemas.identity import document_hash, example_id, unit_name
from schemas.policies import Sampled
from schemas.rows.codec import decode_logprobs, decode_scalars, encode_logprobs, encode_scalars
from schemas.rows.columns import shard_schema
from schemas.rows.entries import entries_of
from schemas.rows.ranks import Ranking, to_gaps
from schemas.rows.rows import Rows
from schemas.spec import KNOWN_FEATURES
from tests.synthetic import SPECS, make_cache

PAGE = (Path(__file__).parents[2] / "docs" / "cache-format.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shard_of(cache):
    return f"{cache.storage.root}/{cache.shards[0].name}"


def expected(cache):
    """Plain lists of the first shard, by column; null is None."""
    rows = Rows.concatenate([cache.read(ref) for ref in cache.row_groups if ref.shard == cache.shards[0]])
    ranking = cache.footers[cache.shards[0].name].ranking(cache.spec, "here")
    return rows.to_arrow(ranking).to_pydict()


def with_datasets(path):
    with tempfile.TemporaryDirectory() as folder:
        return datasets.Dataset.from_parquet(path, cache_dir=folder).to_dict()


READERS = {
    "pyarrow": lambda path: pq.read_table(path).to_pydict(),
    "duckdb": lambda path: duckdb.read_parquet(path).to_arrow_table().to_pydict(),
    "polars": lambda path: pl.read_parquet(path).to_dict(as_series=False),
    "pandas": lambda path: pd.read_parquet(path).to_dict("list"),
    "datasets": with_datasets,
}


def plain(values):
    """Lists of Python values: pandas has arrays and NaN where others have lists and None."""
    missing = [value is None or (isinstance(value, float) and np.isnan(value)) for value in values]
    return [
        None if gone else list(v) if isinstance(v, np.ndarray) else v
        for v, gone in zip(values, missing, strict=True)
    ]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("tool", READERS)
def test_a_shard_opens_everywhere(tmp_path, name, tool):
    cache = make_cache(tmp_path, SPECS[name])
    found, right = READERS[tool](shard_of(cache)), expected(cache)
    assert list(found) == list(right)
    for column, values in right.items():
        assert plain(found[column]) == values, column


def test_delta_readers_see_the_live_shards(own_cache):
    (Path(own_cache.storage.root) / f"{'0' * 32}-{'0' * 32}.parquet").write_bytes(b"an orphan")
    ids = sorted(i for rows in own_cache.read_all() for i in rows.example_ids)
    assert sorted(pl.read_delta(own_cache.storage.root)["example_id"]) == ids
    assert sorted(DeltaTable(own_cache.storage.root).to_pyarrow_table()["example_id"].to_pylist()) == ids


def live(cache):
    return [f"{cache.storage.root}/{shard.name}" for shard in cache.shards]


def by_shard(cache):
    parts = ([cache.read(ref) for ref in cache.row_groups if ref.shard == shard] for shard in cache.shards)
    return [Rows.concatenate(part) for part in parts]


RECIPES = ("top_p", "top_k", "all", "threshold", "temperatures", "sampled")


@pytest.mark.parametrize("name", RECIPES)
def test_the_numpy_recipe_decodes(tmp_path, name):
    cache, scope = make_cache(tmp_path, SPECS[name]), {}
    exec(blocks("python")[0], scope)
    for path, rows in zip(live(cache), by_shard(cache), strict=True):
        ids, logprobs, counts = scope["exact"](path, cache.spec.vocab_size)
        assert (ids == rows.kept_ids).all()
        assert (counts == rows.kept_counts).all()
        np.testing.assert_allclose(logprobs, rows.kept_logprobs(), atol=1e-5)
        if cache.spec.is_sampling:
            ids, counts = scope["drawn"](path, cache.spec.vocab_size)
            assert (ids == rows.ragged("sampled_ids").values).all()
            assert (counts == rows.sampled_counts).all()


@pytest.mark.parametrize("name", RECIPES)
def test_the_sql_recipe_decodes(tmp_path, name):
    cache = make_cache(tmp_path, SPECS[name])
    files, queries = {"shards": live(cache)}, blocks("sql")
    rows = Rows.concatenate(by_shard(cache))
    rows = rows.take(np.argsort(rows.example_ids))
    with duckdb.connect() as connection:
        connection.execute(queries[0], {**files, "vocab_size": cache.spec.vocab_size})
        found = connection.execute(queries[1], files).fetchall()
        assert [line[3] for line in found] == rows.kept_ids.tolist()
        np.testing.assert_allclose([line[4] for line in found], rows.kept_logprobs(), atol=1e-5)
        assert [line[:2] for line in found] == named(rows, rows.kept_counts)
        if cache.spec.is_sampling:
            drawn = connection.execute(queries[2], files).fetchall()
            assert [line[3] for line in drawn] == rows.ragged("sampled_ids").values.tolist()
            assert [line[:2] for line in drawn] == named(rows, rows.sampled_counts)
        if isinstance(cache.spec.keep, Sampled):
            weights = connection.execute(queries[3], {**files, "n": cache.spec.keep.n}).fetchnumpy()["weight"]
            np.testing.assert_allclose(weights, entries_of(rows).weights, rtol=1e-6)


def named(rows, counts):
    """Example and position, from 1, of each entry."""
    examples = np.repeat([i.hex().upper() for i in rows.example_ids], np.diff(rows.position_offsets))
    places = np.concatenate([np.arange(n) + 1 for n in np.diff(rows.position_offsets)])
    return list(zip(np.repeat(examples, counts).tolist(), np.repeat(places, counts).tolist(), strict=True))


@pytest.mark.parametrize("name", ["top_p", "threshold", "sampled"])
@pytest.mark.parametrize("tool", READERS)
def test_every_tool_decodes_the_values_of_the_cache(tmp_path, name, tool):
    """The recipe's arithmetic, on the columns as each tool gives them."""
    cache, scope = make_cache(tmp_path, SPECS[name]), {}
    exec(blocks("python")[0], scope)
    for path, rows in zip(live(cache), by_shard(cache), strict=True):
        table = READERS[tool](path)
        flat = {n: np.concatenate([np.asarray(row) for row in table[n]]) for n in table if n in DECODED}
        ids = scope["ids_by_rank"](path, cache.spec.vocab_size)
        counts, entries = flat["num_kept"].astype(int), entries_of(rows)
        logprobs = (
            np.repeat(flat["top_codes"], counts) / -64 - scope["running"](flat["kept_codes"], counts) / 16
        )
        assert ids[flat["kept_ranks"].astype(int)].tolist() == entries.ids[entries.is_exact].tolist()
        np.testing.assert_allclose(np.exp(logprobs), entries.weights[entries.is_exact], rtol=1e-5)
        if cache.spec.is_sampling:
            ranks = scope["running"](flat["sampled_gaps"], flat["num_sampled"].astype(int))
            assert ids[ranks].tolist() == entries.ids[~entries.is_exact].tolist()
            weights = flat["sampled_counts"] / 13 if name == "sampled" else np.full(len(ranks), 1 / 8)
            np.testing.assert_allclose(weights, entries.weights[~entries.is_exact], rtol=1e-6)


DECODED = (
    "num_kept",
    "kept_ranks",
    "kept_codes",
    "top_codes",
    "num_sampled",
    "sampled_gaps",
    "sampled_counts",
)


def table_rows():
    return {
        name.strip(): cells.split("|")
        for name, cells in re.findall(r"^\| ([a-z /-]+) \|(.*?)\|$", PAGE, re.MULTILINE)
    }


def test_the_worked_example_holds():
    table = table_rows()
    logprobs, codes, decoded = (
        np.array(table[n], np.float32) for n in ("log-probability", "code", "decoded")
    )
    top = encode_scalars(-logprobs[:1], 1 / 64).codes
    assert top.tolist() == [6]
    top = -decode_scalars(top, 1 / 64)
    encoded, clamped = encode_logprobs(logprobs, np.array([4]), top, 1 / 16)
    assert (encoded.tolist(), clamped) == (codes.astype(int).tolist(), 0)
    assert np.cumsum(encoded).tolist() == [int(level) for level in table["level"]]
    assert decode_logprobs(encoded, np.array([4]), top, 1 / 16).tolist() == decoded.tolist()


def test_the_worked_example_of_ranks_holds():
    ranking = Ranking(listed=np.array([5, 2], np.int32), vocab_size=8)
    assert ranking.id_by_rank.tolist() == [int(cell) for cell in table_rows()["id"]]
    gaps, _ = to_gaps(np.array([7, 5, 2], np.int32), np.array([3]), ranking)
    assert gaps.tolist() == [0, 1, 6]
    assert f"the gaps {', '.join(map(str, gaps))}." in PAGE


def test_every_column_and_feature_is_on_the_page():
    for spec in SPECS.values():
        for name in shard_schema(spec).names:
            generic = re.sub(r"feature_[a-z]+_\d+", "feature_<pooling>_<layer>", name)
            assert f"`{generic}`" in PAGE, generic
        assert all(f"`{key}`" in PAGE for key in spec.to_json())
    assert all(f"`{feature}`" in PAGE for feature in KNOWN_FEATURES)


def blake(data, person=b""):
    return hashlib.blake2b(data, digest_size=16, person=person)


def test_hashes_by_the_page_alone(cache):
    """Each recipe of the page, with nothing but hashlib and json."""
    root = Path(cache.storage.root)
    header = json.loads((root / "_teachonce" / "spec.json").read_text(encoding="utf-8"))
    stated = header.pop("hash")
    assert blake(canonical(header), b"header").hexdigest() == stated
    spec_hash = blake(canonical(header["spec"]), b"spec").hexdigest()
    lines = [json.loads(line) for line in (root / "_delta_log" / f"{0:020d}.json").read_text().splitlines()]
    info = next(line["commitInfo"]["teachonce"] for line in lines if "commitInfo" in line)
    assert blake(info["record"].encode()).hexdigest() == info["hash"]
    record, names = json.loads(info["record"]), sorted(line["add"]["path"] for line in lines if "add" in line)
    assert record["header_hash"] == stated
    assert blake("\n".join(names).encode()).hexdigest() == record["live_hash"]
    assert {"appId": "teachonce", "version": 0}.items() <= next(
        line["txn"] for line in lines if "txn" in line
    ).items()
    for name in names:
        assert_sealed(root / name, spec_hash)


def assert_sealed(path, spec_hash):
    data, (unit, seal) = path.read_bytes(), path.stem.split("-")
    length = int.from_bytes(data[-8:-4], "little")
    assert blake(data[-length - 8 :]).hexdigest() == seal
    footer = json.loads(pq.read_metadata(path).metadata[b"teachonce"])
    assert (footer["unit"], footer["spec_hash"], footer["format_version"]) == (unit, spec_hash, 1)
    ids = b"".join(sorted(pq.read_table(path)["example_id"].to_pylist()))
    assert blake(ids + spec_hash.encode(), b"unit").hexdigest() == unit
    for place, group in enumerate(footer["row_groups"]):
        assert blake(data[group["start"] : group["end"]]).hexdigest() == group["hash"]
        table = pq.ParquetFile(path).read_row_group(place)
        state = blake(b"".join(table["example_id"].to_pylist() + table["document_hash"].to_pylist()))
        for name in ("window_index", "window_count"):
            state.update(table[name].to_numpy().astype("<i4").tobytes())
        assert state.hexdigest() == group["ids_hash"]
    assert footer["row_groups"][-1]["end"] == len(data) - length - 8


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_identity_by_the_page_alone():
    document = blake(canonical(["7", {"text": "\u6c34"}, 1]), b"document").digest()
    assert document == document_hash({"text": "\u6c34"}, key="7", label=1)
    how = bytes(range(16))
    one = blake(document + (5).to_bytes(4, "little") + how, b"example").digest()
    assert one == example_id(document, window_index=5, tokenised_how=how)
    assert blake(one + b"spec", b"unit").hexdigest() == unit_name([one], "spec")
