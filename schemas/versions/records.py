"""The record that each commit leaves in the log: what it says of itself, and what the cache is after it.

It stands there as text with its own hash, so that a flipped letter is seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from schemas.limits import MAX_COUNT, conform, parse_json, shown
from schemas.shards.seal import Totals, sane

_MAX_TIME_MS = 253_402_300_799_000
"""The end of the year 9999: no later time has a date."""


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """What a commit says of itself and of the cache after it."""

    run: str
    header_hash: str
    live_shards: int
    live_rows: int
    live_hash: str
    added_hash: str
    """Over the names that this commit added."""
    totals: Totals
    provenance: Mapping[str, Any] = field(default_factory=dict)
    rejects: Mapping[str, int] = field(default_factory=dict)
    """Documents that this run rejected, by reason."""
    time_ms: int = 0
    memory: tuple[str, ...] = ()
    """Files of the cache's memory that stand beside it; each name ends in the hash of its bytes."""
    index: tuple[str, ...] = field(default=(), compare=False)
    """Segments of the index of row counts. They say how to find what the shards say, and nothing of the cache; so a
    record with others is the same. They stand beside the record's text, where an earlier release does not look."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CommitRecord:
        """The record that `to_log` made this of.

        Raises:
            ValueError, TypeError: it says what no commit does.
        """
        found: CommitRecord = conform(cls, value, "record")
        sane(found.totals)
        counts = (found.live_shards, found.live_rows, found.time_ms, *found.rejects.values())
        if min(counts) < 0 or max(counts) > MAX_COUNT or found.time_ms > _MAX_TIME_MS:
            raise ValueError(f"counts, or a time, that cannot be: {shown(counts)}")
        return found

    def to_log(self) -> dict[str, str]:
        """The record as text: `deltalake` parses numbers on their way to the log, and may change a float's last bit."""
        value = asdict(self)
        segments = value.pop("index")
        if not self.memory:
            del value["memory"]
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        index = json.dumps(segments, separators=(",", ":"))
        beside = {"index": index, "index_hash": record_hash(index)} if segments else {}
        return {"record": text, "hash": record_hash(text), **beside}


def index_in(info: Mapping[str, Any]) -> tuple[str, ...]:
    """The segments of the index that a log entry names beside its record; none in one of an earlier release.

    Raises:
        ValueError: they are not those that the commit named.
    """
    if "index" not in info:
        return ()
    text: str = conform(str, info["index"], "index")
    if record_hash(text) != info.get("index_hash"):
        raise ValueError("a commit's list of the index does not match its own hash")
    segments: tuple[str, ...] = conform(tuple[str, ...], parse_json(text), "index")
    return segments


def record_hash(text: str) -> str:
    """Hash of a record's text, in hex."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
