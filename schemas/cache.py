"""`Cache`: one version of a cache, opened for reading.

Opening reads the log and the spec, never a shard. Footers (the row-group index) are fetched on first use, many at a
time, and row groups one by one: memory is that of the row groups a caller holds.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from schemas.errors import CorruptionError, NoCacheError
from schemas.rows.rows import Rows
from schemas.shards.reader import OpenFooter, open_shard, read_group, read_identities
from schemas.shards.seal import RowGroup, Shard, Totals
from schemas.spec import Fingerprint, Header, Spec
from schemas.storage.storage import Storage
from schemas.verify import Verified, verify_shards
from schemas.versions.commits import latest_version, read_record, read_version
from schemas.versions.lost_spec import SPEC_NAME, refuse_lost_spec
from schemas.versions.memory import read_memory, refuse_lost_memory
from schemas.versions.records import CommitRecord

TOKENIZER_FOLDER = "_teachonce/tokenizer"
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
    def open(cls, path: str | os.PathLike[str], version: int | None = None) -> Cache:
        """Opens a committed version (default: the newest) in a folder or at `s3://`, `gs://`, `az://`.

        Raises:
            NoCacheError: nothing was committed there, or no such version.
            FormatError: the cache needs a newer reader.
            CorruptionError: log or spec are damaged.
        """
        storage = Storage.at(path)
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
            return open_shard(self.storage, self.header, shard)

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
        opened = self.footers[ref.shard.name]
        with self._told_if_gone(ref.shard):
            return read_group(self.storage, ref.shard.name, opened, ref.place, self.spec)

    def read_all(self) -> Iterator[Rows]:
        """Every row group, one at a time."""
        return (self.read(ref) for ref in self.row_groups)

    def identities(self, shard: Shard) -> Rows:
        """The identity columns of one shard, checked, without the rest of its bytes."""
        return read_identities(self.storage, shard.name, self.footers[shard.name], self.spec)

    def verify(self) -> Verified:
        """Checks every byte, schema, encoding, count and id of this version; and the log up to it, the tokenizer
        and what the cache remembers.

        Raises:
            CorruptionError: with the first thing that does not match, and how many shards are broken in all.
            NoCacheError: this is an old version of which shards were deleted on purpose.
        """
        self.check_beside()
        there = {file.name for file in self.storage.files()}
        missing = [shard for shard in self.shards if shard.name not in there]
        if missing and (given_up := self._given_up(missing[0])):
            raise given_up
        return verify_shards(self.storage, self.header, self.shards, self.totals)

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

    @contextlib.contextmanager
    def _told_if_gone(self, shard: Shard) -> Iterator[None]:
        """What is missing in an old version was deleted on purpose: that is no damage."""
        try:
            yield
        except CorruptionError as error:
            if given_up := self._given_up(shard):
                raise given_up from error
            raise

    def _given_up(self, shard: Shard) -> NoCacheError | None:
        """The error to raise when a shard is missing that the newest version does not need either."""
        if self.storage.exists(shard.name) or latest_version(self.storage) <= self.version:
            return None
        newest = read_version(self.storage)
        if shard.name in {live.name for live in newest.shards}:
            return None
        return NoCacheError(
            f"version {self.version} can no longer be read: shards of it were deleted, by `vacuum` or `forget`",
            where=f"{self.storage.root}/{shard.name}",
            do=f"Open the newest version, {newest.number}",
        )

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


def read_tokenizer_file(storage: Storage, header: Header, name: str) -> bytes:
    """One checked file of the teacher's tokenizer, whether or not anything was committed."""
    where = f"{storage.root}/{TOKENIZER_FOLDER}/{name}"
    do = "Restore it from a copy, or from the folder of the teacher that the cache was made with"
    try:
        data = storage.read(f"{TOKENIZER_FOLDER}/{name}")
    except FileNotFoundError as error:
        raise CorruptionError("a tokenizer file is missing", where=where, do=do) from error
    if hashlib.sha256(data).hexdigest() != header.tokenizer[name]:
        raise CorruptionError("a tokenizer file is not the one that was stored", where=where, do=do)
    return data


def read_header(storage: Storage) -> Header:
    """The header of a cache, whether or not anything was committed.

    Raises:
        NoCacheError: there is none.
        FormatError, CorruptionError: it cannot be read by this release, or is damaged.
    """
    try:
        data = storage.read(SPEC_NAME)
    except FileNotFoundError as error:
        refuse_lost_spec(storage)
        raise NoCacheError(
            "no cache is there",
            where=f"{storage.root}/{SPEC_NAME}",
            do="Check the path, or make one with `teachonce precompute`",
        ) from error
    return Header.from_bytes(data, f"{storage.root}/{SPEC_NAME}")


def create_header(storage: Storage, header: Header, tokenizer: dict[str, bytes]) -> Header:
    """Writes tokenizer and spec unless they are there; returns the header that the cache has.

    A tokenizer without a spec is what a run left that was killed here; if it is another's, it is replaced.
    A spec that was there and is lost is a `CorruptionError`.
    """
    refuse_lost_spec(storage)
    is_new = not storage.exists(SPEC_NAME)
    for name, data in tokenizer.items():
        path = f"{TOKENIZER_FOLDER}/{name}"
        if not storage.put_if_absent(path, data) and is_new and storage.read(path) != data:
            storage.put(path, data)
    storage.put_if_absent(SPEC_NAME, header.to_bytes())
    return read_header(storage)
