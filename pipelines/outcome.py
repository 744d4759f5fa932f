"""The last step of a run: the rejects written down, the tolerance kept, one version committed, a summary left.

Everything that people are shown comes from here: from the shards' own lines and from counts that went through the
pipeline, which a retried bundle does not double. It runs on a worker, because the driver may be gone by then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.config import TeacherConfig
from pipelines.fingerprint import resolve
from pipelines.units import ShardLine
from schemas.cache import REJECTS_FOLDER, RUNS_FOLDER, create_header
from schemas.commits import NO_VERSION, Shard, Version, commit, read_version, record_after
from schemas.errors import MismatchError, TooManyRejectsError
from schemas.shards import Totals
from schemas.spec import Header, differences
from schemas.storage import Storage

MAX_REJECT_LINES = 10_000
"""Written lines for each reason; the counts beside them are full."""

RejectLine = tuple[str, str, int, str | None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every step knows of the run. Plain values: it is pickled."""

    id: str
    root: str
    base: int
    """The version that the run began with; `NO_VERSION` for a new cache."""
    header: Header
    teacher: TeacherConfig
    provenance: Mapping[str, str]
    max_reject_fraction: float
    started: float


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
    truncated_pairs: int
    rejects: Mapping[str, int]
    totals: Totals
    """Of this run's shards."""
    shards: int
    size_bytes: int
    padded_tokens: int
    teacher_seconds: float
    wall_seconds: float
    provenance: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunSummary:
        return cls(**{**value, "totals": Totals.from_json(value["totals"])})


def check_rejects(run: Run, counts: Mapping[str, int], lines: Sequence[RejectLine]) -> None:
    """Fails the run, with its rejects written, when more documents were rejected than it tolerates.

    Raises:
        TooManyRejectsError: naming the commonest reason and the file.
    """
    rejects = rejects_of(counts)
    documents, total = counts.get("documents", 0), sum(rejects.values())
    if total <= run.max_reject_fraction * documents:
        return
    name = write_rejects(run, lines)
    reason = max(rejects, key=lambda key: rejects[key])
    raise TooManyRejectsError(
        f"{total:,} of {documents:,} documents are rejected, most as {reason}; nothing was committed",
        where=f"{run.root}/{name}",
        expected=f"at most {run.max_reject_fraction:.2%}",
        got=f"{total / documents:.2%}",
        do="Mend the corpus or the field flags, or raise --max_reject_fraction",
    )


def finish(
    run: Run, lines: Iterable[ShardLine], counts: Mapping[str, int], rejects: Sequence[RejectLine]
) -> RunSummary:
    """Leaves the run's summary, and commits its shards as one version (or nothing, when nothing is new) last of all.

    Raises:
        TooManyRejectsError: with what the teacher could not score, the tolerance is passed.
        ConflictError: another run committed in the meantime.
    """
    chosen = _one_a_unit(lines)
    rejects = [*rejects, *(reject for line in chosen for reject in line.rejects)]
    counts = dict(counts)
    unscored = {
        tuple(reject[:3]) for line in chosen for reject in line.rejects
    }  # windows of one document count once
    for reason, *_ in unscored:
        counts[f"reject:{reason}"] = counts.get(f"reject:{reason}", 0) + 1
    check_rejects(run, counts, rejects)
    if rejects:
        write_rejects(run, rejects)
    shards = [
        Shard(line.name, line.size_bytes, line.totals["examples"]) for line in chosen if line.name is not None
    ]
    totals = sum((Totals.from_json(line.totals) for line in chosen), Totals())
    summary = _summary(run, chosen, counts, totals, run.base + bool(shards))
    data = json.dumps(summary.to_json(), indent=2).encode() + b"\n"
    Storage.at(run.root).put(f"{RUNS_FOLDER}/{run.id}.json", data)
    if shards:
        _commit(run, shards, totals, counts)
    return summary


def rejects_of(counts: Mapping[str, int]) -> dict[str, int]:
    """Rejected documents by reason, from a run's counts."""
    return {k.removeprefix("reject:"): n for k, n in sorted(counts.items()) if k.startswith("reject:")}


def write_rejects(run: Run, lines: Sequence[RejectLine]) -> str:
    """Writes at most `MAX_REJECT_LINES` a reason, in the corpus's order; returns the file's name."""
    written: dict[str, int] = {}
    out = []
    for reason, file, offset, document in sorted(lines, key=lambda line: (*line[:3], line[3] or "")):
        written[reason] = written.get(reason, 0) + 1
        if written[reason] <= MAX_REJECT_LINES:
            out.append(json.dumps({"reason": reason, "file": file, "offset": offset, "id": document}))
    name = f"{REJECTS_FOLDER}/{run.id}.jsonl"
    Storage.at(run.root).put(name, ("\n".join(out) + "\n").encode())
    return name


def _one_a_unit(lines: Iterable[ShardLine]) -> list[ShardLine]:
    """A retried bundle may have sealed a unit twice: one shard of each is taken."""
    chosen: dict[str, ShardLine] = {}
    for line in sorted(lines, key=lambda line: (line.unit, line.name or "")):
        chosen.setdefault(line.unit, line)
    return list(chosen.values())


def _commit(run: Run, shards: Sequence[Shard], totals: Totals, counts: Mapping[str, int]) -> None:
    storage = Storage.at(run.root)
    if run.base == NO_VERSION:
        _create(run, storage)
    base: Version | None = None if run.base == NO_VERSION else read_version(storage, run.base)
    record = record_after(
        base,
        shards,
        totals,
        run=run.id,
        header_hash=run.header.to_json()["hash"],
        provenance=run.provenance,
        rejects=rejects_of(counts),
    )
    commit(storage, run.header.spec, base, shards, record)


def _create(run: Run, storage: Storage) -> None:
    """The header of a new cache, made just before its first commit."""
    files = dict(resolve(run.teacher).tokenizer_files)
    created = create_header(storage, run.header, files)
    if lines := differences(created, run.header):
        raise MismatchError(
            "another run has begun this cache with another teacher or spec",
            where=run.root,
            got="; ".join(lines),
            do="Use another --cache, or remove the folder if nothing was committed there",
        )


def _summary(
    run: Run, lines: Sequence[ShardLine], counts: Mapping[str, int], totals: Totals, version: int
) -> RunSummary:
    return RunSummary(
        run=run.id,
        version=version,
        committed=version != run.base,
        documents=counts.get("documents", 0),
        blank_lines=counts.get("blank_lines", 0),
        duplicates=counts.get("duplicates", 0),
        known_documents=counts.get("known_documents", 0),
        new_documents=counts.get("new_documents", 0),
        truncated_pairs=counts.get("truncated_pairs", 0),
        rejects=rejects_of(counts),
        totals=totals,
        shards=sum(line.name is not None for line in lines),
        size_bytes=sum(line.size_bytes for line in lines),
        padded_tokens=sum(line.work.get("padded_tokens", 0) for line in lines),
        teacher_seconds=sum((line.work.get("teacher_seconds", 0.0) for line in lines), 0.0),
        wall_seconds=time.time() - run.started,
        provenance=run.provenance,
    )
