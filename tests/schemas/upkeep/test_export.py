"""`teachonce export`: plain Parquet whose values are the cache's, in the hands of other tools."""

import json
import re
import time
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

import teachonce
from schemas import Cache, verify
from schemas.errors import CorruptionError, NoCacheError, UsageError
from schemas.rows.entries import entries_of
from schemas.rows.rows import Rows
from schemas.upkeep.export import export, export_schema
from schemas.upkeep.export_folder import MARK
from tests.synthetic import SPECS, make_cache

SOFTMAX = [name for name, spec in SPECS.items() if spec.score == "softmax"]


def by_id(cache):
    rows = Rows.concatenate(list(cache.read_all()))
    return rows.take(np.argsort(rows.example_ids))


def mark_of(folder):
    return json.loads((folder / MARK).read_text())


def flat(lists):
    return [value for row in lists for value in row]


def with_duckdb(folder):
    table = duckdb.sql(f"SELECT * FROM '{folder}/*.parquet' ORDER BY example_id").to_arrow_table()
    return table.to_pydict()


def with_polars(folder):
    return pl.read_parquet(f"{folder}/*.parquet").sort("example_id").to_dict(as_series=False)


TOOLS = {"duckdb": with_duckdb, "polars": with_polars}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", SOFTMAX)
def test_entries_are_those_of_the_cache(tmp_path, name, tool):
    cache = make_cache(tmp_path / "cache", SPECS[name])
    done = export(cache, tmp_path / "plain")
    assert (done.files, done.examples) == (2, 24)
    found, rows = TOOLS[tool](tmp_path / "plain"), by_id(cache)
    entries = entries_of(rows)
    assert [i.hex() for i in rows.example_ids] == found["example_id"]
    assert [len(row) for row in found["ids"]] == np.diff(rows.position_offsets).tolist()
    assert [len(one) for one in flat(found["ids"])] == entries.counts.tolist()
    assert flat(flat(found["ids"])) == entries.ids.tolist()
    logprobs = [np.nan if value is None else value for value in flat(flat(found["logprobs"]))]
    np.testing.assert_array_equal(np.array(logprobs, np.float32), entries.logprobs)
    assert ("weights" in found) == rows.spec.is_sampling
    if rows.spec.is_sampling:
        assert np.array(flat(flat(found["weights"])), np.float32).tolist() == entries.weights.tolist()
    assert flat(found["position_index"]) == rows.position_index().tolist()


@pytest.mark.parametrize("name", SPECS)
def test_everything_else_is_that_of_the_cache(tmp_path, name):
    cache = make_cache(tmp_path / "cache", SPECS[name])
    export(cache, tmp_path / "plain")
    found, rows = with_duckdb(tmp_path / "plain"), by_id(cache)
    assert list(found) == export_schema(cache.spec).names
    for column in ("input_ids", "token_type_ids"):
        assert (column in found) == (column in rows.data)
        assert column not in found or flat(found[column]) == rows.ragged(column).values.tolist()
    for column in ("document_id", "text", "text_pair"):
        assert found.get(column) == (rows.array(column).tolist() if column in rows.data else None)
    for feature in rows.spec.features:
        assert np.array(found[feature.column], np.float32).tolist() == rows.feature(feature).tolist()
    assert ("entropy" in found) == (rows.spec.score == "softmax" and "entropy" in rows.spec.scalars)
    if "entropy" in found:
        assert np.array(flat(found["entropy"]), np.float32).tolist() == rows.entropy().tolist()
    if "gold_logprob" in found:
        gold = rows.gold_logprob()
        assert [row is not None for row in found["gold_logprob"]] == gold.validity.tolist()
        known = flat(row or [] for row in found["gold_logprob"])
        assert np.array(known, np.float32).tolist() == gold.values.tolist()


def test_labels_of_a_causal_lm_are_the_next_tokens(tmp_path):
    cache = make_cache(tmp_path / "cache")
    export(cache, tmp_path / "plain")
    found = with_duckdb(tmp_path / "plain")
    for tokens, places, labels in zip(
        found["input_ids"], found["position_index"], found["labels"], strict=True
    ):
        assert labels == [tokens[place + 1] for place in places]


@pytest.mark.parametrize("name", ["classes", "sigmoid", "regression"])
def test_labels_of_classes_are_the_corpuss(tmp_path, name):
    cache = make_cache(tmp_path / "cache", SPECS[name])
    export(cache, tmp_path / "plain")
    found, rows = with_duckdb(tmp_path / "plain"), by_id(cache)
    labels = rows.ragged("labels")
    assert [row is not None for row in found["labels"]] == labels.validity.tolist()
    known = [row for row in found["labels"] if row is not None]
    if name == "classes":
        assert flat(known) == labels.values.tolist()
        return
    width = rows.spec.vocab_size
    assert np.array(known, np.float32).reshape(-1).tolist() == labels.values.tolist()
    assert np.array(found["logits"], np.float32).shape == (len(rows), 1, width)
    assert np.array(found["logits"], np.float32).reshape(-1).tolist() == rows.ragged("logits").values.tolist()
    assert "ids" not in found


def test_types_are_plain(tmp_path):
    cache = make_cache(tmp_path / "cache", SPECS["threshold"])
    export(cache, tmp_path / "plain")
    schema = pq.read_schema(next((tmp_path / "plain").iterdir()))
    assert str(schema.field("ids").type) == "list<element: list<element: int32>>"
    assert str(schema.field("weights").type) == "list<element: list<element: float>>"
    assert str(schema.field("feature_mean_2").type) == "list<element: float>"


def test_a_row_group_is_read_and_written_at_a_time(tmp_path, monkeypatch):
    cache = make_cache(tmp_path / "cache", num_rows=40, num_shards=2)
    log, read, write = [], Cache.read, pq.ParquetWriter.write_table
    monkeypatch.setattr(Cache, "read", lambda *a, **k: log.append("read") or read(*a, **k))
    monkeypatch.setattr(
        pq.ParquetWriter, "write_table", lambda *a, **k: log.append("write") or write(*a, **k)
    )
    export(cache, tmp_path / "plain")
    assert log == ["read", "write"] * len(cache.row_groups)
    groups = [pq.read_metadata(path).num_row_groups for path in (tmp_path / "plain").glob("*.parquet")]
    assert sum(groups) == len(cache.row_groups) == 4


def test_verbs_tell_how_far_they_are_as_all_do(tmp_path, own_cache, capsys, monkeypatch):
    """Where there is no terminal a line a minute, here a hundredth of a second; none of what is done sooner."""
    assert teachonce.main(["verify", own_cache.storage.root]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("schemas.cli.progress._PLAIN_SECONDS", 0.01)
    check, read = verify.check_shard, Cache.read
    monkeypatch.setattr(verify, "check_shard", lambda *a: time.sleep(0.2) or check(*a))
    monkeypatch.setattr(Cache, "read", lambda *a: time.sleep(0.2) or read(*a))
    for line, verb, things in (
        (["verify"], "verify", "shards"),
        (["verify", "--repair"], "repair", "shards"),
        (["export", "--out", str(tmp_path / "plain")], "export", "files"),
    ):
        assert teachonce.main([line[0], own_cache.storage.root, *line[1:]]) == 0
        told = rf"(\S+ {verb}: \d of 2 {things} \(\d+%\)\n)+"
        assert re.fullmatch(told, capsys.readouterr().err)


def test_the_verb_tells_what_it_has_written(tmp_path, own_cache, capsys):
    out = str(tmp_path / "plain")
    assert teachonce.main(["export", own_cache.storage.root, "--out", out, "--format", "parquet"]) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(rf"2 files, 24 examples, [\d,]+ bytes in {re.escape(out)}\n", printed.out)
    assert printed.err == ""
    names = sorted(path.name for path in Path(out).glob("*.parquet"))
    assert names == sorted(f"{shard.name[:32]}.parquet" for shard in own_cache.shards)


def test_chosen_columns_and_json(tmp_path, own_cache, capsys):
    out = str(tmp_path / "plain")
    argv = ["export", own_cache.storage.root, "--out", out, "--columns", "ids, input_ids", "--json"]
    assert teachonce.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["files"], found["examples"]) == (out, 2, 24)
    assert found["bytes"] == sum(path.stat().st_size for path in Path(out).glob("*.parquet"))
    assert list(with_polars_columns(out)) == ["ids", "input_ids"]


def with_polars_columns(folder):
    return pl.read_parquet(f"{folder}/*.parquet").columns


def test_what_is_asked_wrongly_is_refused(tmp_path, own_cache):
    filled = tmp_path / "filled"
    filled.mkdir()
    (filled / "mine.txt").write_text("mine")
    for out, columns, told in (
        (filled, (), r"empty folder.*mine\.txt"),
        (filled / "mine.txt", (), "cannot be written"),
        ("s3://bucket/plain", (), "local folder"),
        (tmp_path / "new", ("ids", "logits", "mood"), "no such column.*got 'logits', 'mood'"),
        (tmp_path / "new", ("ids", "labels", "ids"), "asked for twice.*got 'ids', 'labels', 'ids'"),
    ):
        with pytest.raises(UsageError, match=told):
            export(own_cache, out, columns)
    assert [path.name for path in filled.iterdir()] == ["mine.txt"]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["{cache}"], 2),
        (["/nowhere", "--out", "{new}"], 2),
        (["{cache}", "--out", "{new}", "--format", "csv"], 2),
        (["{cache}", "--out", "{new}", "--columns", ","], 2),
        (["{cache}", "--out", "{new}", "--columns", ""], 2),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(tmp_path, own_cache, argv, code, capsys):
    argv = [text.format(cache=own_cache.storage.root, new=tmp_path / "new") for text in argv]
    assert teachonce.main(["export", *argv]) == code
    assert re.fullmatch(r"teachonce export: .+\n", capsys.readouterr().err)
    with pytest.raises((UsageError, NoCacheError)):
        teachonce.main(["export", *argv, "--traceback"])


def test_a_damaged_shard_leaves_no_file_that_looks_whole(tmp_path, own_cache):
    path = Path(own_cache.storage.root) / own_cache.shards[1].name
    data = bytearray(path.read_bytes())
    data[own_cache.row_groups[-1].group.start + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match="sealed"):
        export(Cache.open(own_cache.storage.root), tmp_path / "plain")
    assert [file.name for file in (tmp_path / "plain").glob("*.p*")] == [
        f"{own_cache.shards[0].name[:32]}.parquet"
    ]


def test_a_full_disk_is_told(tmp_path, own_cache, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    assert teachonce.main(["export", own_cache.storage.root, "--out", str(tmp_path / "plain")]) == 1
    err = capsys.readouterr().err
    assert ("cannot be written" in err, "No space left" in err, err.count("\n")) == (True, True, 1)
    assert [file.name for file in (tmp_path / "plain").iterdir()] == [MARK]
    assert not mark_of(tmp_path / "plain")["complete"]
