"""Histories of caches, made by hand: versions that add and remove shards, at a clock that tests set."""

import os
from pathlib import Path

import numpy as np

from schemas.shards.reader import open_footer
from schemas.shards.seal import Shard, Totals
from schemas.storage.storage import Storage
from schemas.versions import commits
from schemas.versions.commits import commit, read_version, record_after
from schemas.versions.history import read_entries
from tests.synthetic import begin, causal_spec, header_of, random_rows, seal

DAY = 86_400.0


class Clock:
    """Stands for the module `time`."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


class History:
    """A cache that grows and shrinks, one commit at a time."""

    def __init__(self, path: Path, monkeypatch, now: float, num_rows: int = 60) -> None:
        self.clock = Clock(now)
        monkeypatch.setattr(commits, "time", self.clock)
        self.storage: Storage = begin(path, causal_spec())
        self.rows = random_rows(causal_spec(), num_rows).rows
        self.next = 0

    def put(self, count: int = 3, modified: float | None = None) -> Shard:
        """Stores a shard of new rows; it is an orphan until it is committed."""
        sealed = seal(self.rows.take(np.arange(self.next, self.next + count)), groups=1)
        self.next += count
        self.storage.put(sealed.name, sealed.data)
        self.touch(sealed.name, modified)
        return Shard(sealed.name, len(sealed.data), count)

    def touch(self, name: str, modified: float | None = None) -> None:
        """Sets when a file was written."""
        at = self.clock.now if modified is None else modified
        os.utime(Path(self.storage.root) / name, (at, at))

    def commit(self, added=(), removed=(), run: str = "run") -> int:
        """One version, now."""
        base = None if not self.versions() else read_version(self.storage)
        totals = sum((self._totals(shard) for shard in added), Totals())
        totals = sum((-self._totals(shard) for shard in removed), totals)
        fields = {"run": run, "header_hash": header_of(causal_spec()).to_json()["hash"]}
        record = record_after(base, added, totals, removed, **fields)
        return commit(self.storage, causal_spec(), base, added, record, removed=removed)

    def versions(self) -> int:
        return commits.latest_version(self.storage) + 1

    def entries(self):
        return read_entries(self.storage, self.versions() - 1)

    def _totals(self, shard: Shard) -> Totals:
        return open_footer(self.storage, shard.name).footer.totals
