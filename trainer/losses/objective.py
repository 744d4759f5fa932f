"""Which losses a run has, with what weights, and whether a cache can serve them.

Written on the command line as `--losses kl=1.0 ce=0.5`. The total is the weighted sum; every term is logged, also one
of weight 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from schemas.errors import StudentError, UsageError
from schemas.policies import KeepAll, Sampled
from schemas.spec import Scalar, Spec
from trainer.losses.divergences import (
    DenseTargets,
    SparseTargets,
    binary_cross_entropy,
    binary_kl_divergence,
    cross_entropy,
    kl_divergence,
    kl_of_kept,
    mean_squared_error,
    squared_error,
)

LossName = Literal["kl", "kl_kept", "ce", "mse_logits", "feature"]
FeatureLoss = Literal["mse", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A weighted sum of losses.

    * `kl`: forward KL from teacher to student at `temperature`, times its square; with a tail bucket where the cache's
      policy cuts, without bias where it draws
    * `kl_kept`: the same from the kept entries alone, divided by their sum; to be compared with
    * `ce`: cross entropy with the corpus's own labels (mean squared error where the teacher regresses)
    * `mse_logits`: squared difference of the logits, over kept entries
    * `feature`: distance of pooled hidden states, mean over the cache's features
    """

    weights: Mapping[LossName, float]
    temperature: float = 1.0
    feature_loss: FeatureLoss = "mse"

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("an objective needs at least one loss")
        _check_names(self.weights, self.feature_loss)
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of {name} must be finite and not negative, but got {weight}")
        if not any(self.weights.values()):
            raise ValueError("at least one loss needs a weight above 0")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be above 0, but got {self.temperature}")

    @classmethod
    def parse(cls, losses: Sequence[str], temperature: float = 1.0, feature_loss: str = "mse") -> Objective:
        """From `["kl=1.0", "ce=0.5"]`.

        Raises:
            UsageError: naming what is wrong.
        """
        try:
            pairs = [_parse(text) for text in losses]
            weights = dict(pairs)
            if len(weights) != len(pairs):
                raise ValueError(f"a loss is named twice in {' '.join(losses)}")
            _check_names(weights, feature_loss)
            return cls(weights=weights, temperature=temperature, feature_loss=feature_loss)  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError("the losses are not as they should be", got=str(error)) from error

    @property
    def head_losses(self) -> tuple[LossName, ...]:
        """Those that need the student's logits."""
        return tuple(name for name in self.weights if name != "feature")

    @property
    def uses_features(self) -> bool:
        return "feature" in self.weights

    def check(self, spec: Spec) -> None:
        """Whether a cache of this spec can serve the losses.

        Raises:
            StudentError: naming the loss and what to do.
        """
        if self.uses_features and not spec.features:
            raise StudentError(
                "the feature loss needs features, and the cache holds none",
                do="Precompute a cache with --features, for instance --features mean:-1",
            )
        if "kl" in self.weights and spec.score == "identity":
            raise StudentError(
                "a regression teacher gives values, not a distribution: kl has no meaning",
                do="Use --losses mse_logits=1.0",
            )
        self._check_logits(spec)
        self._check_policy(spec)

    def _check_logits(self, spec: Spec) -> None:
        """A logit is an entry's own log-probability and its position's logsumexp: both that lack are told at once."""
        if "mse_logits" not in self.weights or spec.score != "softmax":
            return
        only_draws = isinstance(spec.keep, Sampled) and not spec.own_logits
        if "logsumexp" in spec.scalars and not only_draws:
            return
        got = "counts of draws alone" if only_draws else "probabilities alone"
        scalars = " ".join(name for name in get_args(Scalar) if name in (*spec.scalars, "logsumexp"))
        flags = f"--scalars {scalars}" + (" --own_logits" if only_draws else "")
        raise StudentError(
            f"mse_logits needs the teacher's logits, and the cache stores {got}",
            got=f"{spec.keep} with the scalars {' '.join(spec.scalars) or 'none'}",
            do=f"Precompute a cache with {flags}, or leave mse_logits out",
        )

    def _check_policy(self, spec: Spec) -> None:
        """What the kept entries can serve."""
        if "kl_kept" in self.weights and (spec.is_sampling or spec.score != "softmax"):
            raise StudentError(
                "kl_kept divides a cut distribution by its sum, and this cache holds none",
                expected="--keep all, top_k or top_p of a softmax teacher",
                got=f"{spec.keep} of a {spec.score} teacher",
                do="Use --losses kl=1.0, which needs no division",
            )
        known = self.temperature in spec.temperatures or isinstance(spec.keep, KeepAll)
        if ("kl" in self.weights or spec.is_sampling) and not known:
            raise StudentError(
                "the cache cannot serve this temperature",
                expected="one of " + ", ".join(f"{t:g}" for t in spec.temperatures),
                got=f"{self.temperature:g}",
                do=f"Precompute a cache with {_serving(spec, self.temperature)}",
            )


def _serving(spec: Spec, temperature: float) -> str:
    """Flags of `precompute` for a cache that can be asked at a temperature; draws with replacement never can."""
    keep = "--keep threshold:1/32 " if isinstance(spec.keep, Sampled) else ""
    return f"{keep}--temperatures 1 {temperature:g}, or with --keep all"


def _check_names(losses: Iterable[str], feature_loss: str) -> None:
    for name in losses:
        if name not in get_args(LossName):
            raise ValueError(f"no such loss: {name!r}; there are {', '.join(get_args(LossName))}")
    if feature_loss not in get_args(FeatureLoss):
        raise ValueError(f"feature_loss must be mse or cosine, but got {feature_loss!r}")


def _parse(text: str) -> tuple[str, float]:
    name, equals, weight = text.partition("=")
    try:
        return name, float(weight) if equals else 1.0
    except ValueError as error:
        raise ValueError(f"{text!r} is not NAME=WEIGHT") from error


def position_losses(
    names: Sequence[LossName],
    logits: Float[Tensor, "N V"],
    targets: SparseTargets | DenseTargets,
    *,
    temperature: float,
    score: str,
) -> Float[Tensor, "T N"]:
    """Each named loss at each position, from a student's logits in float32."""
    if isinstance(targets, SparseTargets):
        found = [_sparse(name, logits, targets, temperature) for name in names]
    else:
        found = [_dense(name, logits, targets, temperature, score) for name in names]
    return torch.stack(found)


def _sparse(name: LossName, logits: Tensor, targets: SparseTargets, temperature: float) -> Tensor:
    if name == "kl":
        return kl_divergence(logits, targets, temperature)
    if name == "kl_kept":
        return kl_of_kept(logits, targets, temperature)
    if name == "ce":
        return cross_entropy(logits, targets.gold)
    return squared_error(logits, targets)


def _dense(name: LossName, logits: Tensor, targets: DenseTargets, temperature: float, score: str) -> Tensor:
    if name == "kl":
        return binary_kl_divergence(logits, targets.logits, temperature)
    if name == "mse_logits":
        return mean_squared_error(logits, targets.logits, torch.ones_like(targets.labelled))
    if score == "identity":
        return mean_squared_error(logits, targets.gold, targets.labelled)
    return binary_cross_entropy(logits, targets.gold, targets.labelled)
