"""Reading sealed shards: fetch, check, and only then parse.

The log vouches for a shard's name, the name for its footer, the footer for each row group's bytes. So everything that
Arrow sees here has been checked first; what does not match is a `CorruptionError` that names the shard.

Cost: a row group is fetched whole. The identity columns alone are read by ranges, and checked by the hash of their
values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import NEWER, REPAIR, CorruptionError, FormatError
from schemas.limits import sealed, told
from schemas.rows.columns import check_schema, columns, identity_columns
from schemas.rows.pages import read_lists
from schemas.rows.ragged import Array
from schemas.rows.ranks import Ranking, parse_listed
from schemas.rows.rows import Rows
from schemas.shards.byte_ranges import Segments
from schemas.shards.held_out import HELD_OUT_KEY, parse_held_out
from schemas.shards.parquet_limits import Fetched, check_counts, check_pages, chunk_span, parse_metadata
from schemas.shards.seal import (
    FOOTER_KEY,
    LISTED_KEY,
    RowGroup,
    Shard,
    ShardFooter,
    bytes_hash,
    identity_hash,
    parse_name,
)
from schemas.shards.size_statistics import check_size_statistics
from schemas.spec import Header, Spec
from schemas.storage.storage import Storage

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_GUESS_BYTES = 2**16
_MAX_FOOTER_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class OpenFooter:
    """A checked footer and the bytes it came from. What all its row groups share is made once."""

    footer: ShardFooter
    metadata: pq.FileMetaData
    data: bytes
    size: int
    listed: Array | None
    """The shard's most frequent ids; None where every score is kept as it is."""
    held_out: tuple[int, ...] | None = None
    """Rows of each row group on the held-out side, at the default fraction; None where the footer does not say."""
    _rankings: dict[int, Ranking] = field(default_factory=dict)

    @cached_property
    def schema(self) -> pa.Schema:
        """As Arrow reads the file. Not `metadata.schema`: it and the metadata hold each other, and megabytes of C++
        would wait for Python's collector, which sees a few objects."""
        return pq.ParquetFile(pa.BufferReader(b""), metadata=self.metadata).schema_arrow

    def ranking(self, spec: Spec, where: str) -> Ranking | None:
        """How the shard's ids are ranked.

        Raises:
            CorruptionError: the footer lists none, or an id that is not below V.
        """
        if spec.score != "softmax":
            return None
        if self.listed is None or (self.listed >= spec.vocab_size).any():
            raise CorruptionError("a shard's footer lists no ids, or one out of range", where=where)
        own = Ranking(listed=self.listed, vocab_size=spec.vocab_size)
        return self._rankings.setdefault(spec.vocab_size, own)


def open_footer(storage: Storage, name: str, *, size: int | None = None) -> OpenFooter:
    """Fetches a shard's footer and checks it against the seal in its name.

    Raises:
        CorruptionError: the file is missing, cut short, or its footer is not the sealed one.
        FormatError: the footer says what this reader does not know.
    """
    _, seal = parse_name(name)
    where = f"{storage.root}/{name}"
    try:
        size = storage.size(name) if size is None else size
        data = _footer_bytes(storage, name, size)
    except FileNotFoundError as error:
        raise CorruptionError("a shard is missing", where=where, do=REPAIR) from error
    if bytes_hash(data) != seal:
        raise CorruptionError(
            "a shard's footer does not match the seal in its name",
            where=where,
            expected=seal,
            got=bytes_hash(data),
            do=REPAIR,
        )
    with sealed():
        return _opened(data, size, where, seal)


def _opened(data: bytes, size: int, where: str, seal: str) -> OpenFooter:
    """A footer of the bytes that its seal vouched for."""
    with told("a shard's footer cannot be read", where, REPAIR, also=(TypeError, AttributeError)):
        check_size_statistics(memoryview(data), seal)
        metadata = parse_metadata(_MAGIC + data)
        stored = metadata.metadata or {}
    listed = parse_listed(stored[LISTED_KEY], where) if LISTED_KEY in stored else None
    try:
        footer = ShardFooter.from_bytes(stored[FOOTER_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            "a shard's footer says what this reader does not know", where=where, got=repr(error), do=NEWER
        ) from error
    held_out = parse_held_out(stored.get(HELD_OUT_KEY), [g.examples for g in footer.row_groups], where)
    opened = OpenFooter(footer, metadata, data, size, listed, held_out)
    _check_counts(opened, where)
    return opened


def _check_counts(opened: OpenFooter, where: str) -> None:
    """A shard's totals are those of its row groups, which lie end to end and reach the footer."""
    groups, totals = opened.footer.row_groups, opened.footer.totals
    ends = [0, *(group.end for group in groups)]
    starts = [*(group.start for group in groups), group_end(opened)]
    if starts != ends or len(groups) != opened.metadata.num_row_groups or ends != sorted(set(ends)):
        raise CorruptionError("a footer's row groups do not lie end to end", where=where, do=REPAIR)
    for name in ("examples", "tokens", "positions", "entries"):
        expected, got = getattr(totals, name), sum(getattr(group, name) for group in groups)
        if expected != got:
            raise CorruptionError(
                f"a footer's {name} do not add up", where=where, expected=expected, got=got, do=REPAIR
            )


def open_shard(storage: Storage, header: Header, shard: Shard) -> OpenFooter:
    """A live shard's footer, checked against its seal, the log and the spec.

    Raises:
        CorruptionError: a shard is missing, cut short or not the one that the log means.
    """
    opened = open_footer(storage, shard.name, size=shard.size_bytes)
    with sealed():
        _check_shard(opened.footer, header, shard, f"{storage.root}/{shard.name}")
    return opened


def _check_shard(footer: ShardFooter, header: Header, shard: Shard, where: str) -> None:
    for what, expected, got in (
        ("unit", parse_name(shard.name)[0], footer.unit),
        ("spec", header.spec.hash, footer.spec_hash),
        ("fingerprint", header.fingerprint.hash, footer.fingerprint_hash),
        ("number of rows", shard.examples, footer.totals.examples),
    ):
        if expected != got:
            raise CorruptionError(
                f"a shard's {what} is not the cache's", where=where, expected=expected, got=got
            )


def _footer_bytes(storage: Storage, name: str, size: int) -> bytes:
    """The bytes after the last row group. Their start is told by the footer, whose length is told by the tail."""
    tail_start = max(0, size - _GUESS_BYTES)
    tail = storage.read_range(name, tail_start, size)
    length = int.from_bytes(tail[-_TAIL_BYTES:-4], "little") + _TAIL_BYTES
    if tail[-4:] != _MAGIC or not _TAIL_BYTES < length <= min(size, _MAX_FOOTER_BYTES):
        raise CorruptionError(
            "a shard does not end as Parquet does", where=f"{storage.root}/{name}", do=REPAIR
        )
    if length <= len(tail):
        return tail[-length:]
    return storage.read_range(name, size - length, tail_start) + tail


def fetch_group(storage: Storage, name: str, group: RowGroup, index: int) -> bytes:
    """A row group's bytes, checked against the footer's hash.

    Raises:
        CorruptionError: naming the shard and the row group's place in it.
    """
    where = f"{storage.root}/{name}, row group {index}, bytes {group.start} to {group.end}"
    try:
        data = storage.read_range(name, group.start, group.end)
    except FileNotFoundError as error:
        raise CorruptionError("a shard is missing", where=where, do=REPAIR) from error
    except CorruptionError as error:
        raise CorruptionError(
            error.what, where=where, expected=error.expected, got=error.got, do=REPAIR
        ) from error
    if bytes_hash(data) != group.hash:
        raise CorruptionError(
            "a row group's bytes are not those that were sealed",
            where=where,
            expected=group.hash,
            got=bytes_hash(data),
            do=REPAIR,
        )
    return data


def read_group(
    storage: Storage, name: str, opened: OpenFooter, index: int, spec: Spec, *, checked: bool = True
) -> Rows:
    """Fetches, checks and parses one row group; its rows' values are as they are found where `checked` is false.

    Raises:
        CorruptionError: the bytes, the schema or the lists are not what was sealed.
    """
    group = opened.footer.row_groups[index]
    where = f"{storage.root}/{name}, row group {index}"
    segments = {group.start: fetch_group(storage, name, group, index), group_end(opened): opened.data}
    fetched = Fetched(memoryview(segments[group.start]), group.start, group, spec)
    with sealed(), told("a row group cannot be read", where, REPAIR):
        file = pq.ParquetFile(Segments(segments, opened.size), metadata=opened.metadata)
        check_schema(opened.schema, spec, where)
        check_counts(group, spec, where)
        table = _table(file, index, fetched, where)
        rows = Rows.from_arrow(table, spec, where, opened.ranking(spec, where), checked=checked)
        counts = (group.examples, group.tokens, group.positions, group.entries)
        if (found := (len(rows), rows.num_tokens, rows.num_positions, rows.num_entries)) != counts:
            raise _miscounted(f"{where} (rows, tokens, positions, entries)", counts, found)
    return rows


def _miscounted(where: str, expected: object, got: object) -> CorruptionError:
    what = "a row group does not hold what its footer counts"
    return CorruptionError(what, where=where, expected=expected, got=got, do=REPAIR)


def _table(file: pq.ParquetFile, index: int, fetched: Fetched, where: str) -> pa.Table:
    """A row group's columns. Lists in byte planes, which take Arrow several times as long, are read here."""
    group, spec = file.metadata.row_group(index), fetched.spec
    if group.num_rows != fetched.group.examples:
        raise _miscounted(where, fetched.group.examples, group.num_rows)
    chunks = check_pages(fetched, group, where)
    every = columns(spec)
    found = {
        column: read_lists(fetched.data, chunks[column.path], fetched.start, column, group.num_rows)
        for column in every
        if column.is_planes_of_lists
    }
    lists = {column: array for column, array in found.items() if array is not None}
    table = file.read_row_group(index, columns=[c.name for c in every if c not in lists], use_threads=False)
    for column, array in lists.items():
        table = table.append_column(column.field, array)
    return table


def group_end(opened: OpenFooter) -> int:
    """Where a shard's footer begins."""
    return opened.size - len(opened.data)


def read_identities(storage: Storage, name: str, opened: OpenFooter, spec: Spec) -> Rows:
    """The identity columns of a whole shard, a few bytes a row, checked against the footer's hash of their values.

    Raises:
        CorruptionError: the values are not those that were sealed.
    """
    parts = []
    for index, group in enumerate(opened.footer.row_groups):
        where = f"{storage.root}/{name}, row group {index}"
        check_counts(group, spec, where)
        with told("a row group's ids cannot be read", where, REPAIR):
            rows = _identities(storage, name, opened, index, spec)
        if identity_hash(rows) != group.ids_hash:
            raise CorruptionError("a row group's ids are not those that were sealed", where=where, do=REPAIR)
        parts.append(rows)
    return Rows.concatenate(parts)


def _identities(storage: Storage, name: str, opened: OpenFooter, index: int, spec: Spec) -> Rows:
    """Those of one row group: the bytes from the first of their pages to the last are fetched."""
    where = f"{storage.root}/{name}, row group {index}"
    asked = [column for column in columns(spec) if column.name in identity_columns(spec)]
    group, metadata = opened.footer.row_groups[index], opened.metadata.row_group(index)
    chunks = (metadata.column(place) for place in range(metadata.num_columns))
    paths = {column.path for column in asked}
    spans = [chunk_span(chunk) for chunk in chunks if chunk.path_in_schema in paths]
    start, end = max(group.start, min(spans)[0]), min(group.end, max(end for _, end in spans))
    data = storage.read_range(name, start, end)
    check_pages(Fetched(memoryview(data), start, group, spec), metadata, where, identity_columns(spec))
    segments = {start: data, group_end(opened): opened.data}
    file = pq.ParquetFile(Segments(segments, opened.size), metadata=opened.metadata)
    check_schema(opened.schema, spec, where)
    rows = Rows.from_arrow(file.read_row_group(index, columns=[c.name for c in asked]), spec, where)
    if len(rows) != group.examples:
        raise _miscounted(where, group.examples, len(rows))
    return rows
