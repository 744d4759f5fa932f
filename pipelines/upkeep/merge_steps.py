"""The steps of `merge`: examples that all caches have become shards of one cache, and one commit.

    ids of every cache -> by example -> those that all have, by shard of the first -> merge -> commit

Ids and places are shuffled, and never what teachers said: the worker that makes a shard reads the rows where they lie.
A unit is the examples of one live shard of the first cache that all have; its name follows from them, so units that
are there already are told from new ones by their names alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
import numpy as np

from pipelines.job.outcome import change_of
from pipelines.job.reuse import lines_of
from pipelines.keep.merging import Merging, merge_rows
from pipelines.progress import SHARDS
from pipelines.scoring.units import ShardLine, line_of, no_shard
from pipelines.upkeep.derived import commit_derived
from pipelines.upkeep.thin_steps import remembering
from schemas.cache import Cache
from schemas.errors import CorruptionError, MismatchError, UsageError
from schemas.identity import unit_name
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.reader import OpenFooter, open_shard, read_group, read_identities
from schemas.shards.rewrite import seal_rows
from schemas.shards.seal import Shard, parse_name
from schemas.spec import Header, differences
from schemas.storage.storage import Storage
from schemas.versions.commits import NO_VERSION, Version
from schemas.versions.history import renew_lease

_SOURCE, _THERE = "source", "there"
_GROUPS_HELD = 16
"""Row groups in memory beside the unit that is made: neighbours share some."""
Place = tuple[int, int, int]
"""A row: its cache, its shard there, and its number in the shard."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of the caches."""

    root: str
    version: int
    header: Header
    shards: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every step knows. Plain values: it is pickled."""

    run: str
    sources: tuple[Source, ...]
    how: Merging
    root: str
    base: int
    header: Header
    forgotten: tuple[str, ...]
    row_group_tokens: int
    provenance: Mapping[str, str]


def build(pipeline: beam.Pipeline, task: Task, base: Version | None) -> None:
    """Wires one merge."""
    there = [(parse_name(shard.name)[0], tuple(shard)) for shard in (base.shards if base else ())]
    every = [(number, place) for number, one in enumerate(task.sources) for place in range(len(one.shards))]
    SHARDS.expect("merge", sources=len(every), units=len(task.sources[0].shards))
    units = (
        pipeline
        | "list shards" >> beam.Create(every)
        | "spread shards" >> beam.Reshuffle()
        | "read ids" >> beam.FlatMap(list_examples, task)
        | "group by example" >> beam.GroupByKey()
        | "match" >> beam.FlatMap(match_example, len(task.sources))
        | "group by shard" >> beam.GroupByKey()
        | "name units" >> beam.Map(name_unit, task)
    )
    _ = (
        {_SOURCE: units, _THERE: pipeline | "list what is there" >> beam.Create(there)}
        | "group by unit" >> beam.CoGroupByKey()
        | "merge" >> beam.Map(merge_unit, task)
        | "gather lines" >> beam.combiners.ToList()
        | "commit" >> beam.Map(commit_merged, task)
    )


def list_examples(element: tuple[int, int], task: Task) -> list[tuple[bytes, Place]]:
    """The examples of one shard, and where they stand; without those that the merged cache was told to forget."""
    number, place = element
    source = task.sources[number]
    storage, shard = Storage.at(source.root), Shard(*source.shards[place])
    rows = read_identities(storage, shard.name, open_shard(storage, source.header, shard), source.header.spec)
    if len(rows) != shard.examples:
        raise CorruptionError(
            "a shard has not as many rows as its log says",
            where=f"{source.root}/{shard.name}",
            do="Run verify",
        )
    kept = remembering(rows, task.root, task.forgotten) if number == 0 else np.arange(len(rows))
    ids = rows.example_ids
    SHARDS.add(seen=1)
    return [(ids[row], (number, place, row)) for row in kept.tolist()]


def match_example(
    element: tuple[bytes, Iterable[Place]], number: int
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """An example that all caches have, at its shard in the first."""
    example, found = element
    places = sorted({place[0]: tuple(place) for place in found}.values())
    if len(places) == number:
        yield places[0][1], (places[0][2], example, tuple(places[1:]))


def name_unit(element: tuple[int, Iterable[tuple[Any, ...]]], task: Task) -> tuple[str, tuple[Any, ...]]:
    """The unit that a shard's examples make in the merged cache, and their places."""
    shard, found = element
    rows = sorted(found)
    return unit_name([row[1] for row in rows], task.header.spec.hash), (shard, rows)


def merge_unit(element: tuple[str, Mapping[str, Iterable[tuple[Any, ...]]]], task: Task) -> ShardLine:
    """What becomes of one unit: it stays, it leaves, or it is merged and stored."""
    unit, found = element
    source, there = list(found[_SOURCE]), [Shard(*shard) for shard in found[_THERE]]
    storage = Storage.at(task.root)
    if there and not source:
        totals = open_shard(storage, task.header, there[0]).footer.totals
        return no_shard(unit)._replace(replaces=(there[0].name, asdict(totals)))
    if there:
        return no_shard(unit)
    shard, rows = source[0]
    sealed = seal_rows(_merged(shard, rows, task), task.header, task.row_group_tokens, unit=unit)
    storage.put(sealed.name, sealed.data)
    renew_lease(storage, task.run)
    SHARDS.add(finished=1)
    return line_of(sealed)


def _merged(shard: int, rows: Sequence[tuple[Any, ...]], task: Task) -> Rows:
    """The rows of one unit as one teacher's."""
    places = [[(0, shard, row) for row, _, _ in rows]]
    places += [[others[number] for _, _, others in rows] for number in range(len(task.sources) - 1)]
    parts = [_read_rows(task.sources[number], each) for number, each in enumerate(places)]
    for number, part in enumerate(parts[1:], 1):
        for name in ("input_ids", "position_index"):
            ours, theirs = parts[0].ragged(name), part.ragged(name)
            if not (
                np.array_equal(ours.offsets, theirs.offsets) and np.array_equal(ours.values, theirs.values)
            ):
                raise CorruptionError(
                    f"two caches have one example's id with other {name}",
                    where=f"{task.sources[0].root}, {task.sources[number].root}",
                    do="Run `teachonce verify` on both",
                )
    return merge_rows(parts, task.header.spec, task.how)


def _read_rows(source: Source, places: Sequence[Place]) -> Rows:
    """Rows of one cache, in the order of their places."""
    parts, taken, header = [], [], source.header.to_bytes()
    for place in sorted({place for _, place, _ in places}):
        ends, _ = _opened(source.root, source.shards[place], header)
        wanted = np.array([(number, row) for number, (_, own, row) in enumerate(places) if own == place])
        groups = np.searchsorted(ends, wanted[:, 1], side="right")
        for group in np.unique(groups).tolist():
            own = wanted[groups == group]
            first = int(ends[group - 1]) if group else 0
            held = _group(source.root, source.shards[place], header, group)
            parts.append(held.take(own[:, 1] - first))
            taken.append(own[:, 0])
    return Rows.concatenate(parts).take(np.argsort(np.concatenate(taken)))


@functools.lru_cache(_GROUPS_HELD)
def _opened(root: str, shard: tuple[Any, ...], header: bytes) -> tuple[Array, OpenFooter]:
    """Where a shard's row groups end, and its footer."""
    opened = open_shard(Storage.at(root), Header.from_bytes(header, root), Shard(*shard))
    return np.cumsum([group.examples for group in opened.footer.row_groups]), opened


@functools.lru_cache(_GROUPS_HELD)
def _group(root: str, shard: tuple[Any, ...], header: bytes, group: int) -> Rows:
    _, opened = _opened(root, shard, header)
    spec = Header.from_bytes(header, root).spec
    return read_group(Storage.at(root), Shard(*shard).name, opened, group, spec)


def commit_merged(values: list[Any], task: Task) -> None:
    """Commits what came and went as one version, with a header before the first.

    Raises:
        UsageError: the caches have no example in common.
        ConflictError: another run committed in the meantime.
    """
    lines = list({line.unit: line for line in lines_of(values)}.values())
    change = change_of(lines)
    if not lines and task.base == NO_VERSION:
        raise UsageError(
            "the caches have no example in common",
            where=", ".join(source.root for source in task.sources),
            do="Merge caches of one corpus, read with the same --id_field and --label_field",
        )
    first = task.sources[0]
    commit_derived(task, change, lambda: Cache.open(first.root, first.version), refuse_another)


def refuse_another(existing: Header, asked: Header, where: str) -> None:
    """Raises a `MismatchError` where two headers differ in their teachers, in how they are merged, or in the spec."""
    if lines := differences(existing, asked):
        raise MismatchError(
            "--out has other teachers, other weights or another spec",
            where=where,
            got="; ".join(lines),
            do="Use the caches and flags that it was made with, or another --out",
        )
