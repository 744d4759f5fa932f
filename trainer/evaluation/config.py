"""`EvaluateConfig`: what `teachonce evaluate` is told."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import UsageError
from trainer.evaluation.flags import ENSEMBLES, EvaluateFlags
from trainer.stream.where import Where
from trainer.training.local_cache import check_flags


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluateFlags):
    """Which student to measure, or which to compare, and on what."""

    def __post_init__(self) -> None:
        if self.eval_fraction is not None and not 0 < self.eval_fraction < 1:
            raise UsageError("--eval_fraction must be between 0 and 1", got=self.eval_fraction)
        if self.batch_size < 1:
            raise UsageError("--batch_size must be at least 1", got=self.batch_size)
        if self.speed_seconds < 0:
            raise UsageError("--speed_seconds cannot be negative", got=self.speed_seconds)
        self._check_students()
        Where.parse(self.where)
        check_flags(self.local_cache, self.local_cache_gb, [self.cache])

    def _check_students(self) -> None:
        if (self.student is None) == (not self.students):
            got = "neither" if self.student is None else "both"
            raise UsageError("one --student is measured, or several --students are compared", got=got)
        if self.students and len(set(self.students)) < max(2, len(self.students)):
            raise UsageError(
                "--students are two or more, each once",
                got=" ".join(self.students),
                do="Name one alone with --student",
            )
        if self.ensemble is not None and self.ensemble not in ENSEMBLES:
            raise UsageError("--ensemble is none", expected=", ".join(ENSEMBLES), got=self.ensemble)
        if self.save and self.students:
            raise UsageError(
                "--save is of one student", got=" ".join(self.students), do="Name it with --student"
            )
        if self.export not in (None, "onnx"):
            raise UsageError("--export must be onnx", got=self.export)
        if self.export is not None and self.students:
            raise UsageError(
                "--export is of one student", got=" ".join(self.students), do="Name it with --student"
            )
        if self.ensemble is not None and not self.students:
            raise UsageError("--ensemble has no effect without --students", got=self.ensemble)
