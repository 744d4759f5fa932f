"""The steps of `thin`: shards of the larger cache become shards of the smaller one, and one commit.

A unit is the examples of one live shard, less those that the smaller cache was told to forget; its name follows from
them. So units that are there already are told from new ones by their names alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import apache_beam as beam
import numpy as np

from pipelines.job.outcome import change_of
from pipelines.job.reuse import lines_of
from pipelines.keep.thinning import thin_rows
from pipelines.progress import SHARDS
from pipelines.scoring.units import ShardLine, line_of, no_shard
from pipelines.upkeep.derived import commit_derived
from schemas.cache import Cache
from schemas.errors import CorruptionError, MismatchError
from schemas.identity import unit_name
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.reader import open_footer, open_shard, read_group, read_identities
from schemas.shards.rewrite import seal_rows, totals_of
from schemas.shards.seal import Shard, parse_name
from schemas.spec import Header, differences
from schemas.storage.storage import Storage
from schemas.versions.commits import Version
from schemas.versions.history import renew_lease
from schemas.versions.memory import read_forgotten

_SOURCE, _THERE = "source", "there"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every step knows. Plain values: it is pickled."""

    run: str
    source: str
    source_version: int
    source_header: Header
    root: str
    base: int
    header: Header
    forgotten: tuple[str, ...]
    row_group_tokens: int
    provenance: Mapping[str, str]


def build(pipeline: beam.Pipeline, task: Task, version: Version, base: Version | None) -> None:
    """Wires one thinning."""
    there = [(parse_name(shard.name)[0], tuple(shard)) for shard in (base.shards if base else ())]
    SHARDS.expect("thin", sources=len(version.shards), units=len(version.shards))
    source = (
        pipeline
        | "list shards" >> beam.Create([tuple(shard) for shard in version.shards])
        | "spread shards" >> beam.Reshuffle()
        | "name units" >> beam.Map(name_unit, task)
    )
    _ = (
        {_SOURCE: source, _THERE: pipeline | "list what is there" >> beam.Create(there)}
        | "group by unit" >> beam.CoGroupByKey()
        | "thin" >> beam.Map(thin_unit, task)
        | "gather lines" >> beam.combiners.ToList()
        | "commit" >> beam.Map(commit_thinned, task)
    )


def name_unit(shard: tuple[Any, ...], task: Task) -> tuple[str, tuple[Any, ...]]:
    """The unit that a shard's examples make in the smaller cache, and the shard."""
    storage, named = Storage.at(task.source), Shard(*shard)
    opened = open_shard(storage, task.source_header, named)
    rows = read_identities(storage, named.name, opened, task.source_header.spec)
    ids = rows.take(remembering(rows, task.root, task.forgotten)).example_ids
    SHARDS.add(seen=1)
    return (unit_name(ids, task.header.spec.hash) if ids else f"nothing of {named.name}"), shard


def thin_unit(element: tuple[str, Mapping[str, Iterable[tuple[Any, ...]]]], task: Task) -> ShardLine:
    """What becomes of one unit: it stays, it leaves, or it is thinned and stored."""
    unit, found = element
    source = [Shard(*shard) for shard in found[_SOURCE]]
    there = [Shard(*shard) for shard in found[_THERE]]
    storage = Storage.at(task.root)
    if there and not source:
        totals = open_shard(storage, task.header, there[0]).footer.totals
        return no_shard(unit)._replace(replaces=(there[0].name, asdict(totals)))
    if there:
        line = no_shard(unit, read_examples=source[0].examples)
    else:
        line = _thinned(storage, unit, source[0], task)
        renew_lease(storage, task.run)
    SHARDS.add(finished=1)
    return line


def _thinned(storage: Storage, unit: str, shard: Shard, task: Task) -> ShardLine:
    """The line about the smaller copy of one shard; of none where all of it was forgotten."""
    source, spec = Storage.at(task.source), task.source_header.spec
    opened = open_footer(source, shard.name, size=shard.size_bytes)
    parts, entropy = [], 0.0
    for place in range(len(opened.footer.row_groups)):
        rows = read_group(source, shard.name, opened, place, spec)
        rows = rows.take(remembering(rows, task.root, task.forgotten))
        if len(rows):
            entropy += totals_of(rows).entropy_sum_nats
            parts.append(thin_rows(rows, task.header.spec))
    work = {"read_examples": shard.examples}
    if not parts:
        return no_shard(unit, **work)
    whole = Rows.concatenate(parts)
    totals = replace(totals_of(whole), entropy_sum_nats=entropy)
    sealed = seal_rows(whole, task.header, task.row_group_tokens, unit=unit, totals=totals)
    storage.put(sealed.name, sealed.data)
    return line_of(sealed)._replace(work=work)


def remembering(rows: Rows, root: str, names: tuple[str, ...]) -> Array:
    """Places of the rows that the cache at `root` was not told to forget, by its lists of these names."""
    if not names:
        return np.arange(len(rows))
    forgotten = read_forgotten(Storage.at(root), names)
    documents = (row.tobytes() for row in rows.array("document_hash"))
    keys = rows.array("document_id") if rows.spec.has_document_id else [None] * len(rows)
    items = zip(rows.example_ids, documents, keys, strict=True)
    gone = [any(item is not None and forgotten.has(item) for item in row) for row in items]
    return np.flatnonzero(~np.array(gone, np.bool_))


def commit_thinned(values: list[Any], task: Task) -> None:
    """Commits what came and went as one version, with a header before the first.

    Raises:
        CorruptionError: not every row of the larger cache was read.
        ConflictError: another run committed in the meantime.
    """
    lines = list({line.unit: line for line in lines_of(values)}.values())
    larger = Cache.open(task.source, task.source_version)
    read = sum(line.work.get("read_examples", 0) for line in lines)
    if read != larger.record.live_rows:
        raise CorruptionError(
            "the larger cache's shards do not hold what was committed; nothing was thinned",
            where=task.source,
            expected=f"{larger.record.live_rows:,} examples",
            got=f"{read:,}",
            do="Run `teachonce verify --repair` on it first",
        )
    change = change_of(lines)
    commit_derived(task, change, lambda: larger, refuse_another)


def refuse_another(existing: Header, asked: Header, where: str) -> None:
    """Raises a `MismatchError` where two headers differ in teacher or spec."""
    if lines := differences(existing, asked):
        raise MismatchError(
            "the smaller cache has another teacher or spec",
            where=where,
            got="; ".join(lines),
            do="Use the flags that it was made with, or another --out",
        )
