"""Corpora as real files, runs as people start them, and rows of a cache by example."""

import gzip
import itertools
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipelines import CorpusConfig, PrecomputeConfig, TeacherConfig, precompute
from pipelines.scoring import handler
from schemas import Cache
from schemas.policies import KeepAll
from schemas.rows.rows import Rows
from tests.pipelines.models import TEXT

MAX_LENGTH = 24
SMALL = {"keep": KeepAll(), "max_length": MAX_LENGTH, "show_progress": False, "batch_tokens": 256}


def documents(count: int, *, start: int = 0) -> list[dict]:
    """Distinct documents of very different lengths."""
    return [
        {"text": f"{i} " + TEXT[i % 4][: 8 + 5 * i % 60] * (1 + i % 3)} for i in range(start, start + count)
    ]


def write_jsonl(path: Path, records: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line(record) + b"\n" for record in records))
    return path


def line(record: object) -> bytes:
    return record if isinstance(record, bytes) else json.dumps(record, ensure_ascii=False).encode()


def write_parquet(path: Path, records: list[dict], rows_a_group: int = 5) -> Path:
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=rows_a_group)
    return path


def compress(path: Path, suffix: str, *, frames: int = 1) -> Path:
    """The file beside itself, as `.gz` or `.zst`, in one or more frames."""
    data = path.read_bytes()
    one = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    ends = [len(data) * i // frames for i in range(frames + 1)]
    target = path.with_name(path.name + suffix)
    target.write_bytes(b"".join(one(data[a:b]) for a, b in itertools.pairwise(ends)))
    return target


def config(corpus, teacher, cache, **changes) -> PrecomputeConfig:
    """A config from one flat set of fields, as on the command line."""
    given = {"task": "causal-lm", "files": tuple(map(str, corpus if isinstance(corpus, list) else [corpus]))}
    given = SMALL | given | {"path": str(teacher), "cache": str(cache)} | changes
    taken = {kind: {f.name: given.pop(f.name) for f in fields(kind) if f.name in given} for kind in _KINDS}
    assert not given, given
    own = taken[PrecomputeConfig]
    return PrecomputeConfig(
        corpus=CorpusConfig(**taken[CorpusConfig]), teacher=TeacherConfig(**taken[TeacherConfig]), **own
    )


_KINDS = (CorpusConfig, TeacherConfig, PrecomputeConfig)


def run(corpus, teacher, cache, **changes):
    """One run; returns its summary."""
    return precompute(config(corpus, teacher, cache, **changes))


def read(cache) -> dict[bytes, dict]:
    """Every row by example id, decoded. An id that stands there twice fails."""
    opened = cache if isinstance(cache, Cache) else Cache.open(cache)
    found = {}
    for rows in opened.read_all():
        for index in range(len(rows)):
            row = rows.take(np.array([index]))
            assert row.example_ids[0] not in found
            found[row.example_ids[0]] = decoded(row)
    return found


def decoded(row) -> dict:
    """One row (R = 1) as plain arrays."""
    values = {name: _plain(column) for name, column in row.data.items() if not name.endswith("_codes")}
    values["positions"] = row.position_index()
    if row.spec.score == "softmax":
        values["logprobs"] = row.kept_logprobs()
        values["kept_offsets"] = row.kept_offsets
        values["top_logprob"] = row.top_logprob()
    if "entropy" in row.spec.scalars:
        values["entropy"] = row.entropy()
    if "gold" in row.spec.scalars:
        values["label_logprob"] = row.gold_logprob().values
    for feature in row.spec.features:
        values[feature.name] = row.feature(feature)[0]
    return values


def _plain(column):
    return column.values if hasattr(column, "values") else column[0]


def texts(cache, tokenizer) -> set[str]:
    """The decoded inputs of a cache, special tokens left out."""
    return {tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in read(cache).values()}


def unable(monkeypatch, fails):
    """A teacher whose answers about some examples are not finite."""
    honest = handler.UnitScorer._answers

    def answers(self, members, batch, work):
        for scored, answer in honest(self, members, batch, work):
            finite = answer.finite.clone()
            for place, example in enumerate(scored):
                finite[place] &= not fails(example)
            yield scored, answer._replace(finite=finite)

    monkeypatch.setattr(handler.UnitScorer, "_answers", answers)


def rejects(cache, summary) -> list[dict]:
    """The lines of a run's rejects file."""
    file = Path(cache) / "_teachonce" / "rejects" / f"{summary.run}.jsonl"
    return [json.loads(text) for text in file.read_text().splitlines()]


def all_rows(cache):
    rows = Rows.concatenate(list(cache.read_all()))
    return rows.take(np.array(sorted(range(len(rows)), key=rows.example_ids.__getitem__)))


def same_columns(found, expected, *, but=()):
    """Every column of two caches, as it stands in memory; drawn ids in order, which means nothing."""
    ours, theirs = (all_rows(cache) for cache in (found, expected))
    assert ours.data.keys() == theirs.data.keys()
    for name in ours.data.keys() - set(but):
        np.testing.assert_array_equal(column(ours, name), column(theirs, name), name)


def column(rows, name):
    values = getattr(rows.data[name], "values", rows.data[name])
    if name != "sampled_ids":
        return values
    return np.sort(np.repeat(np.arange(rows.num_positions), rows.sampled_counts) << 32 | values)
