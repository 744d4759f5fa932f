"""The verbs `train` and `evaluate`: flags to values, values to the calls of the same names."""

from __future__ import annotations

import logging
import sys
import textwrap

from transformers.utils import logging as transformers_logging

from schemas.cli.logs import log_on_stderr
from schemas.cli.terminal import print_json
from schemas.printable import printable
from trainer.checkpoints.signals import Stopped
from trainer.cli.parsing import Parser
from trainer.cli.students import HELP, split, train_file
from trainer.evaluation.comparison import compare
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.evaluation import Evaluated
from trainer.evaluation.evaluation import evaluate as run_evaluate
from trainer.evaluation.tables import show, show_compared
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.training import train as run_train

_SHOWN = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "bf16",
    "seed",
    "overwrite_output_dir",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "metric_for_best_model",
    "resume_from_checkpoint",
    "report_to",
)

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
        temperature: 2.0
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


def train(argv: list[str]) -> int:
    """`teachonce train`: returns the exit status."""
    path, flags = split(argv)
    if path is not None:
        return train_file(path, flags, _train_parser)
    config, arguments = _train_parser().values(flags)
    try:
        with log_on_stderr("trainer", logging.INFO), log_on_stderr("schemas", logging.WARNING):
            trained = run_train(config, arguments)
    except Stopped as stopped:
        if arguments.process_index == 0:
            sys.stderr.write(f"teachonce train: {stopped}\n")
        return stopped.status
    if arguments.process_index == 0:
        told = "already finished, nothing to do: " if trained.was_finished else ""
        sys.stderr.write(f"{told}{trained.steps} steps; the student is in {printable(trained.output_dir)}\n")
    return 0


def _train_parser() -> Parser:
    parser = Parser(
        [TrainConfig, StudentArguments],
        description="train Distils a student from a cache, with no teacher in memory.",
        examples=_TRAIN_EXAMPLES,
        shown=_SHOWN,
    )
    parser.add_argument("--students", metavar="FILE.yaml", help=HELP)
    return parser


def evaluate(argv: list[str]) -> int:
    """`teachonce evaluate`: returns the exit status."""
    parser = Parser(
        [EvaluateConfig],
        description="evaluate Measures a student on a cache's held-out part.",
        examples=_EVALUATE_EXAMPLES,
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    (config,) = parser.values(argv)
    as_json = "--json" in argv
    if as_json:
        transformers_logging.disable_progress_bar()
    with log_on_stderr("schemas", logging.WARNING):
        found = compare(config) if config.students else run_evaluate(config)
    if as_json:
        print_json(found.to_json())
    elif isinstance(found, Evaluated):
        show(found)
    else:
        show_compared(found)
    return 0
