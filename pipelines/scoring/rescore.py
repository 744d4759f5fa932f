"""Scoring a sample of a cache again, with a fresh teacher: does the cache still say what the teacher says?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pipelines.config import Device, TeacherConfig
from pipelines.fingerprint.fingerprint import make_fingerprint, resolve
from pipelines.fingerprint.teacher_files import former_hash
from pipelines.scoring.stored_examples import stored_examples
from pipelines.teacher.batching import collate
from pipelines.teacher.model import Answer, Teacher
from pipelines.teacher.opening import open_teacher
from schemas import Cache
from schemas.errors import DriftError, MismatchError
from schemas.policies import Sampled
from schemas.rows.entries import entries_of
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.spec import Spec

DRIFT_SAMPLE = 64
"""Examples that are scored again when the teacher is run otherwise than before."""


@dataclass(frozen=True, kw_only=True)
class RescoreConfig:
    """Which teacher scores how many examples again."""

    teacher: str
    sample: int = 64
    device: Device = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """How far cache and fresh teacher are apart. For sigmoid and identity scores, in place of a KL: the largest
    absolute difference of a position's logits; where a row has features alone, 1 - their cosine, one a row."""

    examples: int
    positions: int
    mean_kl_nats: float
    max_kl_nats: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rescore(cache: Cache, config: RescoreConfig) -> Rescored:
    """Draws examples (from as few row groups as hold them), scores them, and compares with what is cached.

    Raises:
        MismatchError: the teacher is not the cache's.
        TeacherError: it cannot be opened.
    """
    rows = _sample(cache, config.sample, config.seed)
    spec = cache.spec
    teacher_config = TeacherConfig(
        path=config.teacher,
        task=spec.task,
        dtype=cache.fingerprint.dtype,  # type: ignore[arg-type]  # refused by TeacherConfig itself
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )
    found = resolve(teacher_config)
    fresh = make_fingerprint(teacher_config, found.folder, found.tokenizer)
    if cache.fingerprint.weights not in (fresh.weights, former_hash(found.folder)):
        raise MismatchError(
            "--teacher is not the teacher that made this cache",
            where=config.teacher,
            expected=f"weights {cache.fingerprint.weights[:16]}",
            got=fresh.weights[:16],
        )
    teacher = open_teacher(teacher_config, spec, found.folder)
    return compare(rows, teacher)


def check_drift(cache: Cache, teacher: Teacher, provenance: Mapping[str, str], max_drift_kl: float) -> None:
    """Where this teacher is run otherwise than the cache's last one, scores a sample again.

    Raises:
        DriftError: the mean KL (or, without a softmax, the mean difference of logits) is above `max_drift_kl`.
    """
    before = cache.record.provenance
    changed = sorted(k for k, value in provenance.items() if value not in str(before.get(k)).split(" + "))
    if not changed or not cache.shards:
        return
    found = compare(_sample(cache, DRIFT_SAMPLE, seed=0), teacher)
    if not found.mean_kl_nats <= max_drift_kl:  # also where it is no number
        told = ", ".join(f"{key}: {before.get(key)} -> {provenance[key]}" for key in changed)
        raise DriftError(
            f"the teacher is run otherwise than before ({told}), and no longer says what the cache holds",
            where=cache.storage.root,
            expected=f"a {mean_distance(cache.spec)} of at most {max_drift_kl:g}{unit_of(cache.spec)} "
            f"over {found.examples} examples",
            got=f"{found.mean_kl_nats:.3g}",
            do="Run as before, begin another cache, or raise --max_drift_kl",
        )


def unit_of(spec: Spec) -> str:
    """What `mean_distance` is counted in, behind a number."""
    return " nats" if spec.kind.has_positions else ""


def mean_distance(spec: Spec) -> str:
    """What a bound on `mean_kl_nats` bounds under a spec, in words."""
    if not spec.kind.has_positions:
        return "mean 1 - cosine of features"
    return "mean KL" if spec.score == "softmax" else "mean largest difference of logits"


def compare(rows: Rows, teacher: Teacher) -> Rescored:
    """How far cached rows and an open teacher are apart."""
    distances = _distances(rows, teacher)
    return Rescored(
        examples=len(rows),
        positions=len(distances),
        mean_kl_nats=float(distances.mean()),
        max_kl_nats=float(distances.max()),
    )


def _sample(cache: Cache, wanted: int, seed: int) -> Rows:
    random = np.random.default_rng(seed)
    parts = []
    for place in random.permutation(len(cache.row_groups)):
        rows = cache.read(cache.row_groups[place])
        parts.append(rows.take(np.sort(random.permutation(len(rows))[:wanted])))
        wanted -= len(parts[-1])
        if not wanted:
            break
    return Rows.concatenate(parts)


def _distances(rows: Rows, teacher: Teacher) -> Array:
    """One number a position. One text is asked for at a time, without padding: what a batch did to a run's answers
    must not be done to these too."""
    found = []
    for index in range(len(rows)):
        members = rows.take(np.array([index], np.int64))
        collated = collate(
            stored_examples(members), rows.spec, pad_id=teacher.pad_id, pictures=teacher.pictures
        )
        if not rows.spec.kind.has_positions:
            found.append(_angles(members, teacher.answer(collated)))
        elif rows.spec.score == "softmax":
            found.append(_divergences(members, teacher.logits(collated)))
        else:
            found.append(_differences(members, teacher.answer(collated)))
    return np.concatenate(found)


def _divergences(rows: Rows, logits: Iterable[torch.Tensor]) -> Array:
    """KL(cache || fresh) of each position, in float64, as far as what the cache keeps tells.

    Where drawn entries have their own log-probabilities the sum of weight x (p log p / q - p + q) / p is unbiased, and
    never negative. Draws alone say nothing of p: then it is the largest probability against the rest.
    """
    spec = rows.spec
    if isinstance(spec.keep, Sampled) and not spec.own_logits:
        return _two_buckets(rows.top_logprob().astype(np.float64), np.exp(_largest(logits)), spec)
    if not spec.own_logits:
        return _exact_and_tail(rows, logits)
    entries = entries_of(rows)
    owner = _owners(entries.counts)
    apart = entries.logprobs.astype(np.float64) - _fresh(entries.ids, owner, logits)
    return _summed(entries.weights * (apart + np.expm1(-apart)), owner, len(entries.counts))


def _exact_and_tail(rows: Rows, logits: Iterable[torch.Tensor]) -> Array:
    """Exact entries, and one bucket of all others.

    Each adds p log p / q - p + q, which is never negative, and the KL divergence where both sides sum to 1. So rounding
    enters squared: at most (step / 2)^2 / 2. What the cached entries lack to 1 is known to their rounding alone, and
    may be nothing but that: of the tails that would have been rounded to them, the nearest to the fresh one is taken.
    """
    counts = rows.kept_counts
    owner, whole = _owners(counts), counts == rows.class_counts
    cached = rows.kept_logprobs().astype(np.float64)
    fresh = _fresh(rows.kept_ids, owner, logits)
    cached -= np.where(whole, np.log(_summed(np.exp(cached), owner, len(counts))), 0)[owner]
    p, q, half = np.exp(cached), np.exp(fresh), _half_steps(rows)
    kept = _summed(p * (cached - fresh) - p + q, owner, len(counts))
    rest = np.clip(1 - _summed(q, owner, len(counts)), 0, 1)
    least, most = (
        np.clip(1 - _summed(p * np.exp(sign * half), owner, len(counts)), 0, 1) for sign in (1, -1)
    )
    tail = np.where(whole, 0, np.clip(rest, least, most))
    total: Array = kept + _bucket(tail, rest)
    return total


def _half_steps(rows: Rows) -> Array:
    """How far each exact entry can be from the log-probability that was rounded to it, in nats."""
    spec = rows.spec
    found = np.full(len(rows.kept_ids), max(spec.code_step_nats, spec.top_step_nats) / 2)
    found[rows.kept_offsets[:-1]] = spec.top_step_nats / 2
    return found


def _owners(counts: Array) -> Array:
    """The position of each entry."""
    return np.repeat(np.arange(len(counts)), counts)


def _summed(terms: Array, owner: Array, positions: int) -> Array:
    sums: Array = np.bincount(owner, terms, minlength=positions)
    return sums


def _fresh(ids: Array, owner: Array, logits: Iterable[torch.Tensor]) -> Array:
    """The fresh teacher's log-probabilities of some entries, given by id and position; positions ascend."""
    found, start = np.empty(len(ids)), 0
    for chunk in logits:
        entries = slice(*np.searchsorted(owner, [start, start + len(chunk)]))
        place = torch.from_numpy(owner[entries] - start).to(chunk.device)
        picked = chunk[place, torch.from_numpy(ids[entries].astype(np.int64)).to(chunk.device)].double()
        found[entries] = (picked - chunk.double().logsumexp(1)[place]).cpu().numpy()
        start += len(chunk)
    return found


def _largest(logits: Iterable[torch.Tensor]) -> Array:
    """The fresh teacher's largest log-probability of each position."""
    parts = [(chunk.amax(1).double() - chunk.double().logsumexp(1)).cpu().numpy() for chunk in logits]
    return np.concatenate(parts)


def _two_buckets(top: Array, fresh: Array, spec: Spec) -> Array:
    """The largest probability against the rest, at the p nearest to the fresh one that is rounded to `top`."""
    half = spec.top_step_nats / 2
    p = np.clip(fresh, np.exp(top - half), np.minimum(np.exp(top + half), 1))
    total: Array = _bucket(p, fresh) + _bucket(1 - p, 1 - fresh)
    return total


def _bucket(p: Array, q: Array) -> Array:
    """p log p / q - p + q of a bucket, which is never negative."""
    ratio = np.maximum(p, 1e-12) / np.maximum(q, 1e-12)
    found: Array = np.where(p > 1e-12, p * np.log(ratio), 0) - p + q
    return found


def _differences(rows: Rows, answer: Answer) -> Array:
    assert answer.logits is not None
    cached = rows.ragged("logits").values.reshape(answer.logits.shape)
    largest: Array = np.abs(cached - answer.logits.numpy()).max(axis=1)
    return largest


def _angles(rows: Rows, answer: Answer) -> Array:
    """1 - cos between what is cached and what is fresh, mean over features; 1 where just one of them is zero."""
    found = []
    for feature, fresh in zip(rows.spec.features, answer.features, strict=True):
        cached, other = rows.feature(feature).astype(np.float64), fresh.double().numpy()
        lengths = np.linalg.norm(cached, axis=1) * np.linalg.norm(other, axis=1)
        same = (cached == other).all(axis=1)
        cosine = (cached * other).sum(axis=1) / np.where(lengths > 0, lengths, 1)
        found.append(np.where(same, 0, 1 - cosine))
    mean: Array = np.mean(found, axis=0)
    return mean
