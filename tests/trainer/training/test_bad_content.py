"""What is sealed may still be wrong: values that are no numbers, and counts that do not add up. Training ends where it
comes to them, with one error; what was saved before is good, and nothing else is saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.cache import Cache
from schemas.features import Feature
from schemas.identity import held_out_below
from schemas.rows.ragged import Ragged, offsets_of
from schemas.rows.rows import Rows
from schemas.shards.seal import SealedShard, bytes_hash, seal_shard
from schemas.storage.storage import Storage
from schemas.versions.row_counts import kept_name
from schemas.versions.row_table import RowTable
from tests.trainer.caches import causal_spec, write_cache
from tests.trainer.commanding import AUTO, train
from tests.trainer.mid_epoch import TOLD, refused
from tests.trainer.outputs import weights
from tests.trainer.tiny import HIDDEN

FEATURE = Feature(pooling="mean", layer=2, width=HIDDEN, dtype="float32")
BAD = 64
"""The row whose turn comes late."""
NAN, INF = float("nan"), float("inf")


def with_value(rows: Rows, name: str, row: int, value: float, number: int = 3) -> Rows:
    """One value of a column is another."""
    column = rows.data[name]
    if isinstance(column, Ragged):
        values = column.values.copy()
        values[column.offsets[row] + number] = value
        column = Ragged(values=values, offsets=column.offsets, valid=column.valid)
    else:
        column = column.copy()
        column[row] = value
    return Rows(spec=rows.spec, data={**rows.data, name: column})


def causal_rows(cache: Cache) -> Rows:
    """Those of the cache, with one feature that is kept in float32."""
    rows = Rows.concatenate([*cache.read_all()])
    values = rows.feature(cache.spec.features[0]).astype(np.float32)
    data = {name: column for name, column in rows.data.items() if not name.startswith("feature")}
    lengths = np.full(len(rows), HIDDEN)
    data[FEATURE.column] = Ragged(values=values.reshape(-1).copy(), offsets=offsets_of(lengths))
    return Rows(spec=causal_spec(features=(FEATURE,)), data=data)


def fails(cache: Cache, folder: Path, capfd: pytest.CaptureFixture[str], *named: str, **changes: Any) -> str:
    """Trains until the command ends with one error about a row group, after good checkpoints; and again."""
    told = {**TOLD, "max_steps": 36, "losses": ["kl=1", "feature=0.1"], **changes}
    assert train(cache, folder, "out", **told) == 1
    message = refused(capfd.readouterr().err, cache.storage.root, ".parquet, row group ")
    said = message.replace(
        str(folder), ""
    )  # whose name holds the test's, and with it the words that are looked for
    for name in named:
        assert name in said, said
    out = folder / "out"
    steps = {path.name for path in out.glob("checkpoint-*")}
    assert "checkpoint-3" in steps
    assert not (out / "model.safetensors").exists()
    for step in steps:
        assert all(np.isfinite(value.numpy()).all() for value in weights(out / step).values())
    assert train(cache, folder, "out", *AUTO, **told) == 1
    assert message.partition("row group")[0] == refused(capfd.readouterr().err).partition("row group")[0]
    assert not (out / "model.safetensors").exists()
    return message


@pytest.mark.parametrize(
    ("column", "value"),
    [(FEATURE.column, NAN), (FEATURE.column, INF), ("logsumexp", NAN), ("logsumexp", -INF)],
)
def test_a_value_that_is_no_number(
    causal_cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str], column: str, value: float
) -> None:
    rows = with_value(causal_rows(causal_cache), column, BAD, value)
    cache = write_cache(tmp_path / "cache", rows, group_rows=4, shards=20)
    fails(cache, tmp_path, capfd, f"column {column}", "expected finite numbers", f"got {value}")


@pytest.mark.parametrize("value", [NAN, -1.0])
def test_a_features_scale(
    causal_cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str], value: float
) -> None:
    (scale, *_) = [feature.scale_column for feature in causal_cache.spec.features]
    rows = with_value(Rows.concatenate([*causal_cache.read_all()]), scale, BAD, value)
    cache = write_cache(tmp_path / "cache", rows, group_rows=4, shards=20)
    fails(cache, tmp_path, capfd, f"column {scale}", f"got {value}")


@pytest.mark.parametrize(
    ("score", "column", "value"),
    [("sigmoid", "logits", NAN), ("identity", "logits", INF), ("identity", "labels", NAN)],
)
def test_a_logit_or_a_label(
    class_cache_of: Callable[..., Cache],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    score: str,
    column: str,
    value: float,
) -> None:
    rows = Rows.concatenate([*class_cache_of(score=score).read_all()])
    row = next(row for row in range(44, 90) if rows.ragged(column).lengths[row])
    rows = with_value(rows, column, row, value, number=1)
    cache = write_cache(tmp_path / "cache", rows, group_rows=4, shards=12)
    told: dict[str, Any] = {"losses": ["mse_logits=1", "ce=0.5"], "model": {"model_type": "bert"}}
    fails(cache, tmp_path, capfd, f"column {column}", f"got {value}", **told)


@pytest.mark.parametrize(
    ("counts", "named"),
    [((31, 32), "column kept_ids has a list of the wrong length"), ((31, 33), "column num_kept")],
    ids=["one fewer", "one moved"],
)
def test_kept_counts_that_are_not_those_of_the_entries(
    causal_cache: Cache,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    counts: tuple[int, int],
    named: str,
) -> None:
    """All entries after it would belong to another position."""
    rows = Rows.concatenate([*causal_cache.read_all()])
    for position, count in enumerate(counts):
        rows = with_value(rows, "num_kept", BAD, count, position)
    cache = write_cache(tmp_path / "cache", rows, group_rows=4, shards=20)
    fails(cache, tmp_path, capfd, named, "expected ", "got ", losses=["kl=1"])


def forging(unit: int, change: Callable[[dict[str, Any]], None]) -> Callable[..., SealedShard]:
    """Seals as a writer does, but that the footer of one shard says something else; its seal is right for that."""

    def seal(groups: Any, **fields: Any) -> SealedShard:
        sealed = seal_shard(groups, **fields)
        if fields["unit"] != f"{unit:032x}":
            return sealed
        data, told = bytes(sealed.data), sealed.footer.to_bytes()
        footer = json.loads(told)
        change(footer)
        forged = json.dumps(footer, separators=(",", ":")).encode()
        assert len(forged) == len(told)
        assert data.count(told) == 1
        start = sealed.footer.row_groups[-1].end
        data = data.replace(told, forged)
        return sealed._replace(
            name=f"{fields['unit']}-{bytes_hash(data[start:])}.parquet", data=memoryview(data)
        )

    return seal


@pytest.mark.parametrize("name", ["examples", "tokens", "positions", "entries"])
def test_a_footer_that_counts_otherwise(
    causal_cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    def change(footer: dict[str, Any]) -> None:
        for counts in (footer["row_groups"][1], footer["totals"]):
            counts[name] -= 1

    rows = Rows.concatenate([*causal_cache.read_all()])
    cache = write_cache(tmp_path / "cache", rows, group_rows=4, shards=20, sealing=forging(8, change))
    assert train(cache, tmp_path, "out", **TOLD) == 1
    at = "" if name == "examples" else ", row group 1"
    refused(capfd.readouterr().err, f"{8:032x}-", f".parquet{at}", "expected ", "got ")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_footer_of_a_newer_release(
    causal_cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def change(footer: dict[str, Any]) -> None:
        footer["unix"] = footer.pop("unit")

    rows = Rows.concatenate([*causal_cache.read_all()])
    cache = write_cache(tmp_path / "cache", rows, group_rows=4, shards=20, sealing=forging(8, change))
    assert train(cache, tmp_path, "out", **TOLD) == 1
    refused(capfd.readouterr().err, f"{8:032x}", "what this reader does not know", "or a newer one")
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("lie", ["held out", "moved"])
def test_an_index_that_counts_otherwise(
    good: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str], lie: str
) -> None:
    """Its hash is right, and each shard has as many rows as the log says: it is found where the row group is read. What
    was trained until then stood in another order than the cache's, so nothing goes on from there."""
    cache = Cache.open(shutil.copytree(good.storage.root, tmp_path / "cache"))
    counts = cache.row_counts(0.2)
    pairs = np.stack([counts.to_train + counts.held_out, counts.held_out], axis=1).astype(np.int32)
    parts = np.split(pairs, np.flatnonzero(np.diff(counts.shard)) + 1)
    part = parts[8]
    if lie == "held out":
        part[1, 1] += 1 if part[1, 1] < part[1, 0] else -1
    else:
        part[:, 0] += [1, -1]
        part[:, 1] = np.minimum(part[:, 1], part[:, 0])
    below = held_out_below(0.2)
    table = RowTable.of(dict(zip((shard.name for shard in cache.shards), parts, strict=True)))
    name = kept_name(cache.record.live_hash, below)
    assert Path(cache.storage.root, name).exists()
    Storage.at(cache.storage.root).put(name, table.to_bytes(below))
    fails(
        Cache.open(cache.storage.root),
        tmp_path,
        capfd,
        cache.shards[8].name,
        "the index of row counts is not that of the shard",
        "Remove",
        losses=["kl=1"],
    )
    Path(cache.storage.root, name).unlink()
    assert train(cache, tmp_path, "out", *AUTO, **{**TOLD, "max_steps": 36}, losses=["kl=1"]) == 2
    refused(capfd.readouterr().err, "another row_counts")
