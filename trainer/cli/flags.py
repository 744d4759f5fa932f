"""The parsers of `train` and `evaluate`: help texts and refusals of wrong flags, without torch and transformers.

`teachonce` asks here first, and imports what runs the verb only when the line has passed; that parses it once more,
into values that are checked.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from schemas.network import refuse_unreachable
from trainer.cli.parsing import Parser
from trainer.cli.student_lists import HELP, TASKS, TASKS_HELP, split
from trainer.cli.transformers_settings import settings_of_transformers
from trainer.evaluation.flags import EvaluateFlags
from trainer.training.flags import TrainFlags

_TRAIN_GROUPS: Mapping[str, Sequence[str]] = {
    "what matters first": (
        *("cache", "student", "losses", "output_dir", "num_train_epochs", "per_device_train_batch_size"),
        *("learning_rate", "temperature", "bf16", "resume_from_checkpoint"),
    ),
    "the student": ("teacher", "lora", "load_in_4bit"),
    "what it learns": (
        *("preset", "stages", "loss_schedule", "temperature_schedule", "feature_loss", "adversarial"),
    ),
    "which rows, in which order": (
        *(
            "join",
            "join_pick",
            "eval_fraction",
            "where",
            "batching",
            "lanes",
            "shuffle_row_groups",
            "cache_version",
        ),
        *("allow_new_data", "local_cache", "local_cache_gb", "memory_cache_gb"),
    ),
    "steps": (
        *("max_steps", "gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "weight_decay"),
        "seed",
    ),
    "logs and evaluations": ("logging_steps", "report_to", "eval_strategy", "eval_steps"),
    "checkpoints": (
        *("save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end"),
        *("metric_for_best_model", "overwrite_output_dir"),
    ),
}
"""Of transformers' settings only these are in a short help."""

_TRAIN_EXAMPLES = textwrap.dedent("""\
    examples:
      a student from scratch, by the teacher's distribution and a little of the corpus itself:
        teachonce train --cache ./cache --student student.json --losses kl=1.0 ce=0.1 \\
          --output_dir ./student --num_train_epochs 3 --per_device_train_batch_size 32 --bf16

      the teacher with half of its layers, settings from a file, one overruled; begun, or gone on with:
        teachonce train run.yaml --learning_rate 1e-4 --resume_from_checkpoint auto
      where run.yaml holds
        cache: s3://bucket/cache
        student: shrink:layers=6
        teacher: ./teacher
        losses: {kl: 1.0, feature: 0.1}
        output_dir: ./student

      a large student on one card: its own weights stay, adapters are learned and saved (needs teachonce[lora]):
        teachonce train --cache ./cache --student ./large --lora r=16 alpha=32 targets=q_proj,v_proj \\
          --losses kl=1.0 --output_dir ./adapter --bf16 --gradient_checkpointing

      several students from one decode, each as if alone; flags are said of all (docs/training.md):
        teachonce train --students students.yaml --cache ./cache
      where students.yaml holds
        students: [{student: a.json, output_dir: ./a}, {student: b.json, output_dir: ./b, losses: {kl: 1, ce: 1}}]

    With several GPUs: torchrun --nproc_per_node 4 -m teachonce train ...
    """)

_EVALUATE_EXAMPLES = textwrap.dedent("""\
    examples:
      a student on the documents that its training held out:
        teachonce evaluate --cache ./cache --student ./student

      beside the teacher, with speeds of both, for a program to read:
        teachonce evaluate --cache ./cache --student ./student --teacher ./teacher --json

      several students on the same rows, and what they are together (docs/several.md):
        teachonce evaluate --cache ./cache --students ./a ./b ./c --ensemble mean
    """)


_NO_NAMES = ("linear",)
"""A student that is made of its word; others have what no name has (`mlp:256`), or end as a config does."""


def train(argv: Sequence[str]) -> None:
    """Prints the help of `teachonce train` and leaves, or refuses a line that cannot be.

    Raises:
        UsageError: a wrong flag or value, as far as it can be known without torch.
    """
    named, flags = split(argv)
    parser = train_parser([TrainFlags, settings_of_transformers()])
    if named is None:
        _refuse_unreachable(parser.words(flags))
    elif {"-h", "--help", "--help_all"} & set(flags):
        parser.words(["--help"])


def evaluate(argv: Sequence[str]) -> None:
    """Prints the help of `teachonce evaluate` and leaves, or refuses a line that cannot be.

    Raises:
        UsageError: a wrong flag or value, as far as it can be known without torch.
    """
    _refuse_unreachable(evaluate_parser(EvaluateFlags).words(argv))


def _refuse_unreachable(told: Mapping[str, Any]) -> None:
    """Of the hub's names one that cannot be had is told now."""
    for flag in ("student", "teacher"):
        if not str(told.get(flag)).endswith(".json") and told.get(flag) not in _NO_NAMES:
            refuse_unreachable(f"--{flag}", told.get(flag))
    for name in told.get("students") or ():
        refuse_unreachable("--students", name)


def train_parser(kinds: Sequence[type[Any]]) -> Parser:
    """The flags of `train`, into these two values."""
    parser = Parser(
        kinds,
        description="train Distils a student from a cache, with no teacher in memory.",
        examples=_TRAIN_EXAMPLES,
        groups=_TRAIN_GROUPS,
    )
    parser.add_argument("--students", metavar="FILE.yaml", help=HELP)
    parser.add_argument(TASKS, metavar="FILE.yaml", help=TASKS_HELP)
    parser.add_argument("--json", action="store_true", help="one JSON object at the end; the log to stderr")
    return parser


def evaluate_parser(kind: type[Any]) -> Parser:
    """The flags of `evaluate`, into this value."""
    parser = Parser(
        [kind],
        description="evaluate Measures a student on a cache's held-out part.",
        examples=_EVALUATE_EXAMPLES,
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser
