"""Rows of sampling policies from logits, drawn here by the definition: entry by entry, and slowly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from schemas.policies import KeepPolicy, Sampled, Threshold
from schemas.rows.codec import decode_scalars, encode_levels, encode_logprobs, encode_scalars
from schemas.rows.ragged import Ragged, offsets_of
from schemas.rows.rows import Rows
from schemas.spec import Spec
from tests.trainer.caches import causal_spec, finished_rows
from tests.trainer.tiny import VOCAB, random_examples


class Position(NamedTuple):
    """What is kept of one position: exact ids, descending; drawn ids; how often each was drawn."""

    exact: list[int]
    drawn: list[int]
    times: list[int]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - lse(logits)[..., None]


def lse(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1)
    return top + np.log(np.exp(logits - top[..., None]).sum(-1))


def largest(logits: np.ndarray, spec: Spec) -> np.ndarray:
    """Each id's largest probability over the declared temperatures."""
    return np.max([np.exp(log_softmax(logits / t)) for t in spec.temperatures], axis=0)


def exact_ids(logits: np.ndarray, spec: Spec) -> list[int]:
    assert isinstance(spec.keep, Threshold)
    order = np.argsort(-logits, kind="stable")
    m = largest(logits, spec)
    return [int(i) for place, i in enumerate(order) if place < spec.keep.k or m[i] >= spec.keep.tau]


def drawn_by_threshold(logits: np.ndarray, spec: Spec, uniform: float) -> Position:
    assert isinstance(spec.keep, Threshold)
    exact = exact_ids(logits, spec)
    m, running, drawn = largest(logits, spec), 0.0, []
    for i in sorted(set(range(len(logits))) - set(exact)):
        before, running = running, running + m[i]
        if np.floor(running / spec.keep.tau - uniform) > np.floor(before / spec.keep.tau - uniform):
            drawn.append(i)
    return Position(exact, drawn, [1] * len(drawn))


def every_draw(logits: np.ndarray, spec: Spec) -> tuple[list[Position], np.ndarray]:
    """All that a threshold sampler can draw, and the share of all u that draws it."""
    assert isinstance(spec.keep, Threshold)
    m = largest(logits, spec)
    rest = sorted(set(range(len(logits))) - set(exact_ids(logits, spec)))
    places = np.cumsum(m[rest]) / spec.keep.tau
    edges = np.unique(np.concatenate([[0.0, 1.0], places - np.floor(places)]))
    found = [drawn_by_threshold(logits, spec, u) for u in (edges[:-1] + edges[1:]) / 2]
    return found, np.diff(edges)


def drawn_by_sampling(logits: np.ndarray, spec: Spec, rng: np.random.Generator) -> Position:
    assert isinstance(spec.keep, Sampled)
    counts = rng.multinomial(spec.keep.n, np.exp(log_softmax(logits)))
    ids = np.flatnonzero(counts)
    return Position([], ids.tolist(), counts[ids].tolist())


def rows_of(
    examples: Sequence[np.ndarray], logits: np.ndarray, positions: Sequence[Position], spec: Spec
) -> Rows:
    """Rows of a causal LM: `logits` [N, V] and what is kept of each position, one example's after the other's."""
    per_row = np.array([len(example) - 1 for example in examples])
    logprobs = log_softmax(logits)
    golds = np.concatenate([example[1:] for example in examples])
    exact = np.array([len(p.exact) for p in positions])
    drawn = np.array([len(p.drawn) for p in positions])
    top = encode_scalars(-logprobs.max(-1).astype(np.float32), spec.top_step_nats).codes
    decoded = -decode_scalars(top, spec.top_step_nats)

    def own(ids: list[list[int]]) -> np.ndarray:
        return np.concatenate([logprobs[n, i] for n, i in enumerate(ids)]).astype(np.float32)

    def scalars(nats: np.ndarray) -> Ragged:
        return column(encode_scalars(nats.astype(np.float32), spec.scalar_step_nats).codes, per_row)

    def of_entries(values: Any, counts: np.ndarray) -> Ragged:
        return column(values, np.add.reduceat(counts, offsets_of(per_row)[:-1]))

    codes = encode_logprobs(own([p.exact for p in positions]), exact, decoded, spec.code_step_nats).codes
    data = {
        "input_ids": column(np.concatenate(examples), per_row + 1),
        "labels": Ragged.of([None] * len(examples), np.int32),
        "num_kept": column(exact.astype(np.int32), per_row),
        "kept_ids": of_entries(flat([p.exact for p in positions]), exact),
        "kept_codes": of_entries(codes, exact),
        "num_sampled": column(drawn.astype(np.int32), per_row),
        "sampled_ids": of_entries(flat([p.drawn for p in positions]), drawn),
        "top_codes": column(top, per_row),
    }
    if isinstance(spec.keep, Sampled):
        data["sampled_counts"] = of_entries(flat([p.times for p in positions]), drawn)
    if spec.own_logits:
        levels = encode_levels(own([p.drawn for p in positions]), drawn, decoded, spec.code_step_nats).codes
        data["sampled_codes"] = of_entries(levels, drawn)
    if "entropy" in spec.scalars:
        data["entropy_codes"] = scalars(-(np.exp(logprobs) * logprobs).sum(-1))
    if "gold" in spec.scalars:
        data["gold_codes"] = scalars(-logprobs[np.arange(len(golds)), golds])
    if "logsumexp" in spec.scalars:
        each = np.stack([lse(logits / t) for t in spec.temperatures], 1).astype(np.float32)
        data["logsumexp"] = column(each.reshape(-1), per_row * len(spec.temperatures))
    return finished_rows(spec, data)


def column(values: np.ndarray, lengths: np.ndarray) -> Ragged:
    return Ragged(values=values, offsets=offsets_of(lengths))


def flat(lists: list[list[int]]) -> np.ndarray:
    return np.array([i for each in lists for i in each], np.int32)


FINE = {"code_step_nats": 2**-11, "top_step_nats": 2**-13, "scalar_step_nats": 2**-13}
"""Steps so small that rounding is far below the bounds here."""

SMALL = 12


def sampling_spec(keep: KeepPolicy, vocab_size: int = SMALL, **changes: Any) -> Spec:
    values = {
        "vocab_size": vocab_size,
        "temperatures": (1.0,),
        "features": (),
        "scalars": ("entropy", "gold"),
    }
    return causal_spec(keep, **(values | FINE | changes))


def shaped(scale: float, vocab_size: int = SMALL) -> np.ndarray:
    """Flat at 0.3, middling at 1.5, peaked at 4."""
    return np.random.default_rng(5).normal(size=vocab_size) * scale


def rows_of_draws(logits: np.ndarray, draws: list[Position], spec: Spec) -> Rows:
    """One position a row: the first token is the draw's number, because rows stand in the order of their ids."""
    examples = [np.array([number, 3], np.int32) for number in range(len(draws))]
    return rows_of(examples, np.tile(logits, (len(draws), 1)), draws, spec)


def enumerated(scale: float, tau: float, k: int, temperatures: tuple[float, ...]) -> tuple[Rows, np.ndarray]:
    warm = len(temperatures) > 1
    scalars = ("entropy", "gold", "logsumexp") if warm else ("entropy", "gold")
    keep = Threshold(tau=tau, k=k)
    spec = sampling_spec(keep, temperatures=temperatures, own_logits=warm, scalars=scalars)
    draws, shares = every_draw(shaped(scale), spec)
    return rows_of_draws(shaped(scale), draws, spec), shares


def some_rows(keep: KeepPolicy, examples: int = 6, **changes: Any) -> Rows:
    """Rows of several positions with V = 200."""
    spec, rng = sampling_spec(keep, VOCAB, **changes), np.random.default_rng(3)
    texts = random_examples(examples)
    logits = rng.normal(size=(sum(len(t) - 1 for t in texts), VOCAB)) * 3
    draws = [
        drawn_by_sampling(z, spec, rng)
        if isinstance(keep, Sampled)
        else drawn_by_threshold(z, spec, rng.random())
        for z in logits
    ]
    return rows_of(texts, logits, draws, spec)
