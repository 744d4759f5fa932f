"""What a teacher might have said at some positions, and the columns that keep it, for any policy."""

from typing import NamedTuple

import numpy as np

from schemas import Spec
from schemas.policies import KeepAll, Sampled
from schemas.rows.boxes import num_named
from schemas.rows.codec import decode_scalars, encode_levels, encode_logprobs, encode_scalars
from schemas.rows.ragged import Ragged, offsets_of


class Answer(NamedTuple):
    """What is kept of one position: exact entries, drawn ones, and log sum exp at each temperature."""

    ids: np.ndarray
    logprobs: np.ndarray
    top: float
    drawn_ids: np.ndarray
    drawn: np.ndarray
    draws: np.ndarray
    logsumexp: np.ndarray


def ragged(values, lengths) -> Ragged:
    return Ragged(values=values, offsets=offsets_of(lengths))


def kept(spec: Spec, counts, rng, classes=None):
    """The columns per position and entry, and the log-probabilities of exact and of drawn entries; `classes` are those
    of each row, bool [R, V], where they are not all."""
    own = [
        None if classes is None else np.flatnonzero(row) for row in (counts if classes is None else classes)
    ]
    answers = [
        (_drawn if spec.is_sampling else _cut)(spec, rng, ids)
        for ids, count in zip(own, counts, strict=True)
        for _ in range(count)
    ]
    number = np.array([len(answer.ids) for answer in answers], np.int32)
    logprobs = _joined((answer.logprobs for answer in answers), np.float32)
    top = encode_scalars(np.array([-answer.top for answer in answers], np.float32), spec.top_step_nats).codes
    decoded = -decode_scalars(top, spec.top_step_nats)
    codes = encode_logprobs(logprobs, number, decoded, spec.code_step_nats).codes
    per_row = np.diff(offsets_of(number)[offsets_of(counts)])
    labels = _labels(spec, counts, rng, own)
    data = {
        "labels": labels,
        "num_kept": ragged(number, counts),
        "kept_ids": ragged(_joined((answer.ids for answer in answers), np.int32), per_row),
        "kept_codes": ragged(codes, per_row),
        "top_codes": ragged(top, counts),
        **_scalars(spec, counts, labels, answers, rng),
    }
    if not spec.is_sampling:
        return data, logprobs, np.zeros(0, np.float32)
    drawn = _joined((answer.drawn for answer in answers), np.float32)
    return data | _draws(spec, counts, answers, drawn, decoded), logprobs, drawn


def _cut(spec: Spec, rng, own=None) -> Answer:
    own = np.arange(spec.vocab_size) if own is None else own
    k = len(own) if isinstance(spec.keep, KeepAll) else rng.integers(1, min(spec.max_kept, len(own)) + 1)
    logprobs = np.sort(np.log(rng.dirichlet(np.ones(k)) * rng.uniform(0.5, 1)))[::-1]
    none = np.zeros(0)
    ids = rng.permutation(own)[:k]
    return Answer(ids, logprobs, logprobs[0], none, none, none, rng.normal(size=len(spec.temperatures)))


def _drawn(spec: Spec, rng, own=None) -> Answer:
    """Of a whole distribution, as the policy says; ids are drawn one by one, not systematically."""
    logits = rng.normal(size=spec.vocab_size) * 2
    if own is not None:
        logits[np.setdiff1d(np.arange(spec.vocab_size), own)] = -1e4
    logsumexp = np.array([np.log(np.exp(logits / t).sum()) for t in spec.temperatures])
    logprobs, every = logits - logsumexp[0], np.zeros(spec.vocab_size, bool)
    if isinstance(spec.keep, Sampled):
        draws = rng.multinomial(spec.keep.n, np.exp(logprobs))
        exact, drawn = every, draws > 0
    else:
        largest = np.max(
            [np.exp(logits / t - s) for t, s in zip(spec.temperatures, logsumexp, strict=True)], axis=0
        )
        exact = (largest >= spec.keep.tau) | (logprobs >= np.sort(logprobs)[-spec.keep.k])
        drawn = ~exact & (rng.random(spec.vocab_size) < largest / spec.keep.tau)
        draws = every + 1
    descending = np.argsort(-logprobs)
    ids, taken = descending[exact[descending]], rng.permutation(np.flatnonzero(drawn))[: spec.max_sampled]
    return Answer(ids, logprobs[ids], logprobs.max(), taken, logprobs[taken], draws[taken], logsumexp)


def _draws(spec: Spec, counts, answers: list[Answer], drawn, top) -> dict[str, Ragged]:
    number = np.array([len(answer.drawn_ids) for answer in answers], np.int32)
    per_row = np.diff(offsets_of(number)[offsets_of(counts)])
    data = {
        "num_sampled": ragged(number, counts),
        "sampled_ids": ragged(_joined((answer.drawn_ids for answer in answers), np.int32), per_row),
    }
    if isinstance(spec.keep, Sampled):
        data["sampled_counts"] = ragged(_joined((answer.draws for answer in answers), np.int32), per_row)
    if spec.own_logits:
        data["sampled_codes"] = ragged(encode_levels(drawn, number, top, spec.code_step_nats).codes, per_row)
    return data


def _scalars(spec: Spec, counts, labels, answers: list[Answer], rng) -> dict[str, Ragged]:
    total, valid = counts.sum(), labels.validity | (spec.kind.labels == "next_token")
    gold = [rng.integers(0, 500, n) if v else None for n, v in zip(counts, valid, strict=True)]
    found = {
        "entropy": ("entropy_codes", ragged(rng.integers(0, 300, total).astype(np.int16), counts)),
        "gold": ("gold_codes", Ragged.of(gold, np.int16)),
        "logsumexp": (
            "logsumexp",
            ragged(_joined((a.logsumexp for a in answers), np.float32), counts * len(spec.temperatures)),
        ),
    }
    return dict(found[name] for name in spec.scalars)


def boxes(spec: Spec, counts, rng) -> dict[str, Ragged]:
    """A box a position, and up to three objects an image, or nothing that is known of it."""
    if not spec.kind.has_boxes:
        return {}
    numbers = [None if rng.random() < 0.3 else int(rng.integers(0, 4)) for _ in counts]
    classes = [None if n is None else rng.integers(0, num_named(spec), n) for n in numbers]
    objects = [None if n is None else rng.random(4 * n) for n in numbers]
    return {
        "boxes": ragged(rng.random(4 * counts.sum()).astype(np.float32), 4 * counts),
        "object_classes": Ragged.of(classes, np.int32),
        "object_boxes": Ragged.of(objects, np.float32),
    }


def _joined(parts, dtype):
    return np.concatenate([*parts, np.zeros(0)]).astype(dtype)


def _labels(spec: Spec, counts, rng, own) -> Ragged:
    if spec.kind.labels in ("next_token", "objects"):
        return Ragged.of([None] * len(counts), np.int32)
    if spec.task == "masked-lm":
        return Ragged.of([rng.integers(0, spec.vocab_size, n) for n in counts], np.int32)
    given = [
        None
        if rng.random() < 0.3
        else rng.integers(0, spec.vocab_size, n)
        if ids is None
        else rng.choice(ids, n)
        for n, ids in zip(counts, own, strict=True)
    ]
    return Ragged.of(given, np.int32)
