"""`EvaluateConfig`: what `teachonce evaluate` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.cli.arguments import Repeatable
from schemas.errors import UsageError
from trainer.evaluation.ensembles import ENSEMBLES
from trainer.stream.where import Where
from trainer.training.local_cache import GB_DEFAULT, GB_HELP, HELP, check_flags


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which student to measure, or which to compare, and on what."""

    cache: str = field(metadata={"help": "The cache: a folder, s3://, gs:// or az://."})
    student: str | None = field(
        default=None,
        metadata={
            "help": "A trained student's folder (an adapter's is opened with its base), or a hub name."
        },
    )
    students: list[str] = field(
        default_factory=list,
        metadata={
            "help": "In place of --student: two students or more, compared on the same rows in one table.",
            "action": Repeatable,
        },
    )
    ensemble: str | None = field(
        default=None,
        metadata={
            "help": f"Also measure the --students together: {', '.join(ENSEMBLES)} (mean of their distributions, each "
            "one vote, a mean whose weights are fitted on half of the held-out documents; the other half is measured)."
        },
    )
    teacher: str | None = field(
        default=None, metadata={"help": "The teacher's folder, to measure its size and speed beside."}
    )
    eval_fraction: float | None = field(
        default=None, metadata={"help": "Share of documents held out. [what the student was trained with]"}
    )
    where: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Only held-out rows that meet all of these, as length<=512; names and operators are those of "
            "train. [all, whatever the student was trained on]",
            "action": Repeatable,
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Rows of a batch."})
    cache_version: int | None = field(default=None, metadata={"help": "Version of the cache. [newest]"})
    speed_seconds: float = field(
        default=3.0, metadata={"help": "Least time to measure each model's speed for; 0 leaves it out."}
    )
    device: str | None = field(default=None, metadata={"help": "cuda, cpu, ... [cuda where there is one]"})
    local_cache: str | None = field(default=None, metadata={"help": HELP})
    local_cache_gb: float = field(default=GB_DEFAULT, metadata={"help": GB_HELP})

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
        if self.ensemble is not None and not self.students:
            raise UsageError("--ensemble has no effect without --students", got=self.ensemble)
