"""Caches that are made of others, thinned ones and merged ones: how what has changed in them is committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from pipelines.job.outcome import Change, commit_change, refuse_missing
from schemas.cache import Cache
from schemas.spec import Header
from schemas.storage.storage import Storage
from schemas.versions.commits import NO_VERSION, read_version
from schemas.versions.header import create_header


@runtime_checkable
class Derived(Protocol):
    """What such a run knows of the cache that it makes."""

    @property
    def run(self) -> str: ...
    @property
    def root(self) -> str: ...
    @property
    def base(self) -> int: ...
    @property
    def header(self) -> Header: ...
    @property
    def provenance(self) -> Mapping[str, str]: ...


def commit_derived(
    task: Derived, change: Change, source: Callable[[], Cache], refuse: Callable[[Header, Header, str], None]
) -> None:
    """Commits a change, if it is one; the first commit creates the cache, with the tokenizer of its `source`.

    Raises:
        MismatchError: by `refuse`, where others have created it in the meantime as another cache.
        CacheError: a shard is not there.
        ConflictError: others have committed in the meantime.
    """
    if not (change.added or change.removed):
        return
    storage, header, base = Storage.at(task.root), task.header, None
    if task.base == NO_VERSION:
        first = source()
        header = create_header(
            storage, header, {name: first.tokenizer_file(name) for name in header.tokenizer}
        )
        refuse(header, task.header, task.root)
    else:
        base = read_version(storage, task.base)
    refuse_missing(storage, change)
    commit_change(storage, header, base, change, run=task.run, provenance=task.provenance)
