"""Caches of several teachers as one: whether they can be, and what the run then sees in place of a cache's spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from schemas.policies import KeepAll
from schemas.spec import Spec
from schemas.upkeep.joinable import joined_features, refuse_unlike
from trainer.batches.join import PICKS, Join
from trainer.losses.objective import Objective
from trainer.losses.serving import FINITE, LOGITS
from trainer.stream.beside import Beside


class Joined(NamedTuple):
    """Several teachers as one."""

    join: Join
    beside: Beside
    view: Cache
    """The first cache with the spec of all together: what losses and students are checked against."""

    def lines(self) -> list[str]:
        """What people are told."""
        rows = int(self.beside.matched.sum())
        told = ", ".join(f"{path} {number:,}" for path, number in self.beside.left_out.items())
        how = "the mean" if self.join.pick is None else f"by {self.join.pick} one"
        found = [f"joined: {rows:,} rows are in all caches, {how} of their teachers; left out: {told}"]
        declared = [feature.name for feature in self.beside.first.spec.features]
        if declared and not self.view.spec.features:
            found.append(f"features are not joined, for not all caches declare {' '.join(declared)}")
        return found


def join_caches(
    caches: Sequence[Cache], weights: Sequence[float], pick: str | None, objective: Objective
) -> Joined:
    """Finds which rows all have.

    Raises:
        UsageError: the caches cannot be joined, or have no row in common.
        StudentError: a loss needs what only a single teacher has.
        CorruptionError: a shard is missing or damaged.
    """
    first, *others = caches
    for other in others:
        refuse_unlike(first.header, other.header, f"{first.storage.root}, {other.storage.root}")
    if pick is not None:
        _check_pick(first.spec, pick, objective)
    else:
        _check_losses(first.spec, objective)
    if objective.bank:
        raise UsageError(
            "--join does not go with negatives from the cache", do="Leave negatives out of --losses"
        )
    beside = Beside.of(caches)
    if not beside.matched.any():
        raise UsageError(
            "the caches have no example in common",
            where=", ".join(cache.storage.root for cache in caches),
            do="Join caches of one corpus, read with the same --id_field and --label_field",
        )
    total = sum(weights)
    shares = tuple(weight / total if total else 1 / len(caches) for weight in weights)
    header = replace(first.header, spec=_view(caches, pick))
    return Joined(Join(weights=shares, pick=pick), beside, replace(first, header=header))


def _check_pick(spec: Spec, pick: str, objective: Objective) -> None:
    is_warm = (
        objective.temperature not in (1, *spec.temperatures) or objective.temperature_schedule is not None
    )
    if pick == "loss" and is_warm:
        raise UsageError(
            "--join_pick loss needs a temperature that the caches declare, and no schedule of it",
            expected=" ".join(f"{one:g}" for one in {1.0, *spec.temperatures}),
            got=f"{objective.temperature:g}",
        )
    if spec.score == "softmax" and PICKS[pick] not in spec.scalars:
        raise UsageError(
            f"--join_pick {pick} needs the scalar {PICKS[pick]}, which the caches do not store",
            got=" ".join(spec.scalars) or "none",
            do=f"Precompute with --scalars {PICKS[pick]}, or join by the mean",
        )
    if spec.score == "identity" and pick == "entropy":
        raise UsageError("values have no entropy to pick by", do="Leave --join_pick out, or say loss")


def _check_losses(spec: Spec, objective: Objective) -> None:
    """A mean has probabilities; logits, and what is stored of a position, are each teacher's own."""
    if spec.score != "softmax":
        return
    if spec.is_sampling and objective.temperature != 1:
        raise StudentError(
            "draws are joined at temperature 1 alone",
            got=f"{objective.temperature:g}",
            do="Leave --temperature out, or use caches that draw nothing",
        )
    for loss in objective.losses:
        stored = loss.stores and not isinstance(spec.keep, KeepAll)
        if loss.kind is LOGITS or stored or (loss.kind is FINITE and spec.is_sampling):
            raise StudentError(
                f"the loss {loss.name} needs what a mean of several teachers has not",
                expected="losses of their probabilities, as kl",
                do="Use --losses kl=1.0, or --join_pick entropy, which takes one teacher at each position",
            )


def _view(caches: Sequence[Cache], pick: str | None) -> Spec:
    """The spec of what the join gives: without what a mean has not, and with features one behind the other."""
    spec = caches[0].spec
    spec = replace(spec, features=joined_features([cache.spec for cache in caches]))
    if pick is not None or spec.score != "softmax":
        return spec
    if spec.is_sampling:
        return replace(spec, temperatures=(1.0,), scalars=(), own_logits=False)
    return replace(spec, scalars=("logsumexp",) if len(spec.temperatures) > 1 else ())
