"""The one schema: which columns a shard has under a spec, their types, and how each is encoded on disk.

A row is an example. Everything per token, position or kept entry is a list column: `docs/cache-format.md` tells what
each means. Types are those that Delta, DuckDB, Polars, pandas, Spark and Hugging Face `datasets` share: no unsigned
integers, no float16, no opaque blobs.

Encodings decide the bytes: ids and codes in byte planes (BYTE_STREAM_SPLIT), what has few values in a dictionary,
both under zstd: a plane is Huffman coded, where a dictionary's packed bits are aligned to nothing. A wrong path in
Arrow's `column_encoding` is ignored without a word, so `check_encodings` asserts them from the footer.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import CorruptionError
from schemas.policies import Sampled
from schemas.spec import Spec

ZSTD_LEVEL = 1
"""Not part of the format. Planes hold next to no repeats: level 3 takes a quarter longer and saves nothing."""
CODES = ("kept_codes", "sampled_codes", "top_codes", "entropy_codes", "gold_codes", "word_start_codes")
"""Columns whose values are steps, clamped where they do not fit."""
IMAGE = "image"
"""The column of an image's bytes, as they were in the corpus."""
BOXES, OBJECT_CLASSES, OBJECT_BOXES = "boxes", "object_classes", "object_boxes"
"""Four numbers a position, and the corpus's objects: a class and four numbers each. A box is its centre, width and
height, as shares of the image's width and height."""
MAX_OBJECTS = 2048
"""Of an image."""
BOX_COLUMNS = {
    BOXES: ("positions", 4),
    OBJECT_CLASSES: ("examples", MAX_OBJECTS),
    OBJECT_BOXES: ("examples", 4 * MAX_OBJECTS),
}
"""How many values each has at most, of what."""

_SPLIT, _DICTIONARY, _PLAIN = "BYTE_STREAM_SPLIT", "RLE_DICTIONARY", "PLAIN"


def _list_of(value: pa.DataType) -> pa.DataType:
    """Elements are required: a list whose values may be null costs Arrow half as much again to decode."""
    return pa.list_(pa.field("element", value, nullable=False))


class Column(NamedTuple):
    """One column: its Arrow type, its encoding, and whether a row may lack it."""

    name: str
    type: pa.DataType
    encoding: str
    nullable: bool = False

    @property
    def field(self) -> pa.Field:
        """As the table's schema has it."""
        return pa.field(self.name, self.type, nullable=self.nullable)

    @property
    def path(self) -> str:
        """The leaf's path in the Parquet schema."""
        return f"{self.name}.list.element" if pa.types.is_list(self.type) else self.name

    @property
    def is_planes_of_lists(self) -> bool:
        """Whether it holds lists in byte planes."""
        return pa.types.is_list(self.type) and self.encoding == _SPLIT


def identity_columns(spec: Spec) -> tuple[str, ...]:
    """What tells rows apart; hashed together for each row group, so that they can be read and checked alone."""
    key = ("document_id",) if spec.has_document_id else ()
    return ("example_id", "document_hash", "window_index", "window_count", *key)


@functools.lru_cache(maxsize=16)
def columns(spec: Spec) -> tuple[Column, ...]:
    """The columns of a shard, in order."""
    return (*_example_columns(spec), *_position_columns(spec), *_feature_columns(spec))


@functools.lru_cache(maxsize=16)
def shard_schema(spec: Spec) -> pa.Schema:
    """The Arrow schema of every shard of a cache."""
    return pa.schema([column.field for column in columns(spec)])


def write_options(spec: Spec) -> dict[str, Any]:
    """Keyword arguments of `pyarrow.parquet.ParquetWriter`."""
    every = columns(spec)
    return {
        "compression": "zstd",
        "compression_level": ZSTD_LEVEL,
        "use_dictionary": [c.path for c in every if c.encoding == _DICTIONARY],
        "column_encoding": {c.path: c.encoding for c in every if c.encoding != _DICTIONARY},
        "write_page_checksum": True,
        "write_statistics": [c.path for c in every if not pa.types.is_list(c.type) and c.name != IMAGE],
        "data_page_size": 2**20,
        "dictionary_pagesize_limit": 2**20,
    }


def check_encodings(metadata: pq.FileMetaData, spec: Spec, where: str) -> None:
    """Asserts from a footer that each column is encoded as the format says.

    Raises:
        CorruptionError: naming the first column that is not.
    """
    expected = {c.path: c.encoding for c in columns(spec)}
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            wanted = expected.get(chunk.path_in_schema)
            if wanted is not None and _encoding(chunk) != wanted:
                raise CorruptionError(
                    f"column {chunk.path_in_schema} is not encoded as the format says",
                    where=where,
                    expected=wanted,
                    got=_encoding(chunk),
                )


def _encoding(chunk: pq.ColumnChunkMetaData) -> str:
    """How a chunk's values are encoded; its levels are always RLE, and a dictionary's own page is PLAIN."""
    values = (e for e in (_DICTIONARY, _SPLIT, _PLAIN) if e in chunk.encodings)
    return next(values, ", ".join(chunk.encodings))


def check_schema(schema: pa.Schema, spec: Spec, where: str) -> None:
    """Asserts that a shard has every column of its spec with its type; columns beyond those are ignored.

    Raises:
        CorruptionError: naming the first column that is missing or of another type.
    """
    for column in columns(spec):
        index = schema.get_field_index(column.name)
        got = schema.field(index).type if index >= 0 else "no such column"
        if got != column.type:
            raise CorruptionError(
                f"column {column.name} breaks the schema",
                where=where,
                expected=column.type,
                got=got,
            )


def _example_columns(spec: Spec) -> list[Column]:
    optional = [
        (spec.has_document_id, Column("document_id", pa.string(), _PLAIN, nullable=True)),
        (spec.has_text, Column("text", pa.string(), _PLAIN, nullable=True)),
        (spec.has_text_pair, Column("text_pair", pa.string(), _PLAIN, nullable=True)),
        (True, Column("input_ids", _list_of(pa.int32()), _SPLIT)),
        (
            spec.has_token_type_ids,
            Column("token_type_ids", _list_of(pa.int8()), _DICTIONARY),
        ),
        *((True, Column(column.name, pa.int32(), _DICTIONARY)) for column in spec.kind.columns),
        (spec.kind.reads_images, Column(IMAGE, pa.binary(), _PLAIN)),
    ]
    return [
        Column("example_id", pa.binary(), _PLAIN),
        Column("document_hash", pa.binary(), _PLAIN),
        Column("window_index", pa.int32(), _DICTIONARY),
        Column("window_count", pa.int32(), _DICTIONARY),
        *(column for wanted, column in optional if wanted),
    ]


def _position_columns(spec: Spec) -> list[Column]:
    floats, codes, ids = _list_of(pa.float32()), _list_of(pa.int16()), _list_of(pa.int32())
    places = Column("position_index", ids, _SPLIT, nullable=True)
    if not spec.kind.has_positions:
        return [places]
    if spec.score != "softmax":
        labels = Column("labels", floats, _SPLIT, nullable=True)
        return [places, labels, Column("logits", floats, _SPLIT), *_box_columns(spec)]
    optional = [
        (spec.is_sampling, Column("num_sampled", ids, _SPLIT)),
        (spec.is_sampling, Column("sampled_gaps", ids, _SPLIT)),
        (isinstance(spec.keep, Sampled), Column("sampled_counts", ids, _SPLIT)),
        (spec.own_logits, Column("sampled_codes", codes, _SPLIT)),
        ("entropy" in spec.scalars, Column("entropy_codes", codes, _SPLIT)),
        ("gold" in spec.scalars, Column("gold_codes", codes, _SPLIT, nullable=True)),
        ("logsumexp" in spec.scalars, Column("logsumexp", floats, _SPLIT)),
        ("word_start" in spec.scalars, Column("word_start_codes", codes, _SPLIT)),
    ]
    return [
        places,
        Column("labels", ids, _SPLIT, nullable=True),
        Column("num_kept", ids, _DICTIONARY),
        Column("kept_ranks", ids, _SPLIT),
        Column("kept_codes", codes, _SPLIT),
        Column("top_codes", codes, _SPLIT),
        *(column for wanted, column in optional if wanted),
        *_box_columns(spec),
    ]


def _box_columns(spec: Spec) -> list[Column]:
    """What a detector says beside its scores, and what the corpus says is there; null where it says nothing."""
    if not spec.kind.has_boxes:
        return []
    floats = _list_of(pa.float32())
    classes = Column(OBJECT_CLASSES, _list_of(pa.int32()), _DICTIONARY, nullable=True)
    return [Column(BOXES, floats, _SPLIT), classes, Column(OBJECT_BOXES, floats, _SPLIT, nullable=True)]


def _feature_columns(spec: Spec) -> list[Column]:
    found = []
    for feature in spec.features:
        if feature.dtype == "int8":
            found.append(Column(feature.column, _list_of(pa.int8()), _DICTIONARY))
            found.append(Column(feature.scale_column, pa.float32(), _PLAIN))
        else:
            found.append(Column(feature.column, _list_of(pa.float32()), _SPLIT))
    return found
