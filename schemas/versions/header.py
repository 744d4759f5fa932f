"""What stands beside the log for as long as the cache does: its spec, and its teacher's tokenizer."""

from __future__ import annotations

import hashlib

from schemas.errors import CorruptionError, NoCacheError
from schemas.spec import Header
from schemas.storage.storage import Storage
from schemas.versions.lost_spec import SPEC_NAME, refuse_lost_spec

TOKENIZER_FOLDER = "_teachonce/tokenizer"


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
