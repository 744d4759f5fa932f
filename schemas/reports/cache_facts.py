"""What a report says of a cache, as plain values: from its log and a sample of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from schemas.cache import Cache
from schemas.reports.sampling import Sample, sample_of
from schemas.shards.seal import Totals
from schemas.versions.commits import read_record
from schemas.versions.records import CommitRecord

MOST_VERSIONS = 200
"""The newest ones, whose records are read."""


class VersionFacts(NamedTuple):
    """What one commit left."""

    number: int
    time: datetime
    run: str
    shards: int
    examples: int
    rejects: int


class Change(NamedTuple):
    """Where the teacher ran otherwise than for the version before, so that a sample of the cache was scored again."""

    version: int
    name: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class CacheFacts:
    """One version of a cache."""

    path: str
    version: int
    told: Sequence[tuple[str, str]]
    """Names and values for its head."""
    totals: Totals
    score: str
    has_positions: bool
    rejects: Mapping[str, int]
    """Documents by reason, over the versions that are told of."""
    versions: Sequence[VersionFacts]
    """Oldest first; the newest `MOST_VERSIONS`."""
    changes: Sequence[Change]
    provenance: Mapping[str, str]
    """Of the newest version."""
    sample: Sample


def cache_facts(cache: Cache, most_tokens: int) -> CacheFacts:
    """Everything that is shown of a cache.

    Raises:
        CorruptionError: a log entry or a shard that was drawn is missing or damaged.
    """
    first = max(0, cache.version + 1 - MOST_VERSIONS)
    records = [(number, read_record(cache.storage, number)) for number in range(first, cache.version + 1)]
    rejects: Counter[str] = Counter()
    for _, record in records:
        rejects.update(record.rejects)
    return CacheFacts(
        path=cache.storage.root,
        version=cache.version,
        told=_head(cache),
        totals=cache.totals,
        score=cache.spec.score,
        has_positions=cache.spec.kind.has_positions,
        rejects=dict(rejects.most_common()),
        versions=[_version(number, record) for number, record in records],
        changes=_changes(records),
        provenance=_texts(records[-1][1].provenance),
        sample=sample_of(cache, most_tokens),
    )


def _head(cache: Cache) -> list[tuple[str, str]]:
    spec, totals, teacher = cache.spec, cache.totals, cache.header.teacher
    positions = max(1, totals.positions)
    found = [
        ("teacher", f"{teacher.get('name', 'unnamed')} ({teacher.get('architecture', 'of no known class')})"),
        ("task", f"{spec.task}, {spec.score}" + (f" over {spec.vocab_size:,}" if spec.vocab_size else "")),
        ("keep", spec.to_json()["keep"]),
        ("examples", f"{totals.examples:,}"),
        ("tokens", f"{totals.tokens:,}"),
        ("positions", f"{totals.positions:,}"),
        ("shards", f"{len(cache.shards):,}"),
        ("bytes", f"{cache.size_bytes:,} ({cache.size_bytes / max(1, totals.tokens):.1f} a token)"),
    ]
    if spec.score == "softmax":
        found += [
            ("kept entries", f"{totals.entries / positions:.2f} a position"),
            ("mass kept exactly", f"{totals.kept_mass_sum / positions:.4f} of 1, over all positions"),
            ("teacher's entropy", f"{totals.entropy_sum_nats / positions:.3f} nats, over all positions"),
        ]
    return [*found, ("fingerprint", cache.fingerprint.hash), ("weights", cache.fingerprint.weights)]


def _version(number: int, record: CommitRecord) -> VersionFacts:
    return VersionFacts(
        number=number,
        time=datetime.fromtimestamp(record.time_ms / 1000, UTC),
        run=record.run,
        shards=record.live_shards,
        examples=record.live_rows,
        rejects=sum(record.rejects.values()),
    )


def _changes(records: Sequence[tuple[int, CommitRecord]]) -> list[Change]:
    """Between runs of the teacher; commits of other verbs tell of no teacher."""
    found, before = [], dict[str, str]()
    for number, record in records:
        if not (now := _texts(record.provenance)):
            continue
        names = sorted({*before, *now}) if before else []
        found += [
            Change(number, name, before.get(name, "-"), now.get(name, "-"))
            for name in names
            if before.get(name) != now.get(name)
        ]
        before = now
    return found


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in values.items()}
