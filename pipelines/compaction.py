"""`compact`: the small shards of many runs become full ones, rows in id order, in one commit; the teacher is not asked.

    live shards -> the ranges of id space that each overlaps -> per range: copy its rows into one shard -> commit

A unit is one of equal ranges of id space, as in `precompute`; it reads the row groups that overlap it and no others,
by the statistics in the sealed footers. Rows, totals and provenance stay; only what is live changes, so old versions
still open, and the folder shrinks at `vacuum` alone.

Cost: each unit is held in memory as rows and as bytes, as `precompute` does. A row group of a small shard spans many
ranges, and is read once for each: with U units, a shard of G row groups is read about max(1, U / G) times. Every row
is written once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam

from pipelines.beam_options import parse_beam_options
from pipelines.moves import lines_of
from pipelines.outcome import Change, commit_change
from pipelines.run import new_pipeline, run_to_end
from pipelines.units import ShardLine, line_of, no_shard
from schemas.cache import base_version, read_header
from schemas.commits import Shard, Version, read_version
from schemas.errors import CacheError, ConflictError, CorruptionError, NoCacheError
from schemas.history import end_lease, new_run, renew_lease, take_lease
from schemas.rewrite import ENTRIES_A_TOKEN, ROW_GROUP_TOKENS, UNIT_TOKENS, copy_range, units_of
from schemas.shard_reader import open_shard
from schemas.shards import Totals
from schemas.spec import Header
from schemas.storage import Storage


@dataclass(frozen=True, kw_only=True)
class CompactConfig:
    """One call of `compact`."""

    cache: str
    unit_tokens: int = UNIT_TOKENS
    """Tokens of a full shard."""
    row_group_tokens: int = ROW_GROUP_TOKENS
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("unit_tokens", "row_group_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} cannot be {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What `compact` did."""

    run: str
    version: int
    """The newest, after it."""
    committed: bool
    """False where there was nothing to merge."""
    examples: int
    shards_before: int
    shards: int
    size_bytes_before: int
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every step knows. Plain values: it is pickled."""

    run: str
    root: str
    base: int
    header: Header
    num_units: int
    row_group_tokens: int


def compact(config: CompactConfig) -> Compacted:
    """Merges the live shards into full ones, or does nothing where there are no more shards than full ones.

    Raises:
        NoCacheError: nothing was committed there.
        CorruptionError: a shard is broken; nothing was committed.
        ConflictError: runs committed in the meantime, twice.
    """
    try:
        return _once(config)
    except ConflictError:
        return _once(config)


def _once(config: CompactConfig) -> Compacted:
    options = parse_beam_options(config.beam_options)
    storage = Storage.at(config.cache)
    header, base = read_header(storage), base_version(storage)
    if base is None:
        raise NoCacheError("no cache is there: nothing was committed", where=storage.root)
    task = Task(
        run=new_run("compact"),
        root=storage.root,
        base=base.number,
        header=header,
        num_units=full_shards(base.record.totals, config.unit_tokens),
        row_group_tokens=config.row_group_tokens,
    )
    if len(base.shards) <= task.num_units:
        return _outcome(task, base, base)
    take_lease(storage, task.run)
    try:
        pipeline = new_pipeline(options)
        build(pipeline, task, base.shards)
        run_to_end(pipeline)
    finally:
        with contextlib.suppress(CacheError):
            end_lease(storage, task.run)
    after = read_version(storage)
    if after.number > base.number:
        after = read_version(storage, base.number + 1)
    return _outcome(task, base, after if after.record.run == task.run else base)


def full_shards(totals: Totals, unit_tokens: int) -> int:
    """How many shards of about `unit_tokens` some rows make; entries count where they are many."""
    weight = max(totals.tokens, totals.entries // ENTRIES_A_TOKEN)
    return max(1, -(-weight // unit_tokens))


def build(pipeline: beam.Pipeline, task: Task, shards: Sequence[Shard]) -> None:
    """Wires one compaction."""
    _ = (
        pipeline
        | "list shards" >> beam.Create([tuple(shard) for shard in shards])
        | "spread shards" >> beam.Reshuffle()
        | "find ranges" >> beam.FlatMap(ranges_of, task)
        | "group by range" >> beam.GroupByKey()
        | "copy rows" >> beam.Map(copy_unit, task)
        | "gather lines" >> beam.combiners.ToList()
        | "commit" >> beam.Map(commit_compaction, task)
    )


def ranges_of(shard: tuple[Any, ...], task: Task) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(range, shard) for each range of id space in which the shard may have rows."""
    opened = open_shard(Storage.at(task.root), task.header, Shard(*shard))
    places = range(len(opened.footer.row_groups))
    found = {unit for place in places for unit in units_of(opened.metadata, place, task.num_units)}
    return ((unit, shard) for unit in sorted(found))


def copy_unit(element: tuple[int, Iterable[tuple[Any, ...]]], task: Task) -> ShardLine:
    """The rows of one range, stored as one shard."""
    storage, unit = Storage.at(task.root), element[0]
    sealed = copy_range(
        storage,
        task.header,
        sorted(Shard(*shard) for shard in element[1]),
        unit=unit,
        num_units=task.num_units,
        row_group_tokens=task.row_group_tokens,
    )
    if sealed is None:
        return no_shard(f"range {unit}")
    storage.put(sealed.name, sealed.data)
    renew_lease(storage, task.run)
    return line_of(sealed)


def commit_compaction(values: list[Any], task: Task) -> None:
    """Commits the new shards in place of all old ones; those that are the same stay.

    Raises:
        CorruptionError: the new shards do not hold as many rows as the old ones.
        ConflictError: a run committed in the meantime.
    """
    storage = Storage.at(task.root)
    base = read_version(storage, task.base)
    lines = {line.name: line for line in lines_of(values) if line.name is not None}
    totals = sum((Totals.from_json(line.totals) for line in lines.values()), Totals())
    old = base.record.totals
    expected, got = ((t.examples, t.tokens, t.positions, t.entries) for t in (old, totals))
    if expected != got:
        raise CorruptionError(
            "the merged shards do not hold what the old ones did; nothing was committed",
            where=task.root,
            expected=f"{expected[0]:,} examples, {expected[1]:,} tokens",
            got=f"{got[0]:,} examples, {got[1]:,} tokens",
            do="Run `teachonce verify`",
        )
    before = {shard.name for shard in base.shards}
    added = [
        Shard(name, line.size_bytes, line.totals["examples"])
        for name, line in lines.items()
        if name not in before
    ]
    change = Change(added, sorted(before - lines.keys()), totals + -old)
    if change.added or change.removed:
        commit_change(storage, task.header, base, change, run=task.run, provenance={})


def _outcome(task: Task, base: Version, after: Version) -> Compacted:
    return Compacted(
        run=task.run,
        version=after.number,
        committed=after.number != base.number,
        examples=after.record.live_rows,
        shards_before=len(base.shards),
        shards=len(after.shards),
        size_bytes_before=sum(shard.size_bytes for shard in base.shards),
        size_bytes=sum(shard.size_bytes for shard in after.shards),
    )
