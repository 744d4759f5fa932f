"""The last step of a run: the rejects written down, the tolerance kept, one version committed, a summary left.

Everything that people are shown comes from here: from the shards' own lines and from counts that went through the
pipeline, which a retried bundle does not double. It runs on a worker, because the driver may be gone by then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from pipelines.fingerprint.fingerprint import resolve
from pipelines.fingerprint.teacher_files import sha256
from pipelines.progress import PROGRESS
from pipelines.scoring.units import ShardLine, counts_of
from pipelines.tolerances import RejectLine, Run, check_rejects, labels_of, rejects_of, write_rejects
from schemas.cache import RUNS_FOLDER
from schemas.cli.process import refuse_more_work
from schemas.errors import CacheError, ConflictError, MismatchError
from schemas.shards.seal import Shard, Totals
from schemas.spec import Header, differences
from schemas.storage.storage import Storage
from schemas.versions.commits import NO_VERSION, Version, commit, read_version, record_after
from schemas.versions.header import create_header

COUNTED = (
    "documents",
    "blank_lines",
    "duplicates",
    "known_documents",
    "new_documents",
    "adopted_documents",
    "remembered_documents",
    "forgotten_documents",
    "truncated_pairs",
)
"""Counts of a run that a summary, and a plan, show by these names."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did. Seconds of the teacher are summed over workers."""

    run: str
    version: int
    """The cache's newest version after the run; -1 when nothing was ever committed."""
    committed: bool
    documents: int
    blank_lines: int
    duplicates: int
    known_documents: int
    new_documents: int
    adopted_documents: int
    """Finished by a run that crashed, and now found whole."""
    remembered_documents: int
    """Not tried again: the teacher could not score them before."""
    forgotten_documents: int
    """Kept out: they were forgotten on request."""
    truncated_pairs: int
    rejects: Mapping[str, int]
    totals: Totals
    """Of what the teacher computed in this run."""
    shards: int
    """Added by this run: computed, adopted or rewritten."""
    size_bytes: int
    padded_tokens: int
    adopted_examples: int
    pruned_examples: int
    replaced_examples: int
    postponed_examples: int
    """Left for the next run, by `--max_hours`."""
    prune_withheld: int
    """Damaged records that could be any document; while there are any, nothing is pruned."""
    teacher_seconds: float
    wall_seconds: float
    encode_seconds: float = 0.0
    """Of encoding, most of it beside the teacher, sealing and storing, over all workers."""
    workers: int = 0
    """Processes that scored units."""
    keep: str = ""
    """The cache's policy."""
    overtaken: bool = False
    """Whether another run committed first; then this run began again with what it had finished."""
    overtaken_examples: int = 0
    """Scored before that; `adopted_examples` of them came in, the others stood in the cache by then."""
    overtaken_tokens: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    """Documents by how their labels were read."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunSummary:
        return cls(**{**value, "totals": Totals.from_json(value["totals"])})


def finish(
    run: Run, lines: Iterable[ShardLine], counts: Mapping[str, int], rejects: Sequence[RejectLine]
) -> RunSummary:
    """Leaves the run's summary, and commits its shards as one version (or nothing, when nothing is new) last of all.

    Raises:
        TooManyRejectsError: with what the teacher could not score, the tolerance is passed.
        ConflictError: another run committed in the meantime.
    """
    chosen = _one_a_unit(lines)
    if any(line.work.get("postponed_examples") for line in chosen):
        # what would replace them may not be there yet: rows leave with the next run
        chosen = [line for line in chosen if line.replaces is None]
    rejects = [*rejects, *(reject for line in chosen for reject in line.rejects)]
    counts = dict(counts)
    unscored = {
        tuple(reject[:3]) for line in chosen for reject in line.rejects
    }  # windows of one document count once
    for reason, *_ in unscored:
        counts[f"reject:{reason}"] = counts.get(f"reject:{reason}", 0) + 1
    check_rejects(run, counts, rejects)
    if rejects:
        write_rejects(run, rejects, counts)
    storage = Storage.at(run.root)
    change = change_of(chosen)
    refuse_more_work()
    PROGRESS.start_commit()
    provenance = merged(run.provenance, (line.work.get("provenance", {}) for line in chosen))
    summary = _summary(run, chosen, counts, provenance, run.base + bool(change.added or change.removed))
    put_summary(storage, summary)
    if summary.committed:
        try:
            _commit(run, change, provenance, counts)
        except ConflictError:
            put_summary(storage, replace(summary, version=run.base, committed=False, overtaken=True))
            raise
    return summary


def put_summary(storage: Storage, summary: RunSummary) -> None:
    """Leaves a run's summary in the cache."""
    storage.put(f"{RUNS_FOLDER}/{summary.run}.json", json.dumps(summary.to_json(), indent=2).encode() + b"\n")


class Change(NamedTuple):
    """What a set of lines makes of a version."""

    added: list[Shard]
    removed: list[str]
    totals: Totals
    counts: Mapping[str, bytes] | None = None
    """Of new shards, by name, as `commit` takes them."""


def change_of(lines: Sequence[ShardLine]) -> Change:
    """The shards that come and go, and what the cache's totals gain."""
    added = [
        Shard(line.name, line.size_bytes, line.totals["examples"]) for line in lines if line.name is not None
    ]
    totals = sum((Totals.from_json(line.totals) for line in lines), Totals())
    removed: list[str] = []
    for name, old in (line.replaces for line in lines if line.replaces is not None):
        removed.append(name)
        totals += -Totals.from_json(old)
    return Change(added, removed, totals, counts_of(lines))


def merged(first: Mapping[str, str], others: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """One provenance of all workers: where they differ, each value once."""
    found: dict[str, set[str]] = {}
    for one in others:
        for key, value in one.items():
            found.setdefault(key, set()).add(value)
    return {**first, **{key: " + ".join(sorted(values)) for key, values in found.items()}}


def _one_a_unit(lines: Iterable[ShardLine]) -> list[ShardLine]:
    """A retried bundle may have sealed a unit twice: one shard of each is taken."""
    chosen: dict[str, ShardLine] = {}
    for line in sorted(lines, key=lambda line: (line.unit, line.name or "")):
        chosen.setdefault(line.unit, line)
    return list(chosen.values())


def _commit(run: Run, change: Change, provenance: Mapping[str, str], counts: Mapping[str, int]) -> None:
    storage = Storage.at(run.root)
    header = _create(run, storage) if run.base == NO_VERSION else run.header
    refuse_missing(storage, change)
    base: Version | None = None if run.base == NO_VERSION else read_version(storage, run.base)
    commit_change(
        storage, header, base, change, run=run.id, provenance=provenance, rejects=rejects_of(counts)
    )


def commit_change(
    storage: Storage,
    header: Header,
    base: Version | None,
    change: Change,
    *,
    provenance: Mapping[str, str],
    unremembered: Collection[str] = (),
    **fields: Any,
) -> int:
    """Commits one change on top of `base`; `fields` are of the commit's record. Returns the new version's number.

    Files of the cache's memory in `unremembered` leave it.
    What `provenance` leaves open stays as it was in `base`: a commit that asks no teacher says nothing of one.

    Raises:
        ConflictError: another run committed since `base`.
    """
    gone = set(change.removed)
    removed = [shard for shard in (base.shards if base else ()) if shard.name in gone]
    record = record_after(
        base,
        change.added,
        change.totals,
        removed,
        header_hash=header.to_json()["hash"],
        provenance={**(base.record.provenance if base else {}), **provenance},
        **fields,
    )
    return commit(
        storage,
        header.spec,
        base,
        change.added,
        record,
        removed=removed,
        unremembered=unremembered,
        counts=change.counts,
    )


def refuse_missing(storage: Storage, change: Change) -> None:
    """Every shard must be where the commit says: not on another machine's disk, and not deleted meanwhile."""
    present = {file.name for file in storage.files()}
    if missing := [shard.name for shard in change.added if shard.name not in present]:
        raise CacheError(
            f"{len(missing)} of {len(change.added)} finished shards are not there; nothing was committed",
            where=f"{storage.root}/{missing[0]}",
            do="Every worker must reach the same --cache. Start the run again: it goes on with what is there",
        )


def _create(run: Run, storage: Storage) -> Header:
    """The header of a new cache, made just before its first commit."""
    files = dict(resolve(run.teacher).tokenizer_files)
    # written by this worker's library, which may be another than the driver's
    ours = replace(run.header, tokenizer={name: sha256(data) for name, data in files.items()})
    created = create_header(storage, ours, files)
    if lines := differences(created, run.header):
        raise MismatchError(
            "another run has begun this cache with another teacher or spec",
            where=run.root,
            got="; ".join(lines),
            do="Use another --cache, or remove the folder if nothing was committed there",
        )
    return created


def _summary(
    run: Run,
    lines: Sequence[ShardLine],
    counts: Mapping[str, int],
    provenance: Mapping[str, str],
    version: int,
) -> RunSummary:
    computed = [line for line in lines if line.work.get("tokens")]
    counted: dict[str, Any] = {name: counts.get(name, 0) for name in COUNTED}
    moved: dict[str, Any] = {
        name: sum(line.work.get(name, 0) for line in lines)
        for name in ("adopted_examples", "pruned_examples", "replaced_examples", "postponed_examples")
    }
    return RunSummary(
        run=run.id,
        version=version,
        committed=version != run.base,
        **counted,
        **moved,
        prune_withheld=counts.get("unidentified", 0),
        rejects=rejects_of(counts),
        labels=labels_of(counts),
        totals=sum((Totals.from_json(line.totals) for line in computed), Totals()),
        shards=sum(line.name is not None for line in lines),
        size_bytes=sum(line.size_bytes for line in lines),
        padded_tokens=sum(line.work.get("padded_tokens", 0) for line in lines),
        teacher_seconds=sum((line.work.get("teacher_seconds", 0.0) for line in lines), 0.0),
        wall_seconds=time.time() - run.started,
        encode_seconds=sum((line.work.get("encode_seconds", 0.0) for line in lines), 0.0),
        provenance=provenance,
        keep=str(run.header.spec.keep),
        workers=len({line.work["worker"] for line in lines if "worker" in line.work}),
    )
