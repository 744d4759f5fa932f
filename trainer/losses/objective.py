"""Which losses a run has, with what weights and parameters, and whether a cache can serve them.

Written on the command line as `--losses kl=1.0 jsd=0.5,beta=0.3`. The total is the weighted sum; every term is logged,
also one of weight 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from schemas.errors import UsageError
from schemas.policies import KeepAll
from schemas.spec import Spec
from schemas.task import Score
from trainer.losses.aligned_targets import AlignedScores, AlignedTargets
from trainer.losses.buffers import Buffers
from trainer.losses.flags import parse_adversarial, parse_losses, parse_schedules, together, with_distance
from trainer.losses.loss import PER, Asked, Loss, Settings, Value
from trainer.losses.measures import MEASURES
from trainer.losses.registry import LOSSES
from trainer.losses.schedules import Schedule, Warmth
from trainer.losses.scores import DenseScores, Scores
from trainer.losses.serving import refusal
from trainer.losses.stages import Stage, check_shares, parse_stages, stage_at
from trainer.losses.targets import DenseTargets, SparseTargets


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A weighted sum of losses, each by its name in the registry."""

    weights: Mapping[str, float]
    temperature: float = 1.0
    settings: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """Parameters that are not the loss's default, by loss."""
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    """How weights change in the course of a run, by loss."""
    stages: tuple[Stage, ...] = ()
    """Each with its own weights, in a run that has several; `weights` are the last one's."""
    temperature_schedule: Schedule | None = None
    """How the temperature changes in the course of a run, from or to 1."""
    adversarial: float = 0.0
    """How far FGM moves a row's embeddings; 0 is not at all."""
    own: Mapping[str, Loss] = field(default_factory=dict)
    """Losses of the caller's, by name, beside the registry's."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("an objective needs at least one loss")
        for name, weight in self.weights.items():
            if name not in LOSSES and name not in self.own:
                raise ValueError(f"no such loss: {name!r}; there are {', '.join(LOSSES)}")
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of {name} must be finite and not negative, but got {weight}")
        if not any(self.weights.values()):
            raise ValueError("at least one loss needs a weight above 0")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be above 0, but got {self.temperature}")
        check_shares(self.stages)
        if self.stages and (self.schedules or self.stages[-1].weights.items() - self.weights.items()):
            raise ValueError("weights are the last stage's, and stages have no schedules beside them")
        if self.temperature_schedule is not None:
            _ = self.warmth(1)
            if not self.softens:
                raise ValueError("a schedule of the temperature has no effect without a loss that softens")
        for name in self.schedules:
            if not self.weights.get(name):
                raise ValueError(f"a schedule of {name} has no effect: it is no loss, or its weight is 0")

    @classmethod
    def parse(
        cls,
        losses: Sequence[str],
        temperature: float = 1.0,
        feature_loss: str = "mse",
        *,
        schedules: Sequence[str] = (),
        stages: Sequence[str] = (),
        adversarial: str | None = None,
        temperature_schedule: str | None = None,
        own: Sequence[tuple[Loss, float] | tuple[Loss, float, str]] = (),
    ) -> Objective:
        """From `["kl=1.0", "jsd=0.5,beta=0.3"]`; `feature_loss` is another way to say `feature`'s distance. Schedules
        are `["ce=linear:1:0"]`, and what is adversarial is `fgm=1.0`. Stages, each a text, stand in place of losses.
        Losses of the caller's stand behind the named ones, each with its weight and, where it has one, its schedule.

        Raises:
            UsageError: naming what is wrong.
        """
        try:
            staged = parse_stages(stages)
            if staged and losses:
                raise ValueError("stages say the losses already: leave --losses out")
            if staged:
                names = dict.fromkeys(name for stage in staged for name in stage.weights)
                weights = {name: staged[-1].weights.get(name, 0.0) for name in names}
                settings = together(stage.settings for stage in staged)
            else:
                weights, settings = parse_losses(losses)
            if staged and own:
                raise ValueError("stages name their losses, and one of Python's has no name there")
            weights |= {loss.name: weight for loss, weight, *_ in own}
            more = [f"{told[0].name}={told[2]}" for told in own if len(told) > 2]
            warms = None if temperature_schedule is None else Schedule.parse(temperature_schedule)
            return cls(
                weights=weights,
                temperature=temperature,
                settings=together([with_distance(settings, feature_loss)]),
                schedules=parse_schedules([*schedules, *more]),
                stages=staged,
                temperature_schedule=warms,
                adversarial=parse_adversarial(adversarial),
                own={told[0].name: told[0] for told in own},
            )
        except ValueError as error:
            raise UsageError(
                "the losses are not as they should be",
                got=str(error),
                do="See docs/losses.md for every loss and its parameters, docs/training.md for schedules",
            ) from error

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The entries, in the order in which they were told."""
        return tuple(self.entry(name) for name in self.weights)

    def entry(self, name: str) -> Loss:
        """A loss by its name."""
        return self.own[name] if name in self.own else LOSSES[name]

    def divisor(self, name: str) -> int:
        """Which of a batch's counts a logged term is a mean over."""
        return PER.index(self.entry(name).per) if name in self.own or name in LOSSES else 0

    @property
    def head_losses(self) -> tuple[str, ...]:
        """Those that need the student's logits."""
        return tuple(loss.name for loss in self.losses if not (loss.pooled or loss.boxes))

    @property
    def feature_losses(self) -> tuple[str, ...]:
        """Those that need pooled hidden states."""
        return tuple(loss.name for loss in self.losses if loss.pooled is not None)

    @property
    def uses_features(self) -> bool:
        return bool(self.feature_losses)

    @property
    def uses_labels(self) -> bool:
        """Whether a loss is a mean over the positions that have a label."""
        return any(loss.per == "labelled" for loss in self.losses)

    @property
    def aligns(self) -> bool:
        """Whether a loss is only for a student of another tokenizer, or of one that is taken for such."""
        return any(loss.asks for loss in self.losses)

    @property
    def softens(self) -> bool:
        """Whether the temperature has a part in a loss."""
        return any(loss.has_temperature for loss in self.losses)

    @property
    def bank(self) -> int:
        """How many of the cache's rows losses compare with beside the batch's."""
        asked = [self.settings_of(loss.name)[loss.bank] for loss in self.losses if loss.bank]
        return max((int(float(number)) for number in asked), default=0)

    @property
    def feature_loss(self) -> str:
        """The distance of the loss `feature`."""
        return str(self.settings_of("feature")["distance"])

    def settings_of(self, name: str) -> Settings:
        """All parameters of a loss."""
        return {**self.entry(name).defaults, **self.settings.get(name, {})}

    @property
    def told(self) -> dict[str, Value]:
        """Every parameter that was told, but those with a flag of their own: a run's identity."""
        told = {
            f"{name} {key}": value
            for name, settings in self.settings.items()
            for key, value in settings.items()
            if (name, key) != ("feature", "distance")
        }
        told |= {"adversarial fgm": self.adversarial} if self.adversarial else {}
        told |= {"temperature schedule": str(self.temperature_schedule)} if self.temperature_schedule else {}
        told |= {f"stage {number}": str(stage) for number, stage in enumerate(self.stages, 1)}
        told |= {f"own loss {name}": loss.formula for name, loss in self.own.items()}
        return told | {f"{name} schedule": str(schedule) for name, schedule in self.schedules.items()}

    @property
    def changes(self) -> bool:
        """Whether weights go by the step."""
        return bool(self.schedules or self.stages)

    def weight(self, name: str, progress: float | None) -> float:
        """Of a loss at a share of the steps; outside training the last stage's, and without a schedule's factor."""
        if progress is None:
            return self.weights[name]
        if self.stages:
            return self.stages[stage_at(self.stages, progress)].weights.get(name, 0.0)
        schedule = self.schedules.get(name)
        return self.weights[name] * (1.0 if schedule is None else schedule.factor(progress))

    def warmth(self, steps: int) -> Warmth | None:
        """The temperature by step in a run of so many; None where it stays."""
        if self.temperature_schedule is None:
            return None
        return Warmth(temperature=self.temperature, schedule=self.temperature_schedule, steps=steps)

    def stored(self, spec: Spec) -> frozenset[str]:
        """What the losses need of a position beside its entries, where the cache stores it; where every score is kept
        the gold id's is among them."""
        keeps_all = isinstance(spec.keep, KeepAll)
        wanted = {n for loss in self.losses for n in loss.reads(self.settings_of(loss.name), keeps_all)}
        own = spec.own_logits and any(loss.kind.own for loss in self.losses)
        asked: set[str] = {loss.asks for loss in self.losses if loss.asks}
        asked |= {"own"} if own else set()
        asked |= {"origin"} if self.tells_origin else set()
        return frozenset(wanted & set(spec.scalars)) | asked

    @property
    def tells_origin(self) -> bool:
        """Whether a loss asks who wrote a text."""
        return any(loss.kind.by_origin for loss in self.losses)

    def asked(self, name: str, spec: Spec, written: Collection[bool] = ()) -> Asked:
        """One of the losses, and the cache that is to serve it."""
        warms = self.temperature_schedule is not None
        return Asked(self.entry(name), self.settings_of(name), self.temperature, spec, warms, written)

    def check(self, spec: Spec, written: Collection[bool] = ()) -> None:
        """Whether caches of this spec can serve the losses; `written`, of each, whether its teacher wrote the texts.

        Raises:
            StudentError: naming the loss and what to do.
        """
        for name in self.weights:
            if (error := refusal(self.asked(name, spec, written))) is not None:
                raise error


def position_losses(
    names: Sequence[str],
    logits: Float[Tensor, "N V"],
    targets: SparseTargets | DenseTargets,
    *,
    temperature: float,
    score: Score,
    settings: Mapping[str, Settings] | None = None,
    measures: Sequence[str] = (),
    buffers: Buffers | None = None,
    own: Mapping[str, Loss] = LOSSES,
) -> Float[Tensor, "T N"]:
    """Each named loss at each position, from a student's logits in float32; and then, of a softmax teacher, what is
    measured there beside them.

    With `buffers`, a single backward pass follows before they are used again: it may write over what it needs. `own`
    are losses beside the registry's.
    """
    scores: Any
    if isinstance(targets, SparseTargets):
        scores = Scores(logits, targets, temperature, buffers)
    else:
        scores = DenseScores(logits, targets, temperature)
    found = []
    for name in names:
        loss = own.get(name) or LOSSES[name]
        term: Any = loss.term(score)
        assert term is not None  # `Objective.check` has seen to it
        found.append(term(scores, {**loss.defaults, **(settings or {}).get(name, {})}))
    found += [MEASURES[name](scores).to(logits.dtype) for name in measures]
    return torch.stack(found)


def aligned_losses(
    names: Sequence[str],
    logits: Float[Tensor, "M V"],
    targets: AlignedTargets,
    settings: Mapping[str, Settings] | None = None,
    own: Mapping[str, Loss] = LOSSES,
) -> Float[Tensor, " T"]:
    """Each named loss summed over chunks, or over tokens, of a student of another tokenizer."""
    scores = AlignedScores(logits, targets)
    found = []
    for name in names:
        loss = own.get(name) or LOSSES[name]
        assert loss.aligned is not None  # the student was refused else
        found.append(loss.aligned(scores, {**loss.defaults, **(settings or {}).get(name, {})}).sum())
    return torch.stack(found)
