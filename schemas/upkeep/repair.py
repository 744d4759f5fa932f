"""`repair`: a version without what is broken, so that the next run computes those examples again, and only those.

A shard is broken when it is missing, or when a byte, its schema, a count or an id is not what was sealed. One whose
seals hold, and of which some rows keep no rule of the format, is replaced by a copy of the others. Rows whose id
stands in an earlier shard too leave by a copy of the others. The totals are counted again from what is left. Files of
the cache's memory that are gone are told, and no longer missed. Nothing is deleted; a store that refuses to be read is
an error, not damage. The log, the spec and the tokenizer cannot be mended.

Cost: that of `verify`, and one shard in memory for each that holds repeats.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from schemas.cache import Cache
from schemas.errors import CorruptionError
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.rewrite import ROW_GROUP_TOKENS, copy_rows
from schemas.shards.seal import SealedShard, Shard, Totals
from schemas.spec import Header
from schemas.storage.storage import Storage
from schemas.upkeep.salvage import salvage
from schemas.verify import Checked, check_totals, try_shards
from schemas.versions.commits import Version, commit, read_version, record_after
from schemas.versions.header import read_header
from schemas.versions.history import leased, new_run, origins, read_entries, renew_lease
from schemas.versions.memory import lost_memory
from schemas.versions.records import CommitRecord

_BY_HAND = "--repair mends shards only: what stands beside them can be restored from a copy"


class Lost(NamedTuple):
    """A shard that left, and why."""

    name: str
    examples: int
    """Those that left with it: of some shards others can be saved."""
    version: int
    """The one that it came with."""
    run: str
    fault: str


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What `repair` found and did."""

    path: str
    version: int
    """The newest, after it."""
    committed: bool
    shards: int
    """Live, after it."""
    lost: tuple[Lost, ...]
    lost_examples: int
    lost_tokens: int
    """By what the log counted before."""
    repeats: int
    """Rows that stood in the cache once more, under an id that another shard holds."""
    miscounted: bool
    """Whether the log's totals were not those of the shards."""
    lost_memory: tuple[str, ...]
    """Files that said what the teacher could not score, or what was forgotten; they are no longer missed."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "lost": [lost._asdict() for lost in self.lost]}


class _Found(NamedTuple):
    """The state of a version's shards."""

    whole: list[tuple[Shard, Checked]]
    broken: list[tuple[Shard, CorruptionError]]

    @property
    def totals(self) -> Totals:
        """Of the whole shards."""
        return sum((checked.totals for _, checked in self.whole), Totals())


class _Copied(NamedTuple):
    """Shards that held repeats: what goes, what comes, and how the totals change."""

    removed: list[Shard]
    added: list[Shard]
    change: Totals


def repair(path: str | os.PathLike[str], checked: Callable[[int, int], None] | None = None) -> Repaired:
    """Commits a version without broken or missing shards and without repeated rows; nothing if all is whole.

    `checked` is told, at first and behind each shard, how many have been checked, and of how many.

    Raises:
        NoCacheError: nothing was committed there.
        CorruptionError: log, spec or tokenizer are damaged; nothing was committed.
        ConflictError: a run committed in the meantime.
    """
    storage, run = Storage.at(path), new_run("repair")
    with _told_what_is_left_to_people():
        read_header(storage)
    with leased(storage, run):  # before the version is read, as all who copy rows: `forget` must know of them
        return _leased(storage, run, checked)


@contextlib.contextmanager
def _told_what_is_left_to_people() -> Iterator[None]:
    try:
        yield
    except CorruptionError as error:
        do = f"{error.do}. {_BY_HAND}" if error.do else _BY_HAND
        raise CorruptionError(error.what, where=error.where, got=error.got, do=do) from error


def _leased(storage: Storage, run: str, checked: Callable[[int, int], None] | None) -> Repaired:
    with _told_what_is_left_to_people():
        cache = Cache.open(storage.root)
        cache.check_whole()
        base = read_version(cache.storage, cache.version)
        entries = read_entries(cache.storage, cache.version)
    found = _check(cache, checked)
    copied = _without_repeats(cache.storage, cache.header, found.whole, run)
    saved = _saved(cache, found.broken, run)
    more = [Shard(one.name, len(one.data), one.footer.totals.examples) for one in saved.values()]
    examples = {name: one.footer.totals.examples for name, one in saved.items()}
    miscounted = not found.broken and _differs(base.record, found.totals)
    removed = [*(shard for shard, _ in found.broken), *copied.removed]
    version = base.number
    unremembered = lost_memory(cache.storage, base.record.memory)
    if removed or miscounted or unremembered:
        totals = sum((one.footer.totals for one in saved.values()), found.totals + copied.change)
        added = [*copied.added, *more]
        version = _commit(cache, base, added, removed, totals, run=run, unremembered=unremembered)
    came = origins(entries)
    tokens = base.record.totals.tokens - found.totals.tokens
    tokens -= sum(one.footer.totals.tokens for one in saved.values())
    left = {shard: shard.examples - examples.get(shard.name, 0) for shard, _ in found.broken}
    return Repaired(
        path=cache.storage.root,
        version=version,
        committed=version != base.number,
        shards=len(base.shards) + len(copied.added) + len(more) - len(removed),
        lost=tuple(Lost(s.name, left[s], *came[s.name], str(error)) for s, error in found.broken),
        lost_examples=sum(left.values()),
        lost_tokens=tokens if found.broken else 0,
        repeats=-copied.change.examples,
        miscounted=miscounted,
        lost_memory=tuple(unremembered),
    )


def _check(cache: Cache, checked: Callable[[int, int], None] | None) -> _Found:
    """Checks every shard.

    Raises:
        TeachonceError: a shard cannot be reached, which is no damage.
    """
    found = _Found([], [])
    done, total = itertools.count(1), len(cache.shards)
    if checked is not None:
        checked(0, total)
    after = None if checked is None else lambda: checked(next(done), total)
    results = try_shards(cache.storage, cache.header, cache.shards, after)
    for shard, result in zip(cache.shards, results, strict=True):
        if isinstance(result, Checked):
            found.whole.append((shard, result))
        elif isinstance(result, CorruptionError):
            found.broken.append((shard, result))
        else:
            raise result
    return found


def _saved(cache: Cache, broken: Sequence[tuple[Shard, CorruptionError]], run: str) -> dict[str, SealedShard]:
    """Of each broken shard what can be saved, by its name; stored, and not committed."""
    saved = {}
    for shard, _ in broken:
        renew_lease(cache.storage, run)
        if (sealed := salvage(cache.storage, cache.header, shard)) is not None:
            cache.storage.put(sealed.name, sealed.data)
            saved[shard.name] = sealed
    return saved


def _without_repeats(
    storage: Storage, header: Header, whole: Sequence[tuple[Shard, Checked]], run: str
) -> _Copied:
    """Copies, stored and not committed, of shards that hold ids of earlier ones: without these rows."""
    removed, added, change = [], [], Totals()
    masks = repeated([checked.ids for _, checked in whole])
    for (shard, checked), mask in zip(whole, masks, strict=True):
        if not mask.any():
            continue
        renew_lease(storage, run)
        removed.append(shard)
        change += -checked.totals
        sealed = copy_rows(storage, header, [shard], functools.partial(_others, mask), ROW_GROUP_TOKENS)
        if sealed is not None:
            storage.put(sealed.name, sealed.data)
            added.append(Shard(sealed.name, len(sealed.data), sealed.footer.totals.examples))
            change += sealed.footer.totals
    return _Copied(removed, added, change)


def _others(mask: Array, rows: Rows) -> Array:
    assert len(mask) == len(rows)
    return ~mask


def repeated(ids: Sequence[Array]) -> list[Array]:
    """For each shard's ids (uint8 `[R, 16]`), which of them stand in an earlier shard too."""
    every = np.concatenate([np.zeros((0, 16), np.uint8), *ids])
    high, low = every.view(">u8").T
    order = np.lexsort([low, high])
    again = np.zeros(len(every), np.bool_)
    again[order[1:]] = (every[order[1:]] == every[order[:-1]]).all(axis=1)
    return np.split(again, np.cumsum([len(part) for part in ids])[:-1]) if ids else []


def _differs(record: CommitRecord, counted: Totals) -> bool:
    """Whether the log's integers are not those of the shards."""
    try:
        check_totals(record.totals, counted, "")
    except CorruptionError:
        return True
    return False


def _commit(
    cache: Cache,
    base: Version,
    added: Sequence[Shard],
    removed: Sequence[Shard],
    totals: Totals,
    *,
    run: str,
    unremembered: Sequence[str],
) -> int:
    fields = {
        "run": run,
        "header_hash": base.record.header_hash,
        "provenance": base.record.provenance,
    }
    record = replace(record_after(base, added, Totals(), removed, **fields), totals=totals)
    return commit(cache.storage, cache.spec, base, added, record, removed=removed, unremembered=unremembered)
