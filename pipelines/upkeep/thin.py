"""`thin`: a smaller cache from a larger one, in one commit; the teacher is not asked.

    live shards -> by unit, with the shards that the smaller cache has -> thin what is missing -> commit

Each live shard becomes one shard of the same examples, whose name follows from them. So the smaller cache is kept as an
image of the larger: a later call thins the shards that are new, and takes out those whose examples have left. What the
smaller cache was told to forget stays out. A call that dies leaves shards that no version knows; the next one writes
the same again.

Cost: the live shards' ids are read, then each row group of a new shard once; a thinned shard is held in memory as rows
and as bytes. `compact` of the larger cache makes new shards of all, and the next call thins them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.engine.beam_options import parse_beam_options
from pipelines.job.run import in_process, new_pipeline, run_to_end
from pipelines.keep.servable import thinned_spec
from pipelines.progress import shards_shown
from pipelines.upkeep.thin_steps import Task, build, refuse_another
from schemas.errors import ConflictError, MismatchError, NoCacheError, UsageError
from schemas.policies import KeepPolicy, refuse_whole
from schemas.shards.rewrite import ROW_GROUP_TOKENS
from schemas.shards.seal import Totals
from schemas.spec import Header, Scalar
from schemas.storage.storage import Storage
from schemas.versions.commits import NO_VERSION, Version, base_version, read_record, read_version
from schemas.versions.header import read_header
from schemas.versions.history import leased, new_run, read_entries
from schemas.versions.memory import FORGOTTEN_FOLDER, refuse_lost_memory, remembered_names

_IMAGE_RUNS = ("thin-", "compact-", "forget-", "repair-")
"""Runs after which a cache still holds nothing but thinned rows."""


@dataclass(frozen=True, kw_only=True)
class ThinConfig:
    """One call of `thin`. What is None stays as the larger cache has it."""

    cache: str
    out: str
    keep: KeepPolicy
    scalars: tuple[Scalar, ...] | None = None
    temperatures: tuple[float, ...] | None = None
    own_logits: bool | None = None
    row_group_tokens: int = ROW_GROUP_TOKENS
    show_progress: bool = True
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.row_group_tokens < 1:
            raise ValueError(f"row_group_tokens cannot be {self.row_group_tokens!r}")


@dataclass(frozen=True, kw_only=True)
class Thinned:
    """What `thin` did: the larger cache's version that was read, and the smaller one's newest after it."""

    run: str
    source_version: int
    version: int
    committed: bool
    """False where nothing had changed."""
    keep_before: str
    keep: str
    examples: int
    tokens: int
    shards: int
    added_shards: int
    size_bytes_before: int
    """Of the larger cache's live shards."""
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def thin(config: ThinConfig) -> Thinned:
    """Makes or brings up to date a smaller cache.

    Raises:
        UsageError: the larger cache cannot serve what is asked, with the reason.
        NoCacheError: nothing was committed in the larger cache.
        MismatchError: the smaller one has another teacher, spec or origin.
        CorruptionError: a shard is broken, or the smaller cache's list of what was forgotten is lost; nothing was
            committed.
        ConflictError: others committed to the smaller one in the meantime, twice.
    """
    try:
        return _once(config)
    except ConflictError:
        return _once(config)


def _once(config: ThinConfig) -> Thinned:
    options = parse_beam_options(config.beam_options)
    source, storage = Storage.at(config.cache), Storage.at(config.out)
    larger, version = read_header(source), base_version(source)
    if version is None:
        raise NoCacheError("no cache is there: nothing was committed", where=source.root)
    task = Task(
        run=new_run("thin"),
        source=source.root,
        source_version=version.number,
        source_header=larger,
        root=storage.root,
        base=NO_VERSION,
        header=agreed_header(storage, larger, config),
        forgotten=(),
        row_group_tokens=config.row_group_tokens,
        provenance=_provenance(source, version),
    )
    # before the list is read: `forget` knows of each run that may have a shorter one
    with leased(storage, task.run):
        return _leased(config, options, storage, task, version)


def _leased(
    config: ThinConfig, options: PipelineOptions, storage: Storage, task: Task, version: Version
) -> Thinned:
    base, forgotten = base_version(storage), remembered_names(storage, FORGOTTEN_FOLDER)
    if base is not None:
        refuse_lost_memory(storage, base.record.memory)
    refuse_others(storage, base, task.provenance)
    task = replace(task, base=NO_VERSION if base is None else base.number, forgotten=forgotten)
    pipeline = new_pipeline(options)
    build(pipeline, task, version, base)
    with shards_shown(config.show_progress and in_process(options)):
        run_to_end(pipeline)
    return _outcome(storage, task, version, base)


def agreed_header(storage: Storage, larger: Header, config: ThinConfig) -> Header:
    """The smaller cache's header: its own where it has one, else that of the larger with another spec.

    Raises:
        UsageError: the larger cache cannot serve it, both are one, or nothing would be cut.
        MismatchError: the smaller cache has another teacher or spec.
    """
    if Storage.at(config.cache).root == storage.root:
        raise UsageError("--out is the cache itself", got=storage.root, do="Name another folder")
    spec = thinned_spec(
        larger.spec,
        config.keep,
        scalars=config.scalars,
        temperatures=config.temperatures,
        own_logits=config.own_logits,
        where=config.cache,
    )
    asked = replace(larger, spec=spec)
    try:
        existing = read_header(storage)
    except NoCacheError:
        if spec.keep != larger.spec.keep:
            refuse_whole(spec.keep, spec.vocab_size)
        return asked
    refuse_another(existing, asked, storage.root)
    return existing


def _provenance(source: Storage, version: Version) -> dict[str, str]:
    """That of the larger cache, and which one it is: its first run's name goes along when a cache is moved."""
    return {
        **version.record.provenance,
        "thinned_from": source.root,
        "thinned_version": str(version.number),
        "thinned_cache": read_record(source, NO_VERSION + 1).run,
    }


def refuse_others(storage: Storage, base: Version | None, provenance: Mapping[str, str]) -> None:
    """What is not an image of this very cache is left alone: rows that only it holds would leave.

    Raises:
        MismatchError: rows of another cache, or of a teacher, are there.
    """
    if base is None:
        return
    runs = [entry.record.run for entry in read_entries(storage, base.number)]
    foreign = [run for run in runs if not run.startswith(_IMAGE_RUNS)]
    origin = base.record.provenance.get("thinned_cache")
    if foreign or origin != provenance["thinned_cache"]:
        raise MismatchError(
            "--out holds rows that were not thinned from this cache",
            where=storage.root,
            expected=f"rows thinned from {provenance['thinned_from']}",
            got=f"those of run {foreign[0]}" if foreign else base.record.provenance.get("thinned_from"),
            do="Use another --out",
        )


def _outcome(storage: Storage, task: Task, version: Version, base: Version | None) -> Thinned:
    after = base_version(storage)
    if after is not None and after.number > task.base:
        after = read_version(storage, task.base + 1)
    shards = after.shards if after else ()
    totals = after.record.totals if after else Totals()
    return Thinned(
        run=task.run,
        source_version=version.number,
        version=after.number if after else NO_VERSION,
        committed=after is not None and after.record.run == task.run,
        keep_before=str(task.source_header.spec.keep),
        keep=str(task.header.spec.keep),
        examples=totals.examples,
        tokens=totals.tokens,
        shards=len(shards),
        added_shards=len(set(shards) - set(base.shards if base else ())),
        size_bytes_before=sum(shard.size_bytes for shard in version.shards),
        size_bytes=sum(shard.size_bytes for shard in shards),
    )
