"""The flags of `evaluate` as fields; why they stand apart is said in `trainer/training/flags.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.cli.arguments import Repeatable
from trainer.training.local_cache import GB_DEFAULT, GB_HELP, HELP

ENSEMBLES = ("mean", "vote", "fitted")


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Which student to measure, and on what."""

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
    save: bool = field(
        default=False,
        metadata={
            "help": "Also look at single positions, and keep all that was measured beside the student, where "
            "`teachonce report` finds it."
        },
    )
    export: str | None = field(
        default=None,
        metadata={
            "help": "onnx: also write the student as onnx/model.onnx into its folder, compared with torch on held-out "
            "rows. Needs teachonce[onnx].",
            "choices": ["onnx"],
        },
    )
    device: str | None = field(default=None, metadata={"help": "cuda, cpu, ... [cuda where there is one]"})
    local_cache: str | None = field(default=None, metadata={"help": HELP})
    local_cache_gb: float = field(default=GB_DEFAULT, metadata={"help": GB_HELP})
