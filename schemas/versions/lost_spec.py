"""A cache that has lost its spec is told from a place where none ever was."""

from __future__ import annotations

from schemas.errors import CorruptionError
from schemas.storage.storage import Storage
from schemas.versions.delta import WITNESS_FOLDER

SPEC_NAME = "_teachonce/spec.json"


def refuse_lost_spec(storage: Storage) -> None:
    """Where a version was committed there was a spec: what is there is a cache that has lost it, and no empty place.

    Raises:
        CorruptionError: there is a log, or a witness of one, beside no spec.
    """
    if storage.exists(SPEC_NAME) or not (storage.names("_delta_log") or storage.names(WITNESS_FOLDER)):
        return
    if storage.exists(SPEC_NAME):  # another run has just made it, and committed
        return
    raise CorruptionError(
        "the cache's spec.json is lost: without it nothing here can be read, nor added to",
        where=f"{storage.root}/{SPEC_NAME}",
        do="Restore it from a copy, or from a cache that was made in the same way; nothing else of the cache is harmed",
    )
