"""People who may ask to be forgotten: documents with ids, and what a folder still holds of them."""

import pyarrow.parquet as pq

from pipelines import ForgetConfig, forget
from schemas import Cache
from tests.pipelines.helpers import read
from tests.synthetic import seal

FLAGS = {"id_field": "id", "keep_text": True, "unit_tokens": 60, "row_group_tokens": 40}


def people(count, *, start=0, edited=()):
    """Documents with ids; each text tells whose it is, over several windows."""
    said = {i: "said otherwise " if i in edited else "" for i in range(start, start + count)}
    return [
        {"id": f"user-{i}", "text": f"{said[i]}secret-of-{i}. " + "It goes on and on. " * (1 + i % 3)}
        for i in said
    ]


def call(cache, *ids, **changes):
    return forget(ForgetConfig(cache=str(cache), ids=ids, **changes))


def traces(cache, *needles):
    """Files that hold one of some texts or raw hashes: as bytes, as hex, or inside a Parquet column."""
    found = set()
    for path in (path for path in cache.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path, columns=["example_id", "document_hash", "document_id", "text"])
            data += repr(table.to_pylist()).encode() + b"".join(table["document_hash"].to_pylist())
        for needle in needles:
            raw = needle if isinstance(needle, bytes) else needle.encode()
            if raw in data or raw.hex().encode() in data:
                found.add(path.relative_to(cache).as_posix())
    return found


def document_of(cache, key):
    """The hash of a document, and the ids of its examples."""
    rows = {e: row for e, row in read(cache).items() if row["document_id"] == key}
    return next(iter(rows.values()))["document_hash"].tobytes(), sorted(rows)


def orphan_of(cache, key):
    """A shard that no version ever added, with the rows of one document."""
    opened = Cache.open(cache)
    rows = next(r for r in opened.read_all() if key in r.array("document_id").tolist())
    shard = seal(rows, groups=1)
    opened.storage.put(shard.name, shard.data)
    return shard.name
