"""Makes golden caches, once: `python -m tests.golden.make`.

`v1/NAME/` is a cache of one policy, `v1/NAME.json` what its rows decode to; `v1-TASK/` holds those of a task that came
after format 1. Every later release must open them and decode the same values. What stands there is frozen: it is never
made again, and this refuses to. A later version, or task, gets a folder of its own.
"""

import json
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from schemas import Cache, Feature
from schemas.rows.entries import entries_of
from schemas.rows.rows import Rows
from schemas.versions.commits import base_version
from tests.synthetic import SPECS, add, begin, random_rows

ROOT = Path(__file__).parent
FEATURES = (
    Feature(pooling="mean", layer=2, width=4),
    Feature(pooling="last", layer=0, width=2, dtype="float32"),
)
V1 = ("all", "top_k", "top_p", "threshold", "temperatures", "sampled", "classes", "sigmoid", "regression")
GOLDEN = {
    f"{folder}/{name}": replace(
        SPECS[name],
        max_length=2 if SPECS[name].kind.reads_images else 12,
        features=FEATURES if name in ("top_p", "embeddings", "image_embeddings") else (),
        vocab_size=12 if SPECS[name].kind.classes_are_tokens else SPECS[name].vocab_size,
    )
    for folder, names in {
        "v1": V1,
        "v1-masked-lm": ("masked",),
        "v1-token-classification": ("words",),
        "v1-generated": ("written",),
        "v1-pair-score": ("pairs",),
        "v1-feature-extraction": ("embeddings",),
        "v1-question-answering": ("answers",),
        "v1-seq2seq-lm": ("sources",),
        "v1-image-classification": ("images",),
        "v1-image-feature-extraction": ("image_embeddings",),
        "v1-object-detection": ("boxes", "boxes_sigmoid"),
    }.items()
    for name in names
}
ROWS, FIRST = 6, 4


def main() -> None:
    new = {name: spec for name, spec in GOLDEN.items() if not (ROOT / name).parent.exists()}
    if not new:
        sys.exit(
            f"{ROOT} has them: golden caches are never made again, or old caches would no longer be tested"
        )
    for name, spec in new.items():
        make(ROOT / name, random_rows(spec, ROWS, seed=7).rows)


def make(path: Path, rows: Rows) -> None:
    """Two versions, a shard each."""
    with tempfile.TemporaryDirectory() as folder:
        storage = begin(Path(folder) / "cache", rows.spec)
        add(storage, None, [rows.take(np.arange(FIRST))], run="first", rejects={"empty": 1})
        add(storage, base_version(storage), [rows.take(np.arange(FIRST, ROWS))], run="second")
        values = decoded(Cache.open(storage.root))
        shutil.copytree(storage.root, path)
    for entry in (path / "_delta_log").glob("*.json"):
        entry.write_text(re.sub(r'"location":"[^"]*"', '"location":"file:///cache/"', entry.read_text()))
    path.with_suffix(".json").write_text(json.dumps(values, separators=(",", ":")) + "\n")


def decoded(cache: Cache) -> list[dict[str, object]]:
    """Everything that a reader makes of the rows, as plain values."""
    return [_row(rows.take(np.array([i]))) for rows in cache.read_all() for i in range(len(rows))]


def _row(row: Rows) -> dict[str, object]:
    spec = row.spec
    hashes = ("example_id", "document_hash")
    single = (
        "window_index",
        "window_count",
        "view_index",
        "source_tokens",
        "document_id",
        "text",
        "text_pair",
    )
    single += ("context_start", "context_end", "has_answer")
    lists = ("input_ids", "token_type_ids", "labels", "boxes", "object_classes", "object_boxes")
    return {
        **{name: row.array(name)[0].tobytes().hex() for name in hashes},
        **{name: row.array(name).tolist()[0] for name in single if name in row.data},
        **{name: row.ragged(name).values.tolist() for name in lists if name in row.data},
        **({"image": row.array("image")[0].hex()} if "image" in row.data else {}),
        "position_index": row.position_index().tolist(),
        "features": [row.feature(feature)[0].tolist() for feature in spec.features],
        **(_scores(row) if spec.score == "softmax" else {}),
        **({"logits": row.ragged("logits").values.tolist()} if "logits" in row.data else {}),
    }


def _scores(row: Rows) -> dict[str, object]:
    spec, found = row.spec, entries_of(row)
    return {
        "top_logprob": row.top_logprob().tolist(),
        **({"entropy": row.entropy().tolist()} if "entropy" in spec.scalars else {}),
        **({"gold_logprob": row.gold_logprob().values.tolist()} if "gold" in spec.scalars else {}),
        **(
            {"logsumexp": [row.logsumexp(t).tolist() for t in spec.temperatures]}
            if "logsumexp" in spec.scalars
            else {}
        ),
        "ids": found.ids.tolist(),
        "counts": found.counts.tolist(),
        "is_exact": found.is_exact.tolist(),
        "logprobs": [None if np.isnan(value) else value for value in found.logprobs.tolist()],
        "weights": [entries_of(row, t).weights.tolist() for t in spec.temperatures],
    }


if __name__ == "__main__":
    main()
