"""`SweepConfig`: what `teachonce sweep` is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.errors import UsageError
from trainer.sweep.choices import DEFAULT_PRUNE_AT, KEEPS, PRUNERS, SAMPLERS
from trainer.sweep.domains import Range
from trainer.sweep.space import Space
from trainer.tasks.student_task import Goal


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A study: of which cache and space, how trials are drawn, and by what they are compared."""

    cache: str
    space: Space
    study: str
    """Its folder."""
    trials: int | None = None
    """In all, with those that the study has already; a grid has its own number."""
    sampler: str = "tpe"
    pruner: str = "median"
    prune_at: tuple[float, ...] = DEFAULT_PRUNE_AT
    """Shares of a trial's steps after which it is measured, and may be given up."""
    parallel: int = 1
    """Trials that are drawn together and, where they can be, trained from one decode."""
    seed: int = 0
    objective: str | None = None
    is_maximised: bool | None = None
    keep: str = "front"

    def __post_init__(self) -> None:
        for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("keep", KEEPS)):
            if getattr(self, name) not in known:
                expected = ", ".join(known)
                raise UsageError(f"--{name} is none of these", expected=expected, got=getattr(self, name))
        for name in ("trials", "parallel"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UsageError(f"--{name} must be at least 1", got=number)
        if not 0 <= self.seed < 2**32:
            raise UsageError("--seed must be from 0 to 2^32 - 1", got=self.seed)
        shares = self.prune_at
        if not shares or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1:
            raise UsageError("--prune_at must be shares that rise between 0 and 1", got=_words(shares))
        if self.pruner == "none" and shares != DEFAULT_PRUNE_AT:
            raise UsageError("--prune_at has no effect with --pruner none", got=_words(shares))
        self._check_points()
        if self.is_maximised is not None and self.objective is None:
            raise UsageError(
                "the task's own objective has its direction",
                do="Leave --minimise or --maximise out, or name an --objective",
            )

    def _check_points(self) -> None:
        for parameter in self.space.parameters:
            if self.sampler != "grid" and isinstance(parameter.domain, Range) and parameter.domain.points:
                raise UsageError(
                    "points are those of --sampler grid", where=parameter.where, got=parameter.domain
                )

    def goal(self, usual: Goal) -> Goal:
        """What is asked for, or what the task has as usual.

        Raises:
            UsageError: another metric's direction is not told, or the usual one's is told wrongly.
        """
        if self.objective is None:
            return usual
        if self.objective == usual.metric:
            if self.is_maximised not in (None, usual.is_maximised):
                right = "maximised" if usual.is_maximised else "minimised"
                raise UsageError(f"{usual.metric} is {right}", do="Leave the direction out")
            return usual
        if self.is_maximised is None:
            raise UsageError(
                "which direction of it is better?",
                got=f"--objective {self.objective}",
                do="Add --minimise or --maximise",
            )
        return Goal(self.objective, self.is_maximised)

    def identity(self, goal: Goal) -> dict[str, Any]:
        """What a study that is gone on with must have had; beside the cache."""
        return {
            "space": dict(self.space.told),
            "sampler": self.sampler,
            "seed": self.seed,
            "objective": goal.metric,
            "direction": goal.direction,
        }


def _words(shares: tuple[float, ...]) -> str:
    return " ".join(f"{share:g}" for share in shares) or "nothing"
