"""A cache as plain Parquet, for tools that want lists of ids and log-probabilities instead of codes.

One file a shard, a row an example, nothing to decode: `ids` and `logprobs` are a list for each position. It goes row
group by row group, so memory is that of one. Costs several times the cache's bytes; a trainer reads the cache itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.cache import Cache
from schemas.errors import UsageError
from schemas.features import Feature
from schemas.rows.columns import BOXES, IMAGE, OBJECT_BOXES, OBJECT_CLASSES
from schemas.rows.entries import Entries, entries_of
from schemas.rows.ragged import Array, Ragged, offsets_of
from schemas.rows.rows import Rows
from schemas.shards.seal import parse_name
from schemas.spec import Spec
from schemas.upkeep.export_folder import begin, finish, is_whole, write


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    path: str
    files: int
    kept: int
    """Of these, files that an export before this one had finished."""
    examples: int
    bytes: int


Progress = Callable[[Exported, int], None]
"""Told after each file: what is written so far, and how many files there will be."""


def export(
    cache: Cache,
    out: str | Path,
    columns: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
) -> Exported:
    """Writes `<unit>.parquet` into a new or empty local folder for each live shard; `columns` chooses some of them.

    A file has its name only once it is whole, and the folder's mark says when all are there. The same call goes on with
    an export that was killed; `overwrite` writes one of another version or of other columns anew.

    Raises:
        UsageError: the folder holds something else, or cannot be written; or there is no such column.
        CacheError: there is no room.
        CorruptionError: a shard is damaged.
    """
    schema = _chosen(export_schema(cache.spec), columns)
    asked = {
        "version": cache.version,
        "cache": cache.record.live_hash,
        "header": cache.record.header_hash,
        "columns": schema.names,
    }
    folder = begin(out, asked, overwrite=overwrite)
    done, files = Exported(path=str(folder), files=0, kept=0, examples=0, bytes=0), {}
    for shard in cache.shards:
        path = folder / f"{parse_name(shard.name)[0]}.parquet"
        kept = is_whole(path, schema, shard.examples)
        if not kept:
            groups = [ref for ref in cache.row_groups if ref.shard == shard]
            write(path, (plain_table(cache.read(ref), schema) for ref in groups), schema)
        size = path.stat().st_size
        files[path.name] = {"bytes": size, "examples": shard.examples}
        done = Exported(
            path=done.path,
            files=done.files + 1,
            kept=done.kept + kept,
            examples=done.examples + shard.examples,
            bytes=done.bytes + size,
        )
        if progress is not None:
            progress(done, len(cache.shards))
    finish(folder, asked, files)
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
        *((True, column.name, pa.int32()) for column in spec.kind.columns),
        (spec.kind.reads_images, IMAGE, pa.binary()),
        (True, "position_index", ids),
        (spec.kind.has_positions, "labels", ids if softmax else raw),
        (softmax, "ids", pa.list_(ids)),
        (softmax, "logprobs", raw),
        (spec.is_sampling, "weights", raw),
        (softmax and "entropy" in spec.scalars, "entropy", floats),
        (softmax and "gold" in spec.scalars, "gold_logprob", floats),
        (softmax and "word_start" in spec.scalars, "word_start_logprob", floats),
        (spec.kind.has_positions and not softmax, "logits", raw),
        (spec.kind.has_boxes, BOXES, raw),
        (spec.kind.has_boxes, OBJECT_CLASSES, ids),
        (spec.kind.has_boxes, OBJECT_BOXES, raw),
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
        **{c.name: partial(pa.array, rows.array(c.name), pa.int32()) for c in rows.spec.kind.columns},
        IMAGE: lambda: pa.array(rows.array(IMAGE), pa.binary()),
        "position_index": lambda: _nested(rows.position_index(), rows.position_offsets),
        **{f.column: partial(_feature, rows, f) for f in rows.spec.features},
        **{name: partial(_fours, rows.ragged(name)) for name in (BOXES, OBJECT_BOXES) if name in rows.data},
        OBJECT_CLASSES: lambda: _lists(rows.ragged(OBJECT_CLASSES)),
        **(_of_entries(rows) if rows.spec.score == "softmax" else _of_logits(rows)),
    }


def _of_entries(rows: Rows) -> dict[str, Callable[[], pa.Array]]:
    decoded = functools.cache(lambda: entries_of(rows))

    def entries(name: str) -> pa.Array:
        return _per_position(getattr(decoded(), name), decoded(), rows)

    return {
        "labels": lambda: _lists(rows.gold_ids()),
        **{name: partial(entries, name) for name in ("ids", "logprobs", "weights")},
        "entropy": lambda: _nested(rows.entropy(), rows.position_offsets),
        "gold_logprob": lambda: _lists(rows.gold_logprob()),
        "word_start_logprob": lambda: _nested(rows.word_start_logprob(), rows.position_offsets),
    }


def _fours(column: Ragged) -> pa.Array:
    """Of each row, a list a box."""
    inner = _nested(column.values, np.arange(0, len(column.values) + 1, 4))
    return _lists(replace(column, values=np.arange(len(inner)), offsets=column.offsets // 4), inner)


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


def _chosen(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    unknown = [name for name in names if name not in schema.names]
    if unknown or len(set(names)) < len(names):
        what = "no such column" if unknown else "a column is asked for twice"
        got = ", ".join(map(repr, unknown or names))
        raise UsageError(what, expected=f"some of {', '.join(schema.names)}", got=got)
    return pa.schema([schema.field(name) for name in names]) if names else schema
