"""Answers of a teacher as rows and shards of a cache, by the functions that the real write path uses."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
from answers import Answers, Draws, lists

from schemas.features import Feature
from schemas.fingerprint import Fingerprint
from schemas.identity import digest
from schemas.policies import Sampled, parse_keep
from schemas.rows import columns
from schemas.rows.codec import (
    decode_logprobs,
    decode_scalars,
    encode_levels,
    encode_logprobs,
    encode_scalars,
    quantise,
)
from schemas.rows.ragged import Array, Ragged
from schemas.rows.rows import Rows
from schemas.shards.rewrite import ROW_GROUP_TOKENS, seal_rows
from schemas.shards.seal import LISTED_KEY, SealedShard, Totals
from schemas.spec import Header, Spec

FINGERPRINT = Fingerprint(weights="0", config="0", tokenizer="0", chat_template="", dtype="float32")
APART = {
    "ids": ("kept_ranks", "sampled_gaps"),
    "codes": ("kept_codes", "sampled_codes", "sampled_counts"),
    "counts": ("num_kept", "num_sampled"),
    "scalars": ("top_codes", "entropy_codes", "gold_codes"),
    "input_ids": ("input_ids",),
}
SHARD_TOKENS = 2**20


def spec_of(answers: Answers, keep: str, *, own_logits: bool = False, step: float = 1 / 16) -> Spec:
    return Spec(
        task="causal-lm",
        score="softmax",
        vocab_size=answers.vocab_size,
        keep=parse_keep(keep),
        max_length=max(2, int(answers.lengths.max())),
        own_logits=own_logits,
        code_step_nats=step,
    )


def rows_of(answers: Answers, spec: Spec) -> Rows:
    """All examples, as the policy of the spec keeps them."""
    counts = answers.lengths - 1
    offsets = np.concatenate([[0], np.cumsum(counts)])

    def per_row(values: Array) -> Array:
        return np.add.reduceat(values, offsets[:-1])

    kept = answers.exact_counts(spec.keep)
    mask = np.arange(answers.top_ids.shape[1]) < kept[:, None]
    top = encode_scalars(-answers.top_logprobs[:, 0], spec.top_step_nats).codes
    decoded = -decode_scalars(top, spec.top_step_nats)
    codes = encode_logprobs(answers.top_logprobs[mask], kept, decoded, spec.code_step_nats).codes
    data: dict[str, Any] = {
        **_of_examples(answers),
        "num_kept": lists(kept.astype(np.int32), counts),
        "kept_ids": lists(answers.top_ids[mask].astype(np.int32), per_row(kept)),
        "kept_codes": lists(codes, per_row(kept)),
        "top_codes": lists(top, counts),
        "entropy_codes": lists(encode_scalars(answers.entropy, spec.scalar_step_nats).codes, counts),
        "gold_codes": lists(encode_scalars(-answers.gold_logprob, spec.scalar_step_nats).codes, counts),
    }
    if spec.is_sampling:
        drawn = draws_of(answers, spec)
        lengths = per_row(drawn.counts)
        data["num_sampled"] = lists(drawn.counts.astype(np.int32), counts)
        data["sampled_ids"] = lists(drawn.ids, lengths)
        if isinstance(spec.keep, Sampled):
            data["sampled_counts"] = lists(drawn.times, lengths)
        if spec.own_logits:
            levels = encode_levels(drawn.logprobs, drawn.counts, decoded, spec.code_step_nats).codes
            data["sampled_codes"] = lists(levels, lengths)
    rows = Rows(spec=spec, data=data)
    rows.check("the benchmark's rows")
    return rows


def draws_of(answers: Answers, spec: Spec) -> Draws:
    return next(drawn for name, drawn in answers.draws.items() if parse_keep(name) == spec.keep)


def _of_examples(answers: Answers) -> dict[str, Any]:
    names = np.array(
        [list(digest(str(row).encode(), "example")) for row in range(len(answers.lengths))], np.uint8
    )
    none = Ragged.of([None] * len(names), np.int32)
    return {
        "example_id": names,
        "document_hash": names[:, ::-1].copy(),
        "window_index": np.zeros(len(names), np.int32),
        "window_count": np.ones(len(names), np.int32),
        "input_ids": lists(answers.input_ids.astype(np.int32), answers.lengths),
        "position_index": none,
        "labels": none,
    }


def seal(rows: Rows, row_group_tokens: int = ROW_GROUP_TOKENS) -> SealedShard:
    """As the job does it, which knows the totals from the teacher's pass."""
    header = Header(fingerprint=FINGERPRINT, spec=rows.spec, teacher={}, tokenizer={})
    return seal_rows(rows, header, row_group_tokens, totals=Totals())


class Sizes(NamedTuple):
    """Bytes a position."""

    ids: float
    codes: float
    counts: float
    scalars: float
    input_ids: float
    listed: float
    """The list of frequent ids, by the positions of a full shard."""

    @property
    def entries(self) -> float:
        """Kept entries and counts, the list of ids among them."""
        return self.ids + self.codes + self.counts + self.listed


def sizes(sealed: SealedShard) -> Sizes:
    """From the footer of a finished shard."""
    metadata = pq.read_metadata(io.BytesIO(sealed.data))
    of: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            name = chunk.path_in_schema.partition(".")[0]
            of[name] = of.get(name, 0) + chunk.total_compressed_size
    positions = sealed.footer.totals.positions
    parts = {part: sum(of.get(name, 0) for name in names) / positions for part, names in APART.items()}
    return Sizes(**parts, listed=len(metadata.metadata[LISTED_KEY]) / SHARD_TOKENS)


@contextmanager
def zstd_level(level: int) -> Iterator[None]:
    with mock.patch.object(columns, "ZSTD_LEVEL", level):
        yield


def quantisation_kl(answers: Answers, spec: Spec) -> Array:
    """KL of each position's exact entries after coding from before, both divided by their sums; in nats, [N]."""
    kept = answers.exact_counts(spec.keep)
    mask = np.arange(answers.top_ids.shape[1]) < kept[:, None]
    top = -decode_scalars(
        encode_scalars(-answers.top_logprobs[:, 0], spec.top_step_nats).codes, spec.top_step_nats
    )
    codes = encode_logprobs(answers.top_logprobs[mask], kept, top, spec.code_step_nats).codes
    coded = np.zeros(mask.shape)
    coded[mask] = np.exp(decode_logprobs(codes, kept, top, spec.code_step_nats).astype(np.float64))
    exact = np.where(mask, np.exp(answers.top_logprobs.astype(np.float64)), 0)
    return kl(normalised(exact), normalised(coded))


def normalised(p: Array) -> Array:
    sums = p.sum(1, keepdims=True)
    found: Array = p / np.where(sums > 0, sums, 1)
    return found


def kl(p: Array, q: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(p > 0, p * (np.log(p) - np.log(q)), 0).sum(1)
    return found


def feature_bytes(answers: Answers) -> float:
    """Bytes of one int8 feature of an example, as a shard holds it, for a width of 384."""
    width = answers.features.shape[1]
    feature = Feature(pooling="mean", layer=1, width=width)
    found = quantise(answers.features)
    spec = spec_of(answers, "top_k:1")
    spec = Spec(**{**spec.__dict__, "features": (feature,)})
    rows = rows_of(answers, spec_of(answers, "top_k:1"))
    lengths = np.full(len(rows), width)
    data = {feature.column: lists(found.codes.reshape(-1), lengths), feature.scale_column: found.scale}
    sealed = seal(Rows(spec=spec, data={**rows.data, **data}))
    metadata = pq.read_metadata(io.BytesIO(sealed.data)).row_group(0)
    chunks = (metadata.column(index) for index in range(metadata.num_columns))
    total = sum(c.total_compressed_size for c in chunks if c.path_in_schema.startswith("feature_"))
    return (total - 4 * len(rows)) / len(rows) / width * 384 + 4
