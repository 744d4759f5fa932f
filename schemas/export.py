"""A cache as plain Parquet, for tools that want lists of ids and log-probabilities instead of codes.

One file a shard, a row an example, nothing to decode: `ids` and `logprobs` are a list for each position. It goes row
group by row group, so memory is that of one. Costs several times the cache's bytes; a trainer reads the cache itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.cache import Cache, RowGroupRef
from schemas.entries import Entries, entries_of
from schemas.errors import UsageError, one_line
from schemas.ragged import Array, Ragged, offsets_of
from schemas.rows import Rows
from schemas.shards import parse_name
from schemas.spec import Feature, Spec

_PART = ".part"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    path: str
    files: int
    examples: int
    bytes: int


Progress = Callable[[Exported, int], None]
"""Told after each file: what is written so far, and how many files there will be."""


def export(
    cache: Cache, out: str | Path, columns: Sequence[str] = (), progress: Progress | None = None
) -> Exported:
    """Writes `<unit>.parquet` into a new or empty local folder for each live shard; `columns` chooses some of them.

    A file has its name only once it is whole.

    Raises:
        UsageError: the folder is not empty, or cannot be written; or there is no such column.
        CorruptionError: a shard is damaged.
    """
    schema = _chosen(export_schema(cache.spec), columns)
    folder = _empty_folder(out)
    done = Exported(path=str(folder), files=0, examples=0, bytes=0)
    for shard in cache.shards:
        groups = [ref for ref in cache.row_groups if ref.shard == shard]
        path = folder / f"{parse_name(shard.name)[0]}.parquet"
        try:
            _write(cache, groups, schema, path)
        except OSError as error:
            raise UsageError("the folder cannot be written", where=folder, got=one_line(error)) from error
        done = Exported(
            path=done.path,
            files=done.files + 1,
            examples=done.examples + shard.examples,
            bytes=done.bytes + path.stat().st_size,
        )
        if progress is not None:
            progress(done, len(cache.shards))
    return done


def export_schema(spec: Spec) -> pa.Schema:
    """The columns of an exported file, in order."""
    ids, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
    raw, softmax = pa.list_(floats), spec.score == "softmax"
    optional = [
        (spec.has_document_id, "document_id", pa.string()),
        (spec.has_text, "text", pa.string()),
        (spec.has_text_pair, "text_pair", pa.string()),
        (True, "input_ids", ids),
        (spec.has_token_type_ids, "token_type_ids", ids),
        (True, "position_index", ids),
        (True, "labels", ids if softmax else raw),
        (softmax, "ids", pa.list_(ids)),
        (softmax, "logprobs", raw),
        (spec.is_sampling, "weights", raw),
        (softmax and "entropy" in spec.scalars, "entropy", floats),
        (softmax and "gold" in spec.scalars, "gold_logprob", floats),
        (not softmax, "logits", raw),
        *((True, feature.column, floats) for feature in spec.features),
    ]
    fields = [("example_id", pa.string()), ("document_hash", pa.string())]
    return pa.schema([*fields, *((name, kind) for wanted, name, kind in optional if wanted)])


def plain_table(rows: Rows, schema: pa.Schema) -> pa.Table:
    """The named columns of some rows, decoded."""
    made = _columns(rows)
    return pa.Table.from_arrays([made[f.name]().cast(f.type) for f in schema], schema=schema)


def _columns(rows: Rows) -> dict[str, Callable[[], pa.Array]]:
    """How each column is made; none is made before it is asked for."""
    texts = [name for name in ("document_id", "text", "text_pair") if name in rows.data]
    lists = [name for name in ("input_ids", "token_type_ids") if name in rows.data]
    return {
        **{name: partial(_hex, rows.array(name)) for name in ("example_id", "document_hash")},
        **{name: partial(pa.array, rows.array(name), pa.string()) for name in texts},
        **{name: partial(_lists, rows.ragged(name)) for name in lists},
        "position_index": lambda: _nested(rows.position_index(), rows.position_offsets),
        **{f.column: partial(_feature, rows, f) for f in rows.spec.features},
        **(_of_entries(rows) if rows.spec.score == "softmax" else _of_logits(rows)),
    }


def _of_entries(rows: Rows) -> dict[str, Callable[[], pa.Array]]:
    decoded = functools.cache(lambda: entries_of(rows))

    def entries(name: str) -> pa.Array:
        return _per_position(getattr(decoded(), name), decoded(), rows)

    return {
        "labels": lambda: _labels(rows),
        **{name: partial(entries, name) for name in ("ids", "logprobs", "weights")},
        "entropy": lambda: _nested(rows.entropy(), rows.position_offsets),
        "gold_logprob": lambda: _lists(rows.gold_logprob()),
    }


def _of_logits(rows: Rows) -> dict[str, Callable[[], pa.Array]]:
    """Raw scores and their labels, V of each position."""
    width = rows.spec.vocab_size

    def cut(name: str) -> pa.Array:
        column = rows.ragged(name)
        inner = _nested(column.values, np.arange(0, len(column.values) + 1, width))
        return _lists(
            Ragged(values=np.arange(len(inner)), offsets=column.offsets // width, valid=column.valid), inner
        )

    return {name: partial(cut, name) for name in ("labels", "logits")}


def _per_position(values: Array, found: Entries, rows: Rows) -> pa.Array:
    """A list of lists; what is not a number, because the cache does not store it, is null."""
    return _nested(_nested(values, offsets_of(found.counts)), rows.position_offsets)


def _labels(rows: Rows) -> pa.Array:
    """The gold id of each position: the corpus's, or a causal LM's next token."""
    if rows.spec.task != "causal-lm":
        return _lists(rows.ragged("labels"))
    starts = np.repeat(rows.input_ids.offsets[:-1], np.diff(rows.position_offsets))
    return _nested(rows.input_ids.values[starts + rows.position_index() + 1], rows.position_offsets)


def _nested(values: Any, offsets: Array) -> pa.Array:
    if isinstance(values, np.ndarray):
        values = pa.array(values, from_pandas=True)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _lists(column: Ragged, values: pa.Array | None = None) -> pa.Array:
    inner = pa.array(column.values) if values is None else values
    mask = None if column.valid is None else pa.array(~column.valid)
    return pa.ListArray.from_arrays(pa.array(column.offsets, pa.int32()), inner, mask=mask)


def _feature(rows: Rows, feature: Feature) -> pa.Array:
    values = rows.feature(feature)
    return _nested(values.reshape(-1), np.arange(0, values.size + 1, values.shape[1]))


def _hex(hashes: Array) -> pa.Array:
    return pa.array([row.tobytes().hex() for row in hashes], pa.string())


def _write(cache: Cache, groups: Sequence[RowGroupRef], schema: pa.Schema, path: Path) -> None:
    part = path.with_name(path.name + _PART)
    try:
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for ref in groups:
                writer.write_table(plain_table(cache.read(ref), schema))
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def _chosen(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    unknown = [name for name in names if name not in schema.names]
    if unknown or len(set(names)) < len(names):
        what = "no such column" if unknown else "a column is asked for twice"
        got = ", ".join(map(repr, unknown or names))
        raise UsageError(what, expected=f"some of {', '.join(schema.names)}", got=got)
    return pa.schema([schema.field(name) for name in names]) if names else schema


def _empty_folder(out: str | Path) -> Path:
    """A local folder, made where it is not there."""
    if "://" in str(out):
        raise UsageError("an export goes to a local folder", got=out)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        filled = next(folder.iterdir(), None)
    except OSError as error:
        raise UsageError("the folder cannot be written", where=folder, got=one_line(error)) from error
    if filled is not None:
        raise UsageError("an export goes to a new or empty folder", where=folder, got=filled.name)
    return folder
