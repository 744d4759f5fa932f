"""`TrainConfig`: what `teachonce train` is told, beside the settings of the loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from schemas.errors import UsageError
from trainer.batches.join import PICKS
from trainer.losses.objective import Objective
from trainer.models.shrink import parse_shrink
from trainer.stream.where import Where
from trainer.students.lora import Lora
from trainer.students.on_features import parse_on_features
from trainer.students.static_students import parse_static
from trainer.training.adapter_flags import adapters_of
from trainer.training.flags import TrainFlags
from trainer.training.local_cache import check_flags
from trainer.training.own_parts import OwnParts
from trainer.training.presets import preset


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainFlags):
    """What to distil, from what, by which losses. Everything about the loop is in `TrainingArguments`."""

    SETTLED: ClassVar = ("losses", "temperature", "feature_loss", "stages")
    """Fields that are None until `__post_init__` has settled them: nobody may say that they are nothing."""
    student: str | Any = field(metadata=TrainFlags.__dataclass_fields__["student"].metadata)
    """As a flag names it; or a `PreTrainedModel`, which is then trained in place."""
    own: OwnParts = field(default_factory=OwnParts, init=False, repr=False)
    """What no flag can say; `student` is a model's name in words where it was a model."""

    def __post_init__(self) -> None:
        self._take_model()
        self._settle()
        self._check_join()
        if self.lanes is not None and self.lanes < 1:
            raise UsageError("--lanes must be at least 1", got=self.lanes)
        if self.cache_version is not None and len(self.sources) > 1:
            raise UsageError("--cache_version is that of one cache", got=f"{len(self.sources)} caches")
        if not 0 <= self.eval_fraction < 1:
            raise UsageError("--eval_fraction must be at least 0 and below 1", got=self.eval_fraction)
        if self.shuffle_row_groups < 1:
            raise UsageError("--shuffle_row_groups must be at least 1", got=self.shuffle_row_groups)
        if self.batching not in ("bucket", "pack"):
            raise UsageError("--batching must be bucket or pack", got=self.batching)
        _ = self.sources, Where.parse(self.where), self.adapters
        check_flags(self.local_cache, self.local_cache_gb, self.sources)
        if not 0 <= self.memory_cache_gb < math.inf:
            raise UsageError("--memory_cache_gb must be a number from 0 on", got=self.memory_cache_gb)
        if self.losses or self.stages or self.own.losses:  # with none, those of Python are still to come
            self._check_effects()

    def _take_model(self) -> None:
        """A model object stands apart, and has a name in its place."""
        model: Any = self.student
        if not isinstance(model, str):
            if self.lora is not None:
                raise UsageError(
                    "--lora needs a --student that can be opened again, for an adapter alone is saved",
                    expected="a model folder or hub name",
                    got=f"a {type(model).__name__} in memory",
                )
            object.__setattr__(self, "own", replace(self.own, student=model))
            object.__setattr__(self, "student", f"a {type(model).__name__} in memory")

    def bringing(self, own: OwnParts) -> TrainConfig:
        """The same with what Python alone can tell.

        Raises:
            UsageError: it does not go with what is told.
        """
        found = copy(self)
        object.__setattr__(found, "own", own)
        found.__post_init__()
        return found

    def _check_join(self) -> None:
        if self.join not in (None, "example"):
            raise UsageError("--join must be example", got=self.join)
        if self.join_pick is not None and (self.join is None or self.join_pick not in PICKS):
            expected = f"--join example and one of {', '.join(PICKS)}"
            raise UsageError("--join_pick cannot be this", expected=expected, got=self.join_pick)
        if self.join is None:
            return
        if len(self.sources) < 2:
            raise UsageError("--join is of two caches or more", got=f"{len(self.sources)} cache")
        if self.where:
            raise UsageError("--where does not go with --join", got=" ".join(self.where))
        if self.join_pick is not None and any(weight is not None for weight in self.sources.values()):
            raise UsageError(
                "caches have no weights where one is picked",
                got=" ".join(self.cache),
                do="Name each --cache PATH without =WEIGHT",
            )

    def _settle(self) -> None:
        """The recipe's losses, or what is told of them and the rest as usual. What a recipe says is not told beside it.

        Raises:
            UsageError: there is no such recipe, or a flag stands beside it.
        """
        usual: dict[str, Any] = {
            "losses": [] if self.stages else ["kl=1.0"],
            "temperature": 1.0,
            "feature_loss": "mse",
            "stages": [],
        }
        if self.preset is not None:
            recipe = preset(self.preset)
            usual = {name: getattr(recipe, name) for name in usual}
            usual |= {"losses": list(recipe.losses), "stages": list(recipe.stages)}
        for name, value in usual.items():
            told = getattr(self, name)
            if told is None:
                object.__setattr__(self, name, value)
            elif self.preset is not None and told != value:
                raise UsageError(
                    f"--preset {self.preset} says --{name} already",
                    got=told,
                    do=f"Leave --preset out and say what it stands for, changed: {recipe.flags}",
                )
        if self.stages and self.losses:
            raise UsageError(
                "--stages say the losses already", got=" ".join(self.losses), do="Leave --losses out"
            )

    def _check_effects(self) -> None:
        names = set(self.objective.weights)
        layers, _ = parse_shrink(self.student), self.beginnings
        if self.teacher is not None and layers is None:
            raise UsageError("--teacher has no effect without --student shrink:layers=N", got=self.teacher)
        if self.temperature != 1 and not self.objective.softens:
            raise UsageError(
                "--temperature has no effect without the loss kl or another that softens",
                got=self.temperature,
            )
        if self.feature_loss != "mse" and "feature" not in names:
            raise UsageError("--feature_loss has no effect without the loss feature", got=self.feature_loss)

    @property
    def adapters(self) -> Lora | None:
        """What adapters are asked for.

        Raises:
            UsageError: they are not what they should be, or have no base that could be opened again.
        """
        return adapters_of(self)

    @property
    def sources(self) -> dict[str, float | None]:
        """Each cache's path, and its weight where they have some.

        Raises:
            UsageError: some have a weight and others none, or a cache stands twice.
        """
        caches = [self.cache] if isinstance(self.cache, str) else self.cache
        return parse_sources(caches, may_be_zero=self.join is not None)

    @property
    def beginnings(self) -> tuple[str | None, ...]:
        """What may be folders that the run begins with."""
        new = parse_on_features(self.student) is not None or parse_static(self.student) is not None
        return (None if new or self.own.student is not None else self.student, self.teacher)

    @property
    def objective(self) -> Objective:
        """The losses as a value.

        Raises:
            UsageError: they are not what they should be.
        """
        assert self.losses is not None  # `_settle` has seen to it
        assert self.temperature is not None
        return Objective.parse(
            self.losses,
            self.temperature,
            self.feature_loss or "mse",
            schedules=self.loss_schedule,
            stages=self.stages or (),
            adversarial=self.adversarial,
            temperature_schedule=self.temperature_schedule,
            own=self.own.losses,
        )


def parse_sources(told: Sequence[str], *, may_be_zero: bool = False) -> dict[str, float | None]:
    """Caches by path, from `PATH` alone, or several `PATH` or `PATH=WEIGHT`.

    Raises:
        UsageError: some have a weight and others none, a weight is no positive number, or a cache stands twice.
    """
    if len(told) == 1:
        return {told[0]: None}
    found = dict(_parse_source(text) for text in told)
    weights = [weight for weight in found.values() if weight is not None]
    if len(found) < len(told):
        raise UsageError("--cache names one cache twice", got=" ".join(told))
    if not told or (weights and len(weights) < len(found)):
        expected = "PATH ..., or PATH=WEIGHT ..., for all alike"
        raise UsageError("--cache cannot be read", expected=expected, got=" ".join(told) or "nothing")
    low = 0.0 if may_be_zero and any(weights) else math.ulp(0.0)
    if not all(low <= weight < math.inf for weight in weights):
        raise UsageError("--cache needs weights above 0", got=" ".join(told))
    return found


def _parse_source(text: str) -> tuple[str, float | None]:
    path, _, weight = text.rpartition("=")
    try:
        return (path, float(weight)) if path else (text, None)
    except ValueError:
        return text, None
