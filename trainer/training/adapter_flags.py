"""Students that are trained by adapters: what the flags ask for, and how much is trained."""

from __future__ import annotations

from torch import nn

from schemas.errors import UsageError
from trainer.models.shrink import parse_shrink
from trainer.students.lora import Lora
from trainer.students.on_features import parse_on_features
from trainer.students.static_students import parse_static
from trainer.students.student import Student
from trainer.training.flags import TrainFlags


def adapters_of(flags: TrainFlags) -> Lora | None:
    """What adapters are asked for. What can be known before anything is opened: an adapter is of a base that can be
    opened again.

    Raises:
        UsageError: they are not what they should be, or their base is none.
    """
    if flags.lora is None:
        if flags.load_in_4bit:
            raise UsageError("--load_in_4bit has no effect without --lora: 4-bit weights cannot be trained")
        return None
    asked = Lora.parse(flags.lora, load_in_4bit=flags.load_in_4bit)
    parsed = (parse(flags.student) for parse in (parse_shrink, parse_on_features, parse_static))
    if any(found is not None for found in parsed) or flags.student.endswith(".json"):
        raise UsageError(
            "--lora needs a --student that can be opened again, for an adapter alone is saved",
            expected="a model folder or hub name",
            got=flags.student,
            do="Train that student whole first, then name its folder",
        )
    return asked


def adapter_lines(student: Student) -> list[str]:
    """How much of a student is trained, if not all."""
    if student.adapter is None:
        return []
    every = list(student.model.parameters())
    trained = sum(weight.numel() for weight in every if weight.requires_grad)
    total = sum(weight.numel() for weight in every)
    return [f"LoRA: {trained:,} of {total:,} weights are trained, and saved as an adapter"]


def saved_parameters(model: nn.Module, student: Student) -> int:
    """How many numbers a checkpoint of a module with this student holds: all, or what is trained beside a base."""
    every = student.adapter is None
    return sum(weight.numel() for weight in model.parameters() if every or weight.requires_grad)
