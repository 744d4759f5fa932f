"""Makes the golden cache of this format version: `python -m tests.golden.make`.

`v0/` is the cache, `v0.json` what its rows decode to. Every later release must open it and decode the same values.
Format 0 is still free to change: until version 1 is frozen, a change of the format makes the golden cache anew, on
purpose and in the same change. From version 1 on, golden caches are added and never made again.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np

from schemas import Cache, Feature
from schemas.cache import base_version
from schemas.spec import FORMAT_VERSION
from tests.synthetic import add, begin, causal_spec, random_rows

FOLDER = Path(__file__).parent
CACHE, VALUES = FOLDER / f"v{FORMAT_VERSION}", FOLDER / f"v{FORMAT_VERSION}.json"


def main() -> None:
    """Two versions, a shard each, of eight rows in all."""
    with tempfile.TemporaryDirectory() as folder:
        spec = causal_spec(
            keep=causal_spec().keep,
            max_length=12,
            has_text=True,
            features=(Feature(pooling="mean", layer=2, width=4),),
        )
        rows = random_rows(spec, 8, seed=7).rows
        storage = begin(Path(folder) / "cache", spec)
        add(storage, None, [rows.take(np.arange(5))], run="first", rejects={"empty": 1})
        add(storage, base_version(storage), [rows.take(np.arange(5, 8))], run="second")
        values = decoded(Cache.open(storage.root))
        shutil.rmtree(CACHE, ignore_errors=True)
        shutil.copytree(storage.root, CACHE)
    for entry in (CACHE / "_delta_log").glob("*.json"):
        entry.write_text(re.sub(r'"location":"[^"]*"', '"location":"file:///cache/"', entry.read_text()))
    VALUES.write_text(json.dumps(values, indent=1) + "\n")


def decoded(cache: Cache) -> list[dict[str, object]]:
    """Everything that a reader makes of the rows, as plain values."""
    return [_row(rows.take(np.array([i]))) for rows in cache.read_all() for i in range(len(rows))]


def _row(row) -> dict[str, object]:
    lists = {
        name: row.ragged(name).values.tolist()
        for name in ("input_ids", "num_kept", "kept_ids", "entropy", "label_logprob")
    }
    return {
        "example_id": row.example_ids[0].hex(),
        "text": row.array("text")[0],
        "position_index": row.position_index().tolist(),
        "kept_logprobs": row.kept_logprobs().tolist(),
        "logsumexp": [row.logsumexp(t).tolist() for t in row.spec.temperatures],
        "feature": row.feature(row.spec.features[0])[0].tolist(),
        **lists,
    }


if __name__ == "__main__":
    main()
