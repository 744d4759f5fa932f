"""`Cache`: one version of a cache, opened for reading.

Opening reads the log and the spec, never a shard, and `row_counts` a few small files beside the log. Row groups are
read one by one: by `read_group`, which opens footers when needed and holds few, or by `read`, which fetches all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from schemas.errors import CorruptionError
from schemas.fingerprint import Fingerprint
from schemas.identity import DEFAULT_EVAL_FRACTION
from schemas.rows.rows import Rows
from schemas.shards.group_counts import Footers
from schemas.shards.reader import OpenFooter, open_shard, read_group, read_identities
from schemas.shards.seal import RowGroup, Shard, Totals
from schemas.spec import Header, Spec
from schemas.storage.local_copies import LocalCopies, read_again
from schemas.storage.storage import Storage
from schemas.verify import Verified, verify_shards
from schemas.versions.commits import latest_version, read_record, read_version
from schemas.versions.given_up import given_up, told_if_gone
from schemas.versions.header import read_header, read_tokenizer_file
from schemas.versions.lost_spec import SPEC_NAME
from schemas.versions.memory import read_memory, refuse_lost_memory
from schemas.versions.records import CommitRecord
from schemas.versions.row_counts import Counting, RowCounts, check_footer, check_rows

REJECTS_FOLDER = "_teachonce/rejects"
RUNS_FOLDER = "_teachonce/runs"
_THREADS = 16


class RowGroupRef(NamedTuple):
    """One row group of one shard, and what its footer says of it."""

    shard: Shard
    place: int
    group: RowGroup


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One version of a cache. Safe to share between threads; holds no open file."""

    storage: Storage
    header: Header
    version: int
    shards: tuple[Shard, ...]
    record: CommitRecord

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], version: int | None = None, *, copies: LocalCopies | None = None
    ) -> Cache:
        """Opens a committed version (default: the newest). What is read of an object store is kept in `copies`.

        Raises:
            NoCacheError: nothing was committed there, or no such version.
            FormatError: the cache needs a newer reader.
            CorruptionError: log or spec are damaged.
        """
        storage = Storage.at(path, copies)
        header = read_header(storage)
        found = read_version(storage, version)
        if found.record.header_hash != header.to_json()["hash"]:
            raise CorruptionError(
                "the spec is not the one that the cache was committed with",
                where=f"{storage.root}/{SPEC_NAME}",
            )
        return cls(
            storage=storage,
            header=header,
            version=found.number,
            shards=found.shards,
            record=found.record,
        )

    @property
    def spec(self) -> Spec:
        return self.header.spec

    @property
    def fingerprint(self) -> Fingerprint:
        return self.header.fingerprint

    @property
    def totals(self) -> Totals:
        """Sums over all live examples, from the log."""
        return self.record.totals

    @property
    def size_bytes(self) -> int:
        """Bytes of all live shards."""
        return sum(shard.size_bytes for shard in self.shards)

    def versions(self) -> list[tuple[int, CommitRecord]]:
        """Number and record of every version up to this one.

        Raises:
            CorruptionError: a log entry is damaged or missing.
        """
        numbers = range(self.version + 1)
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(zip(numbers, pool.map(lambda n: read_record(self.storage, n), numbers), strict=True))

    @functools.cached_property
    def footers(self) -> dict[str, OpenFooter]:
        """Each live shard's checked footer, by name. Fetched at first use, in threads.

        Raises:
            CorruptionError: a shard is missing, cut short or not the one that the log means.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            opened = pool.map(self.open_shard, self.shards)
            return {shard.name: footer for shard, footer in zip(self.shards, opened, strict=True)}

    def open_shard(self, shard: Shard) -> OpenFooter:
        """One shard's footer, checked against its seal, the log and the spec.

        Raises:
            CorruptionError: a shard is missing, cut short or not the one that the log means.
            NoCacheError: it is missing because this version is an old one that was given up.
        """
        with self._told_if_gone(shard):
            return read_again(self.storage, lambda storage: open_shard(storage, self.header, shard))

    @functools.cached_property
    def row_groups(self) -> tuple[RowGroupRef, ...]:
        """Every row group, by shard name and place: the order that all others derive from."""
        return tuple(
            RowGroupRef(shard, place, group)
            for shard in self.shards
            for place, group in enumerate(self.footers[shard.name].footer.row_groups)
        )

    def read(self, ref: RowGroupRef) -> Rows:
        """Fetches, checks and parses one row group.

        Raises:
            CorruptionError: naming the shard.
        """
        name, place, opened = ref.shard.name, ref.place, self.footers[ref.shard.name]
        with self._told_if_gone(ref.shard, place):
            return read_again(self.storage, lambda s: read_group(s, name, opened, place, self.spec))

    def row_counts(self, eval_fraction: float = DEFAULT_EVAL_FRACTION) -> RowCounts:
        """Rows of each row group on each side of the held-out split. No shard is read at the default fraction, but
        where the index lacks some; at another every shard's ids are counted once, and the counts kept beside the cache.

        Raises:
            ValueError: the fraction is not in [0, 1).
            CorruptionError: a shard must be counted, and is missing or damaged.
        """
        if (found := self._counts.get(eval_fraction)) is None:
            found = self._counting.at(eval_fraction)
            self._counts[eval_fraction] = found
        return found

    def filtered_counts(self, key: int, count: Callable[[Rows], int]) -> Int64[np.ndarray, " _"]:
        """How many rows of each row group a filter chooses. All of the cache is read, once: the counts are kept beside
        it under the key, 64 bits that say what is counted.

        Raises:
            CorruptionError: a shard is missing or damaged.
        """
        counts = self.row_counts()
        return self._counting.filtered(counts, key, lambda shard, place: count(self.read_group(shard, place)))

    @property
    def _counting(self) -> Counting:
        return Counting(
            storage=self.storage,
            spec=self.spec,
            shards=self.shards,
            record=self.record,
            open_shard=self.open_shard,
        )

    @functools.cached_property
    def _counts(self) -> dict[float, RowCounts]:
        """What `row_counts` gave, by fraction."""
        return {}

    @functools.cached_property
    def _footers(self) -> Footers:
        """Of `read_group`."""
        return Footers(self.open_shard)

    def read_group(self, shard_number: int, place: int) -> Rows:
        """As `read` of a row group that `row_counts` tells of: the shard's footer is opened now, and not held for long.

        Raises:
            CorruptionError: naming the shard, also where its rows are not those that `row_counts` gave.
        """
        shard = self.shards[shard_number]
        where = f"{self.storage.root}/{shard.name}, row group {place}"
        given = [*self._counts.values()]
        with self._told_if_gone(shard, place):
            opened = self._footers.of(shard)
            for counts in given:
                check_footer(counts, shard_number, place, opened, where)
            rows = read_again(self.storage, lambda s: read_group(s, shard.name, opened, place, self.spec))
        for counts in given:
            check_rows(counts, shard_number, place, rows, where)
        return rows

    def read_all(self) -> Iterator[Rows]:
        """Every row group, one at a time."""
        return (self.read(ref) for ref in self.row_groups)

    def identities(self, shard: Shard) -> Rows:
        """The identity columns of one shard, checked, without the rest of its bytes."""
        opened = self.footers[shard.name]
        return read_again(self.storage, lambda s: read_identities(s, shard.name, opened, self.spec))

    def verify(self, after: Callable[[], None] | None = None) -> Verified:
        """Checks every byte, schema, encoding, count and id of this version; and the log up to it, the tokenizer
        and what the cache remembers. `after` is called behind each shard.

        Raises:
            CorruptionError: with the first thing that does not match, and how many shards are broken in all.
            NoCacheError: this is an old version of which shards were deleted on purpose.
        """
        self.check_beside()
        there = {file.name for file in self.storage.files()}
        missing = [shard for shard in self.shards if shard.name not in there]
        if missing and (error := given_up(self.storage, self.version, missing[0].name)):
            raise error
        return verify_shards(replace(self.storage, copies=None), self.header, self.shards, self.totals, after)

    def check_memory(self) -> None:
        """Checks that what is remembered is there: the newest version names it for all versions.

        Raises:
            CorruptionError: a file is missing.
        """
        record = self._newest_record()
        if record is not None:
            refuse_lost_memory(self.storage, record.memory)

    def _newest_record(self) -> CommitRecord | None:
        """None where a later version than this is damaged: that is told where it is opened."""
        try:
            newest = latest_version(self.storage)
            return self.record if newest == self.version else read_record(self.storage, newest)
        except CorruptionError:
            return None

    def check_beside(self) -> None:
        """Checks what stands beside the shards: the log up to this version, what is remembered, the tokenizer.

        Raises:
            CorruptionError: a file is missing, or not the one that was written.
        """
        self.check_whole()
        self.check_memory()

    def check_whole(self) -> None:
        """Checks what `verify --repair` cannot mend: the log up to this version, the tokenizer, and of what is
        remembered the files that are there.

        Raises:
            CorruptionError: a file is missing, or not the one that was written.
        """
        self.versions()
        read_memory(self.storage)
        for name in self.header.tokenizer:
            self.tokenizer_file(name)

    def _told_if_gone(self, shard: Shard, place: int | None = None) -> AbstractContextManager[None]:
        return told_if_gone(self.storage, self.version, shard.name, place)

    def save_tokenizer(self, folder: str | os.PathLike[str]) -> Path:
        """Copies the teacher's tokenizer to a local folder, for `AutoTokenizer.from_pretrained`.

        Raises:
            CorruptionError: a file is missing, or not the one that was stored.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in self.header.tokenizer:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(self.tokenizer_file(name))
        return target

    def tokenizer_file(self, name: str) -> bytes:
        """One checked file of the teacher's tokenizer."""
        return read_tokenizer_file(self.storage, self.header, name)
