"""`forget`: rows leave on request, at once and for good, and what was forgotten does not come back.

    put on the list -> every shard of the folder: search, and rewrite if it is live -> commit -> look again -> erase

The order is what makes it safe. The list (salted hashes) is left first, so that no run that begins afterwards computes
the documents again. The commit takes the rows out of the newest version; it also turns away a run that began before,
with the shorter list or with the rows. Every run says that it lives before it reads anything of the cache. So what such
a run may have left is found once the commit is there: it lives still, and then this is told, or it has ended, and then
its shards are in the folder. Only then are shards deleted: all that held the rows, of any version or of none. After a
crash at any instant the same call finishes the work.

Cost: the identity columns of every shard in the folder are read, and each live shard that loses rows is written once
more. The ids travel inside the job: more than `LINES_AT_ONCE` are several jobs, each at this cost.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from pipelines.engine.beam_options import parse_beam_options
from pipelines.job.outcome import Change, change_of, commit_change
from pipelines.job.reuse import lines_of, without_rows
from pipelines.job.run import in_process, new_pipeline, run_to_end
from pipelines.progress import SHARDS, shards_shown
from pipelines.scoring.units import ShardLine
from pipelines.upkeep.erasure import (
    Erased,
    Found,
    Gone,
    Wanted,
    documents_of,
    erase,
    joined,
    search,
    search_late,
)
from pipelines.upkeep.near_ids import likely_ids
from schemas.cache import RUNS_FOLDER
from schemas.errors import CacheError, ConflictError, NoCacheError
from schemas.shards.rewrite import ROW_GROUP_TOKENS
from schemas.shards.seal import Totals
from schemas.spec import Header
from schemas.storage.storage import Storage
from schemas.versions.commits import Version, base_version, read_version
from schemas.versions.header import read_header
from schemas.versions.history import (
    OWN_FOLDER,
    is_shard,
    leased,
    living_runs,
    new_run,
    own_parts,
    read_entries,
    renew_lease,
    strangers,
    told_of,
    unreadable_versions,
)
from schemas.versions.memory import (
    FORGOTTEN_FOLDER,
    erase_unscored,
    read_forgotten,
    refuse_lost_memory,
    remembered_names,
    write_forgotten,
)

LINES_AT_ONCE = 100_000


@dataclass(frozen=True, kw_only=True)
class ForgetConfig:
    """One call of `forget`."""

    cache: str
    ids: tuple[str, ...]
    """Document ids; or, as 32 hex digits, hashes of documents or ids of examples."""
    force: bool = False
    """Whether runs that seem to live are taken for dead."""
    show_progress: bool = True
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids or not all(self.ids):
            raise ValueError("ids cannot be empty")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every step knows. Plain values: it is pickled."""

    run: str
    root: str
    base: int
    header: Header
    wanted: Wanted
    fence: bool
    """Whether to commit also when no row leaves."""
    living: tuple[str, ...]
    """Runs that are taken for dead."""


def forget(config: ForgetConfig) -> Erased:
    """Erases rows from every version, and keeps what they came from out of later runs.

    Raises:
        NoCacheError: nothing was committed there.
        CacheError: a run lives, or has begun meanwhile.
        ConflictError: others committed in the meantime, twice.
        CorruptionError: the log is broken; or a live shard is, and then what was asked for is on the list all the same.
    """
    storage = Storage.at(config.cache)
    storage.check_links(OWN_FOLDER)
    read_header(storage)
    base = base_version(storage)
    if base is None:
        raise NoCacheError("no cache is there: nothing was committed", where=storage.root)
    read_entries(storage, base.number)  # a damaged log is told before anything is changed
    refuse_lost_memory(storage, base.record.memory)
    living = living_runs(storage)
    if living and not config.force:
        raise CacheError(
            "a run lives, and may hold what is to be forgotten",
            where=storage.root,
            got=told_of(storage, living),
            do="Wait for its end; if it crashed, say --force",
        )
    lines = tuple(dict.fromkeys(config.ids))
    fence = remember(storage, Wanted(lines=lines)) or bool(living)
    parts: list[Erased] = []
    for start in range(0, len(lines), LINES_AT_ONCE):
        wanted = Wanted(lines=lines[start : start + LINES_AT_ONCE])
        again = functools.partial(_once, config, wanted, fence and not parts, tuple(living))
        try:
            parts.append(again())
        except ConflictError:
            parts.append(again())
    return joined(parts)


def remember(storage: Storage, wanted: Wanted) -> bool:
    """Puts on the list what is not there yet; whether there was any."""
    before = read_forgotten(storage, remembered_names(storage, FORGOTTEN_FOLDER))
    new = [item for item in wanted.items() if not before.has(item)]
    if new:
        write_forgotten(storage, new)
    return bool(new)


def _once(config: ForgetConfig, wanted: Wanted, fence: bool, living: tuple[str, ...]) -> Erased:
    options = parse_beam_options(config.beam_options)
    storage = Storage.at(config.cache)
    base = read_version(storage)
    task = Task(
        run=new_run("forget"),
        root=storage.root,
        base=base.number,
        header=read_header(storage),
        wanted=wanted,
        fence=fence,
        living=living,
    )
    with leased(storage, task.run):
        pipeline = new_pipeline(options)
        build(pipeline, task, base)
        with shards_shown(config.show_progress and in_process(options)):
            run_to_end(pipeline, "the same call finishes what it began")
    told = json.loads(storage.read(f"{RUNS_FOLDER}/{task.run}.json"))
    if late := told.pop("late_runs"):
        raise CacheError(
            "a run began while this was under way, and may hold what is to be forgotten",
            where=storage.root,
            got=told_of(storage, late),
            do="What was found is erased. Wait for the run's end, and say the same again",
        )
    met = set(told.pop("lines"))
    told["unreadable_versions"] = tuple(told["unreadable_versions"])
    missing = tuple(line for number, line in enumerate(wanted.lines) if number not in met)
    near = ((number, place) for number, place in told.pop("near") if number not in met)
    likely = likely_ids(wanted.lines, near)
    return Erased(
        **told, not_found=missing, likely=likely, living_runs=living, strangers=tuple(strangers(storage))
    )


def build(pipeline: beam.Pipeline, task: Task, base: Version) -> None:
    """Wires one call. The folder is listed here, once."""
    live = {shard.name for shard in base.shards}
    present = {file.name: file.size_bytes for file in Storage.at(task.root).files() if is_shard(file.name)}
    sizes = present | {shard.name: shard.size_bytes for shard in base.shards}
    SHARDS.expect("forget", sources=len(sizes))
    _ = (
        pipeline
        | "list shards" >> beam.Create([(name, size, name in live) for name, size in sizes.items()])
        | "spread shards" >> beam.Reshuffle()
        | "search and rewrite" >> beam.Map(forget_in, task)
        | "gather lines" >> beam.combiners.ToList()
        | "commit and erase" >> beam.Map(finish, task)
    )


def forget_in(file: tuple[str, int, bool], task: Task) -> tuple[Found, list[ShardLine]]:
    """What one shard holds of it and, if it is live, the shard that replaces it."""
    storage = Storage.at(task.root)
    found = search(storage, task.header, file, task.wanted)
    lines = []
    if found.live and found.examples:
        leaving = frozenset(found.examples)
        lines.append(without_rows(storage, task.header, found.name, leaving, ROW_GROUP_TOKENS))
        renew_lease(storage, task.run)
    SHARDS.add(seen=1)
    return found, lines


def finish(values: list[Any], task: Task) -> None:
    """The last step: one version without the rows, then the files that held them, then a summary without their ids.

    Raises:
        ConflictError: a run committed in the meantime; nothing was deleted.
    """
    storage = Storage.at(task.root)
    found = [Found(*value) for value, _ in values]
    lines = [line for _, some in values for line in lines_of(some)]
    base = read_version(storage, task.base)
    change = change_of(lines)
    version, unscored = _take_out(storage, task, base, change, found, fence=task.fence)
    late_runs = [run for run in living_runs(storage) if run not in (task.run, *task.living)]
    if late := search_late(storage, task.header, task.wanted, found):
        nothing = Change([], [], Totals())
        base = read_version(storage, version)
        version, more = _take_out(storage, task, base, nothing, late, fence=False)
        found, unscored = [*found, *late], [*unscored, *more]
    parts = [] if late_runs else own_parts(storage)  # of a run that lives: it is still writing them
    erased = erase(storage, task.wanted, found, unscored, parts)
    told = {**_told(storage, task, found, erased, version), "late_runs": late_runs}
    storage.put(f"{RUNS_FOLDER}/{task.run}.json", json.dumps(told, indent=2).encode() + b"\n")


def _take_out(
    storage: Storage, task: Task, base: Version, change: Change, found: Sequence[Found], *, fence: bool
) -> tuple[int, list[bytes]]:
    """Commits rows and lines out of the newest version, if there are any; its number, and the lines' documents."""
    version = base.number
    erasing = erase_unscored(storage, documents_of(task.wanted, found))
    if change.removed or fence or {*base.record.memory} & {*erasing.files}:
        version = commit_change(
            storage,
            task.header,
            base,
            change,
            run=task.run,
            provenance={},
            unremembered=erasing.files,
        )
    storage.delete(erasing.files)
    return version, erasing.documents


def _told(storage: Storage, task: Task, found: list[Found], erased: Gone, version: int) -> Mapping[str, Any]:
    live = [one for one in found if one.live and one.examples]
    present = {file.name for file in storage.files()}
    return {
        "run": task.run,
        "version": version,
        "committed": version != task.base,
        "examples": sum(len(one.examples) for one in live),
        "documents": len({document for one in live for document in one.documents}),
        "rewritten_shards": len(live),
        "deleted_files": len(erased.files) + len(erased.parts),
        "deleted_bytes": erased.size_bytes,
        "remembered_lines": erased.remembered,
        "unreadable_versions": unreadable_versions(read_entries(storage, version), present),
        "lines": erased.lines,
        "near": sorted({pair for one in found for pair in one.near}),
    }
