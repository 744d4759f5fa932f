"""Distributions that are known in float64, and the rows that a cache of them has."""

import numpy as np

from schemas import Spec
from schemas.policies import KeepAll, Threshold
from schemas.rows.codec import decode_scalars, encode_levels, encode_logprobs, encode_scalars
from schemas.rows.entries import entries_of
from schemas.rows.ragged import Ragged, offsets_of
from schemas.rows.rows import Rows

POSITIONS = 7
"""Of each example."""


def spec_of(keep, vocab_size=40, **changes) -> Spec:
    fields = {"task": "causal-lm", "score": "softmax", "max_length": POSITIONS + 1, "scalars": ("entropy",)}
    return Spec(**{**fields, "vocab_size": vocab_size, "keep": keep, **changes})


def shapes(vocab_size: int, count: int = 8, seed: int = 0) -> np.ndarray:
    """float64 [3 count, V]: peaked, middling and flat ones."""
    rng = np.random.default_rng(seed)
    spread = np.repeat([6.0, 2.0, 0.3], count)[:, None]
    logits = rng.normal(size=(3 * count, vocab_size)) * spread
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def whole_rows(p: np.ndarray, spec: Spec) -> Rows:
    """Every score of each position; `p` is `[N, V]` with N a multiple of `POSITIONS`."""
    assert isinstance(spec.keep, KeepAll)
    order = np.argsort(-p, axis=1, kind="stable")
    return _rows(p, order, np.full(len(p), p.shape[1]), [np.zeros(0, np.int64)] * len(p), spec)


def kept_rows(p: np.ndarray, counts, spec: Spec) -> Rows:
    """The largest `counts` of each position."""
    return _rows(p, np.argsort(-p, axis=1, kind="stable"), counts, [np.zeros(0, np.int64)] * len(p), spec)


def drawn_rows(p: np.ndarray, counts, drawn: list, spec: Spec) -> Rows:
    """The largest `counts` of each position, and drawn ids."""
    return _rows(p, np.argsort(-p, axis=1, kind="stable"), counts, drawn, spec)


def _rows(p, order, counts, drawn, spec: Spec) -> Rows:
    num_rows = len(p) // POSITIONS
    rng = np.random.default_rng(1)
    positions = np.arange(num_rows + 1) * POSITIONS
    kept = np.arange(p.shape[1]) < np.asarray(counts)[:, None]
    logprobs = np.log(np.take_along_axis(p, order, axis=1)).astype(np.float32)
    top = encode_scalars(-logprobs[:, 0], spec.top_step_nats).codes
    decoded = -decode_scalars(top, spec.top_step_nats)
    per_row = offsets_of(np.asarray(counts))[positions]
    tokens = np.arange(num_rows + 1) * (POSITIONS + 1)
    data = {
        "example_id": np.frombuffer(
            b"".join(sorted(rng.bytes(16) for _ in range(num_rows))), np.uint8
        ).reshape(-1, 16),
        "document_hash": np.frombuffer(rng.bytes(16 * num_rows), np.uint8).reshape(-1, 16),
        "window_index": np.zeros(num_rows, np.int32),
        "window_count": np.ones(num_rows, np.int32),
        "input_ids": Ragged(values=rng.integers(0, 9, tokens[-1]).astype(np.int32), offsets=tokens),
        "position_index": Ragged.of([None] * num_rows, np.int32),
        "labels": Ragged.of([None] * num_rows, np.int32),
        "num_kept": Ragged(values=np.asarray(counts, np.int32), offsets=positions),
        "kept_ids": Ragged(values=order[kept].astype(np.int32), offsets=per_row),
        "kept_codes": Ragged(
            values=encode_logprobs(logprobs[kept], np.asarray(counts), decoded, spec.code_step_nats).codes,
            offsets=per_row,
        ),
        "top_codes": Ragged(values=top, offsets=positions),
        "entropy_codes": Ragged(values=np.zeros(len(p), np.int16), offsets=positions),
    }
    if "logsumexp" in spec.scalars:
        lse = [np.log((p ** (1 / t)).sum(1)) for t in spec.temperatures]
        values = np.stack(lse, 1).astype(np.float32).reshape(-1)
        data["logsumexp"] = Ragged(values=values, offsets=positions * len(lse))
    if spec.is_sampling:
        data |= _drawn(p, drawn, decoded, positions, spec)
    rows = Rows(spec=spec, data=data)
    rows.check("distributions")
    return rows


def _drawn(p, drawn, decoded, positions, spec: Spec) -> dict:
    number = np.array([len(ids) for ids in drawn])
    per_row = offsets_of(number)[positions]
    ids = np.concatenate(drawn).astype(np.int32)
    own = np.log(p[np.repeat(np.arange(len(p)), number), ids]).astype(np.float32)
    data = {
        "num_sampled": Ragged(values=number.astype(np.int32), offsets=positions),
        "sampled_ids": Ragged(values=ids, offsets=per_row),
    }
    if spec.own_logits:
        codes = encode_levels(own, number, decoded, spec.code_step_nats).codes
        data["sampled_codes"] = Ragged(values=codes, offsets=per_row)
    return data


def exact(p, tau, k):
    """The ids that `threshold` holds exactly, descending, and all others ascending."""
    order = np.argsort(-p, kind="stable")
    held = [i for rank, i in enumerate(order) if rank < k or p[i] >= tau]
    return held, sorted(set(range(len(p))) - set(held))


def threshold_rows(p, keep, uniform, **changes):
    """Rows of a threshold policy, drawn from unrounded probabilities."""
    spec = spec_of(keep, p.shape[1], **changes)
    ranked = [exact(row, keep.tau, keep.k) for row in p]
    drawn = []
    for row, (_, others), u in zip(p, ranked, uniform, strict=True):
        running = np.cumsum(row[others]) / keep.tau
        kept = np.floor(running - u) > np.floor(np.concatenate([[0.0], running[:-1]]) - u)
        drawn.append(np.array(others)[kept])
    return drawn_rows(p, [len(held) for held, _ in ranked], drawn, spec)


def dense(rows, weights_of=lambda found: found.weights, temperature=1.0):
    """[N, V]: what each id weighs."""
    found = entries_of(rows, temperature)
    weights = np.zeros((rows.num_positions, rows.spec.vocab_size))
    np.add.at(weights, (np.repeat(np.arange(len(found.counts)), found.counts), found.ids), weights_of(found))
    return weights


SOURCES = {
    "whole": lambda p: whole_rows(p, spec_of(KeepAll(), p.shape[1])),
    "drawn": lambda p: threshold_rows(p, Threshold(tau=1 / 32, k=4), np.linspace(0.01, 0.97, len(p))),
    "own": lambda p: threshold_rows(
        p, Threshold(tau=1 / 32, k=4), np.linspace(0.2, 0.9, len(p)), own_logits=True
    ),
}


def same(rows, expected):
    assert rows.data.keys() == expected.data.keys()
    for name, column in rows.data.items():
        other = expected.data[name]
        if not isinstance(column, Ragged):
            np.testing.assert_array_equal(column, other)
            continue
        for part in ("values", "offsets", "validity"):
            np.testing.assert_array_equal(getattr(column, part), getattr(other, part), name)
