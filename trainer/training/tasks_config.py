"""`TasksConfig`: what `teachonce train --tasks` is told: each task as a run of its own, and how steps are shared."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from schemas.errors import UsageError
from trainer.students.on_features import parse_on_features
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig

OWN = (
    *("cache", "cache_version", "where", "join", "join_pick"),
    *("losses", "temperature", "feature_loss", "loss_schedule", "adversarial", "preset"),
)
"""What of `train`'s flags a task may have of its own; the others are of the student, or of all steps."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_TAKEN = re.compile(r"checkpoint-[0-9]+|runs")
_REFUSED: Mapping[str, str] = {
    "lora": "an adapter is of one head",
    "load_in_4bit": "an adapter is of one head",
    "stages": "a stage would be of all tasks",
    "temperature_schedule": "a task's batches are made before it is known at which of the run's steps they come",
}


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """Several tasks of one student."""

    tasks: Mapping[str, TrainConfig]
    """Each by its name, which its folder has; but for what is in `OWN` they are alike."""
    shares: Mapping[str, float] | None = None
    """How many of the steps each task has, relative to the others."""
    sampling: float = 1.0
    """Without `shares`: as many as a task's own epoch has, to this power. 1: as each would have; 0: all alike."""
    uncertainty: bool = False
    """Whether each task's loss is weighed by a trained uncertainty."""

    def __post_init__(self) -> None:
        if len(self.tasks) < 2:
            raise UsageError(
                "several tasks are two or more",
                got=", ".join(self.tasks) or "none",
                do="Train one without --tasks",
            )
        for name, config in self.tasks.items():
            if not _NAME.fullmatch(name) or _TAKEN.fullmatch(name):
                expected = "letters, digits, - and _, and no name that a run uses itself"
                raise UsageError("a task's name is a folder's", expected=expected, got=name)
            _check_task(name, config)
        self._check_alike()
        if not 0 <= self.sampling <= 1:
            raise UsageError("sampling must be from 0 to 1", got=self.sampling)
        if self.shares is None:
            return
        if set(self.shares) != set(self.tasks):
            raise UsageError(
                "all tasks have a share, or none has",
                got=", ".join(self.shares),
                do=f"Give one to each of {', '.join(self.tasks)}",
            )
        if not all(0 < share < math.inf for share in self.shares.values()):
            raise UsageError("shares are above 0", got=", ".join(map(str, self.shares.values())))
        if self.sampling != 1:
            raise UsageError("sampling has no effect beside shares", got=self.sampling)

    def _check_alike(self) -> None:
        (first, config), *others = self.tasks.items()
        for name, other in others:
            for field in fields(TrainConfig):
                ours, theirs = getattr(config, field.name), getattr(other, field.name)
                if field.name not in OWN and ours != theirs:
                    raise UsageError(
                        f"tasks of one student cannot differ in {field.name}",
                        expected=f"{ours}, as {first} has it",
                        got=f"{theirs} of {name}",
                    )

    @property
    def first(self) -> TrainConfig:
        """What is said of all stands in each."""
        return next(iter(self.tasks.values()))

    def told(self) -> dict[str, Any]:
        """What a resumed run must have alike, beside what each task's own record says."""
        named: dict[str, Any] = {"tasks": list(self.tasks), "uncertainty": self.uncertainty}
        how = {"sampling": self.sampling} if self.shares is None else {"shares": dict(self.shares)}
        return named | how


def _check_task(name: str, config: TrainConfig) -> None:
    for flag, why in _REFUSED.items():
        if getattr(config, flag):
            raise UsageError(
                f"--{flag} does not go with several tasks: {why}", where=f"task {name}", do="Leave it out"
            )
    if config.batching == "pack":
        raise UsageError("--batching pack does not go with several tasks", do="Leave it out")
    if parse_on_features(config.student) is not None:
        raise UsageError(
            "a student without a backbone has none to share",
            got=config.student,
            do="Train each task by itself",
        )


def check_loop_flags(arguments: StudentArguments) -> None:
    """Refuses settings of the loop that are of one task, or of several ranks.

    Raises:
        UsageError: naming the flag.
    """
    if arguments.world_size > 1:
        raise UsageError(
            "--tasks trains in one process, and not in several ranks",
            got=f"{arguments.world_size} ranks",
            do="Run it without torchrun",
        )
    for flag, is_told in (
        ("overwrite_output_dir", bool(arguments.overwrite_output_dir)),
        ("torch_compile", arguments.compiling is not None),
    ):
        if is_told:
            raise UsageError(f"--{flag} does not go with several tasks", do="Leave it out")


def metrics_of(tasks: Mapping[str, TrainConfig]) -> Sequence[str]:
    """What an evaluation gives, by its name in a log."""
    return [
        f"eval_{name}_{metric}"
        for name, config in tasks.items()
        for metric in ("loss", *config.objective.weights)
    ]
