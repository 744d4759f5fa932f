"""`compact`: the small shards of many runs become full ones, in one commit; the teacher is not asked.

    small shards -> the ranges of id space that each overlaps -> per range: copy its rows into one shard -> commit

A shard is small that has less than half of the tokens of a full one. The others stay as they are: so there are never
more than about twice as many shards as full ones could be, and a nightly call copies little more than the night. Rows
stand in id order within each shard.

A unit is one of equal ranges of id space, as in `precompute`; it reads the row groups that overlap it and no others,
by the statistics in the sealed footers. Rows, totals and provenance stay; only what is live changes, so old versions
still open, and the folder shrinks at `vacuum` alone.

Cost: that of the small shards alone; their footers are read once before. Each unit is held in memory as rows and as
bytes, as `precompute` does. A row group of a small shard spans many ranges, and is read once for each: with U units, a
shard of G row groups is read about max(1, U / G) times. Every row of a small shard is written once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.engine.beam_options import parse_beam_options
from pipelines.job.outcome import Change, commit_change
from pipelines.job.reuse import lines_of
from pipelines.job.run import in_process, new_pipeline, run_to_end
from pipelines.progress import SHARDS, shards_shown
from pipelines.scoring.units import ShardLine, counts_of, line_of, no_shard
from schemas.errors import ConflictError, CorruptionError, NoCacheError
from schemas.shards.reader import open_shard
from schemas.shards.rewrite import (
    ENTRIES_A_TOKEN,
    IMAGE_BYTES_A_TOKEN,
    ROW_GROUP_TOKENS,
    UNIT_TOKENS,
    copy_range,
    units_of,
)
from schemas.shards.seal import Shard, Totals
from schemas.spec import Header
from schemas.storage.storage import Storage
from schemas.versions.commits import Version, base_version, read_version
from schemas.versions.header import read_header
from schemas.versions.history import leased, new_run, renew_lease

_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class CompactConfig:
    """One call of `compact`."""

    cache: str
    unit_tokens: int = UNIT_TOKENS
    """Tokens of a full shard."""
    row_group_tokens: int = ROW_GROUP_TOKENS
    show_progress: bool = True
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
    small: frozenset[str]
    """Names of the shards to merge."""
    num_units: int
    row_group_tokens: int
    totals: Totals
    """Of these."""


def compact(config: CompactConfig) -> Compacted:
    """Merges the small shards into full ones, or does nothing where that would not make them fewer.

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
    header, run = read_header(storage), new_run("compact")
    with leased(
        storage, run
    ):  # before the version is read: `forget` knows of each run that holds an older one
        return _leased(config, options, storage, header, run)


def _leased(
    config: CompactConfig, options: PipelineOptions, storage: Storage, header: Header, run: str
) -> Compacted:
    base = base_version(storage)
    if base is None:
        raise NoCacheError("no cache is there: nothing was committed", where=storage.root)
    small = small_shards(storage, header, base, config.unit_tokens)
    totals = sum(small.values(), Totals())
    images = sum(shard.size_bytes for shard in small) if header.spec.kind.reads_images else 0
    task = Task(
        run=run,
        root=storage.root,
        base=base.number,
        header=header,
        small=frozenset(shard.name for shard in small),
        num_units=full_shards(totals, config.unit_tokens, images),
        row_group_tokens=config.row_group_tokens,
        totals=totals,
    )
    if len(small) <= task.num_units:
        return _outcome(task, base, base)
    pipeline = new_pipeline(options)
    build(pipeline, task, list(small))
    with shards_shown(config.show_progress and in_process(options)):
        run_to_end(pipeline)
    after = read_version(storage)
    if after.number > base.number:
        after = read_version(storage, base.number + 1)
    return _outcome(task, base, after if after.record.run == task.run else base)


def small_shards(storage: Storage, header: Header, base: Version, unit_tokens: int) -> dict[Shard, Totals]:
    """Those with less than half of a full shard's tokens, by their footers, and what each holds.

    No footer is read of a shard that by the log has both the rows and the bytes of half a full one.
    """
    every, images = sum(shard.size_bytes for shard in base.shards), int(header.spec.kind.reads_images)
    half = unit_tokens / 2 / max(_weight(base.record.totals, images * every), 1)
    rows, size = base.record.live_rows * half, every * half
    likely = [shard for shard in base.shards if shard.examples < rows or shard.size_bytes < size]
    with ThreadPoolExecutor(_THREADS) as pool:
        opened = pool.map(lambda shard: open_shard(storage, header, shard), likely)
        totals = [one.footer.totals for one in opened]
    return {
        shard: held
        for shard, held in zip(likely, totals, strict=True)
        if 2 * _weight(held, images * shard.size_bytes) < unit_tokens
    }


def full_shards(totals: Totals, unit_tokens: int, image_bytes: int = 0) -> int:
    """How many shards of about `unit_tokens` some rows make; entries count where they are many, and images' bytes."""
    return max(1, -(-_weight(totals, image_bytes) // unit_tokens))


def _weight(totals: Totals, size_bytes: int = 0) -> int:
    """Of rows with so many bytes of images, which are nearly all that their shards hold; 0 of texts."""
    return max(totals.tokens, totals.entries // ENTRIES_A_TOKEN, size_bytes // IMAGE_BYTES_A_TOKEN)


def build(pipeline: beam.Pipeline, task: Task, shards: Sequence[Shard]) -> None:
    """Wires one compaction."""
    SHARDS.expect("compact", sources=len(shards), units=task.num_units)
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
    SHARDS.add(seen=1)
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
    if sealed is not None:
        storage.put(sealed.name, sealed.data)
        renew_lease(storage, task.run)
    SHARDS.add(finished=1)
    return no_shard(f"range {unit}") if sealed is None else line_of(sealed)


def commit_compaction(values: list[Any], task: Task) -> None:
    """Commits the new shards in place of the small ones; those that are the same stay.

    Raises:
        CorruptionError: the new shards do not hold as many rows as the old ones.
        ConflictError: a run committed in the meantime.
    """
    storage = Storage.at(task.root)
    base = read_version(storage, task.base)
    lines = {line.name: line for line in lines_of(values) if line.name is not None}
    totals = sum((Totals.from_json(line.totals) for line in lines.values()), Totals())
    old = task.totals
    expected, got = ((t.examples, t.tokens, t.positions, t.entries) for t in (old, totals))
    if expected != got:
        raise CorruptionError(
            "the merged shards do not hold what the old ones did; nothing was committed",
            where=task.root,
            expected=f"{expected[0]:,} examples, {expected[1]:,} tokens",
            got=f"{got[0]:,} examples, {got[1]:,} tokens",
            do="Run `teachonce verify`",
        )
    added = [
        Shard(name, line.size_bytes, line.totals["examples"])
        for name, line in lines.items()
        if name not in task.small
    ]
    change = Change(added, sorted(task.small - lines.keys()), totals + -old, counts_of(lines.values()))
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
