"""`merge`: caches of several teachers over one corpus as one cache, in one commit; no teacher is asked.

What `train --join example` does with each batch is done once, and written: by the mean of the distributions, where they
are whole, or at each position by one teacher, under any policy. Examples that not all caches have are left out, and
counted. The merged cache is kept as an image: a later call merges what is new in all, and takes out what has left one.
A call that dies leaves shards that no version knows; the next one writes the same again.

Cost: the ids of all caches are read and shuffled, and each row group that a new shard needs is read once or a few
times; a merged shard is held in memory as rows and as bytes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.engine.beam_options import parse_beam_options
from pipelines.job.run import in_process, new_pipeline, run_to_end
from pipelines.keep.merging import Merging, Pick
from pipelines.progress import shards_shown
from pipelines.upkeep.merge_steps import Source, Task, build, refuse_another
from schemas.errors import ConflictError, MismatchError, NoCacheError, UsageError
from schemas.fingerprint import Fingerprint
from schemas.identity import canonical_json, digest
from schemas.policies import KeepAll
from schemas.shards.rewrite import ROW_GROUP_TOKENS
from schemas.shards.seal import Shard, Totals
from schemas.spec import Header, Spec
from schemas.storage.storage import Storage
from schemas.upkeep.joinable import joined_features, refuse_unlike
from schemas.versions.commits import NO_VERSION, Version, base_version, read_record, read_version
from schemas.versions.header import read_header
from schemas.versions.history import leased, new_run, read_entries
from schemas.versions.memory import FORGOTTEN_FOLDER, refuse_lost_memory, remembered_names

_IMAGE_RUNS = ("merge-", "compact-", "forget-", "repair-")
"""Runs after which a cache still holds nothing but merged rows."""
_SCALARS: Mapping[Pick, str] = {"loss": "gold", "entropy": "entropy"}


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """One call of `merge`."""

    caches: Mapping[str, float | None]
    """By path, with their weights in the mean; None of all: all alike."""
    out: str
    pick: Pick | None = None
    """In place of the mean one teacher at each position."""
    row_group_tokens: int = ROW_GROUP_TOKENS
    show_progress: bool = True
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        weights = [weight for weight in self.caches.values() if weight is not None]
        if len(self.caches) < 2:
            raise UsageError("two caches or more are merged", got=", ".join(self.caches) or "none")
        if weights and len(weights) < len(self.caches):
            raise UsageError("all caches have a weight, or none has", got=", ".join(self.caches))
        if not all(0 < weight < math.inf for weight in weights):
            raise UsageError("weights are above 0", got=" ".join(f"{weight:g}" for weight in weights))
        if weights and self.pick is not None:
            raise UsageError(
                "caches have no weights where one is picked", do="Name each cache without =WEIGHT"
            )
        if self.pick not in (None, *get_args(Pick)):
            raise UsageError("--pick cannot be this", expected=", ".join(get_args(Pick)), got=self.pick)

    @property
    def how(self) -> Merging:
        """How several are one."""
        weights = [1.0 if weight is None else weight for weight in self.caches.values()]
        return Merging(weights=tuple(weight / sum(weights) for weight in weights), pick=self.pick)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What `merge` did: the versions that were read, and the merged cache's newest after it."""

    run: str
    source_versions: tuple[int, ...]
    version: int
    committed: bool
    """False where nothing had changed."""
    examples: int
    left_out: dict[str, int]
    """Examples of each cache that are not in the merged one, by its path."""
    tokens: int
    shards: int
    added_shards: int
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def merge(config: MergeConfig) -> Merged:
    """Makes or brings up to date a merged cache.

    Raises:
        UsageError: the caches cannot be merged so, with the reason, or have no example in common.
        NoCacheError: nothing was committed in one of them.
        MismatchError: the merged cache has other teachers, another spec or another origin.
        CorruptionError: a shard is broken, or the merged cache's list of what was forgotten is lost; nothing was
            committed.
        ConflictError: others committed to the merged one in the meantime, twice.
    """
    try:
        return _once(config)
    except ConflictError:
        return _once(config)


def _once(config: MergeConfig) -> Merged:
    options = parse_beam_options(config.beam_options)
    storage, opened = Storage.at(config.out), [_source(path) for path in config.caches]
    sources = tuple(source for source, _ in opened)
    if any(source.root == storage.root for source in sources):
        raise UsageError("--out is one of the caches", got=storage.root, do="Name another folder")
    header = merged_header(
        [source.header for source in sources], config.how, [source.root for source in sources]
    )
    with contextlib.suppress(NoCacheError):
        refuse_another(read_header(storage), header, storage.root)
    task = Task(
        run=new_run("merge"),
        sources=sources,
        how=config.how,
        root=storage.root,
        base=NO_VERSION,
        header=header,
        forgotten=(),
        row_group_tokens=config.row_group_tokens,
        provenance=_provenance(sources, [version for _, version in opened]),
    )
    # before the list is read: `forget` knows of each run that may have a shorter one
    with leased(storage, task.run):
        return _leased(config, options, storage, task)


def _source(path: str) -> tuple[Source, Version]:
    storage = Storage.at(path)
    header, version = read_header(storage), base_version(storage)
    if version is None:
        raise NoCacheError("no cache is there: nothing was committed", where=storage.root)
    shards = tuple(tuple(shard) for shard in version.shards)
    return Source(root=storage.root, version=version.number, header=header, shards=shards), version


def _leased(config: MergeConfig, options: PipelineOptions, storage: Storage, task: Task) -> Merged:
    base, forgotten = base_version(storage), remembered_names(storage, FORGOTTEN_FOLDER)
    if base is not None:
        refuse_lost_memory(storage, base.record.memory)
    refuse_others(storage, base, task.provenance)
    task = replace(task, base=NO_VERSION if base is None else base.number, forgotten=forgotten)
    pipeline = new_pipeline(options)
    build(pipeline, task, base)
    with shards_shown(config.show_progress and in_process(options)):
        run_to_end(pipeline)
    return _outcome(storage, task, base)


def merged_header(headers: Sequence[Header], how: Merging, roots: Sequence[str]) -> Header:
    """The merged cache's header: the spec that all share, and a teacher that is all of them.

    Raises:
        UsageError: the caches differ, or their mean would be under no policy.
    """
    first, *others = headers
    for other, root in zip(others, roots[1:], strict=True):
        refuse_unlike(first, other, f"{roots[0]}, {root}")
    _refuse_what_is_lost(first.spec, how.pick, roots[0])
    told = {"teachers": [header.fingerprint.hash for header in headers], **asdict(how)}
    one = first.fingerprint
    fingerprint = Fingerprint(
        weights=digest(canonical_json(told), "merged").hex(),
        config="merged",
        tokenizer=one.tokenizer,
        chat_template=one.chat_template,
        dtype=one.dtype,
    )
    names = [str(header.teacher.get("name", "unnamed")) for header in headers]
    layers = [int(header.teacher.get("layers", 0)) for header in headers]
    teacher = {**first.teacher, "name": " + ".join(names), "layers": max(layers)}
    teacher.pop("weight_bytes", None)
    features = joined_features([header.spec for header in headers])
    return replace(
        first, fingerprint=fingerprint, spec=replace(first.spec, features=features), teacher=teacher
    )


def _refuse_what_is_lost(spec: Spec, pick: Pick | None, where: str) -> None:
    if pick is None:
        if spec.score == "softmax" and not isinstance(spec.keep, KeepAll):
            raise UsageError(
                "a mean of distributions that are cut or drawn is under no policy",
                where=where,
                expected="caches of --keep all",
                got=f"--keep {spec.keep}",
                do="Join them when they are replayed (`train --join example`), or --pick one teacher at each position",
            )
        return
    if spec.score == "softmax" and _SCALARS[pick] not in spec.scalars:
        raise UsageError(
            f"--pick {pick} needs the scalar {_SCALARS[pick]}, which the caches do not store",
            where=where,
            got=" ".join(spec.scalars) or "none",
            do=f"Precompute with --scalars {_SCALARS[pick]}",
        )
    if spec.score == "identity" and pick == "entropy":
        raise UsageError("values have no entropy to pick by", do="Leave --pick out, or say loss")


def _provenance(sources: Sequence[Source], versions: Sequence[Version]) -> dict[str, str]:
    """That of the first cache, and which ones they are: their first runs' names go along when caches are moved."""
    firsts = [read_record(Storage.at(source.root), NO_VERSION + 1).run for source in sources]
    return {
        **versions[0].record.provenance,
        "merged_from": ", ".join(source.root for source in sources),
        "merged_versions": " ".join(str(source.version) for source in sources),
        "merged_caches": " ".join(firsts),
    }


def refuse_others(storage: Storage, base: Version | None, provenance: Mapping[str, str]) -> None:
    """What is not an image of these very caches is left alone: rows that only it holds would leave.

    Raises:
        MismatchError: rows of other caches, or of a teacher, are there.
    """
    if base is None:
        return
    runs = [entry.record.run for entry in read_entries(storage, base.number)]
    foreign = [run for run in runs if not run.startswith(_IMAGE_RUNS)]
    if foreign or base.record.provenance.get("merged_caches") != provenance["merged_caches"]:
        raise MismatchError(
            "--out holds rows that were not merged from these caches",
            where=storage.root,
            expected=f"rows merged from {provenance['merged_from']}",
            got=f"those of run {foreign[0]}" if foreign else base.record.provenance.get("merged_from"),
            do="Use another --out",
        )


def _outcome(storage: Storage, task: Task, base: Version | None) -> Merged:
    after = base_version(storage)
    if after is not None and after.number > task.base:
        after = read_version(storage, task.base + 1)
    shards = after.shards if after else ()
    totals = after.record.totals if after else Totals()
    rows = {source.root: sum(Shard(*one).examples for one in source.shards) for source in task.sources}
    return Merged(
        run=task.run,
        source_versions=tuple(source.version for source in task.sources),
        version=after.number if after else NO_VERSION,
        committed=after is not None and after.record.run == task.run,
        examples=totals.examples,
        left_out={root: number - totals.examples for root, number in rows.items()},
        tokens=totals.tokens,
        shards=len(shards),
        added_shards=len(set(shards) - set(base.shards if base else ())),
        size_bytes=sum(shard.size_bytes for shard in shards),
    )
