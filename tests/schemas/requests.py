"""What a piece of code asks of a cache's storage, counted; and row counts by brute force over the identity columns."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from schemas import Cache
from schemas.identity import is_held_out
from schemas.storage.storage import Storage
from schemas.versions.row_index import INDEX_FOLDER

ASKS = (
    "read",
    "read_range",
    "size",
    "put",
    "put_if_absent",
    "names",
    "files",
    "everything",
    "parts",
    "delete",
)


@contextlib.contextmanager
def asked():
    """Method and name of each request to a storage while the block runs, in a list."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for ask in ASKS:
            patch.setattr(Storage, ask, _counting(ask, getattr(Storage, ask), found))
        yield found


def _counting(ask, real, found):
    def counted(self, *arguments, **more):
        found.append((ask, arguments[0] if arguments and isinstance(arguments[0], str) else ""))
        return real(self, *arguments, **more)

    return counted


def of_shards(found):
    """The requests that name a shard."""
    return [one for one in found if one[1].endswith(".parquet") and "/" not in one[1]]


def brute_force(cache, fraction):
    """Shard, place, rows to train on and rows held out of each row group, from the rows themselves, one by one."""
    found = []
    for number, shard in enumerate(cache.shards):
        for place in range(len(cache.open_shard(shard).footer.row_groups)):
            rows = cache.read(next(r for r in cache.row_groups if r.shard == shard and r.place == place))
            held = sum(is_held_out(one.tobytes(), fraction) for one in rows.array("document_hash"))
            found.append((number, place, len(rows) - held, held))
    return found


def as_tuples(counts):
    return [*map(tuple, np.stack(counts[:4], axis=1).tolist())]


def check_counts(path, *fractions, version=None):
    """The counts of a version are those of its rows, and no shard is asked for those at the default fraction."""
    cache = Cache.open(path, version)
    with asked() as found:
        counts = cache.row_counts()
    assert not of_shards(found), found
    assert not [one for one in found if one[0] == "put_if_absent"], "nothing needs to be kept"
    assert as_tuples(counts) == brute_force(cache, 0.05)
    for fraction in fractions:
        for _ in range(2):
            assert as_tuples(Cache.open(path, version).row_counts(fraction)) == brute_force(cache, fraction)
    return cache


def index_files(path):
    return sorted(file for file in (Path(path) / INDEX_FOLDER).glob("*"))
