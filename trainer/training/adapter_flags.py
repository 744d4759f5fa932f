"""The flags of students that are trained by adapters: a part of `TrainConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from schemas.errors import UsageError
from trainer.models.shrink import parse_shrink
from trainer.students.lora import Lora
from trainer.students.on_features import parse_on_features
from trainer.students.students import Student


@dataclass(frozen=True, kw_only=True)
class AdapterFlags:
    """Whether the student's own weights are trained, or adapters beside them."""

    lora: list[str] | None = field(
        default=None,
        metadata={
            "help": "NAME=VALUE ...: train LoRA adapters and leave the student's own weights as they are. r (16), "
            "alpha (2 r), dropout (0), targets (all-linear; or names of layers, as q_proj,v_proj). Saved as PEFT saves "
            "it. Needs teachonce[lora]."
        },
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "Hold the frozen weights in 4 bits (QLoRA); needs bitsandbytes, CUDA and --lora."},
    )

    @property
    def adapters(self) -> Lora | None:
        """What adapters are asked for.

        Raises:
            UsageError: they are not what they should be.
        """
        if self.lora is None:
            return None
        return Lora.parse(self.lora, load_in_4bit=self.load_in_4bit)

    def check_adapters(self, student: str) -> None:
        """What can be known before anything is opened: an adapter is of a base that can be opened again.

        Raises:
            UsageError: it is not.
        """
        if self.load_in_4bit and self.lora is None:
            raise UsageError("--load_in_4bit has no effect without --lora: 4-bit weights cannot be trained")
        if self.adapters is None:
            return
        is_new = parse_shrink(student) is not None or parse_on_features(student) is not None
        if is_new or student.endswith(".json"):
            raise UsageError(
                "--lora needs a --student that can be opened again, for an adapter alone is saved",
                expected="a model folder or hub name",
                got=student,
                do="Train that student whole first, then name its folder",
            )


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
