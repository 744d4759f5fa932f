"""The verbs `train` and `evaluate`: flags to values, values to the calls of the same names."""

from __future__ import annotations

import logging
import sys

from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers.utils import logging as transformers_logging

from schemas.cli.logs import is_watched, log_on_stderr
from schemas.cli.progress import printed
from schemas.cli.terminal import print_json
from schemas.printable import printable
from trainer.checkpoints.signals import Stopped
from trainer.cli.flags import evaluate_parser, train_parser
from trainer.cli.parsing import Parser
from trainer.cli.student_lists import FLAG, split
from trainer.cli.students import stdout_left_to, train_file
from trainer.cli.tasks import read_tasks
from trainer.evaluation.comparison import compare
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.evaluation import Evaluated
from trainer.evaluation.evaluation import evaluate as run_evaluate
from trainer.evaluation.held_out import PASS
from trainer.evaluation.tables import show, show_compared
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.several_tasks import train_tasks
from trainer.training.tasks_config import TasksConfig
from trainer.training.training import train as run_train


def train(argv: list[str]) -> int:
    """`teachonce train`: returns the exit status."""
    named, flags = split(argv)
    as_json = "--json" in flags
    if named is not None and named.flag == FLAG:
        _bars_for_people_alone()
        return train_file(named.path, flags, own_train_parser, as_json=as_json)
    config: TrainConfig | TasksConfig
    if named is not None:
        config, arguments = read_tasks(named.path, flags, own_train_parser)
    else:
        config, arguments = own_train_parser().values(flags)
    _bars_for_people_alone()
    try:
        with (
            log_on_stderr("trainer", logging.INFO),
            log_on_stderr("schemas", logging.WARNING),
            stdout_left_to(as_json=as_json),
        ):
            if isinstance(config, TasksConfig):
                trained = train_tasks(config, arguments)
            else:
                trained = run_train(config, arguments)
    except Stopped as stopped:
        if arguments.process_index == 0:
            sys.stderr.write(f"teachonce train: {stopped}\n")
            if as_json:
                print_json({"outcome": "ended", "status": stopped.status, "reason": str(stopped)})
        return stopped.status
    if arguments.process_index == 0:
        told = "already finished, nothing to do: " if trained.was_finished else ""
        sys.stderr.write(f"{told}{trained.steps} steps; the student is in {printable(trained.output_dir)}\n")
        if as_json:
            print_json(trained._asdict())
    return 0


def _bars_for_people_alone() -> None:
    """Libraries' bars (loading weights, writing shards) move on a terminal; a file they would fill."""
    if not is_watched():
        transformers_logging.disable_progress_bar()
        disable_progress_bars()


def own_train_parser() -> Parser:
    """Of `train`'s flags, one call of which it takes."""
    return train_parser([TrainConfig, StudentArguments])


def evaluate(argv: list[str]) -> int:
    """`teachonce evaluate`: returns the exit status."""
    (config,) = evaluate_parser(EvaluateConfig).values(argv)
    as_json = "--json" in argv
    _bars_for_people_alone()
    if as_json:
        transformers_logging.disable_progress_bar()
    with log_on_stderr("schemas", logging.WARNING), printed(PASS.line):
        found = compare(config) if config.students else run_evaluate(config)
    if as_json:
        print_json(found.to_json())
    elif isinstance(found, Evaluated):
        show(found)
    else:
        show_compared(found)
    return 0
