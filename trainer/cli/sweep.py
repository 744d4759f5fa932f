"""The verb `sweep`: a space file and flags to a `SweepConfig`, and what was found as tables or JSON."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml  # type: ignore[import-untyped]
from transformers.utils import logging as transformers_logging

from schemas.cli.arguments import Parser, natural, positive, small_text
from schemas.cli.logs import log_on_stderr
from schemas.cli.terminal import print_json
from schemas.errors import TrainingError, UsageError
from trainer.checkpoints.signals import Stopped, name_of
from trainer.cli.commands import train_parser
from trainer.cli.parsing import MOST_BYTES, read_file
from trainer.cli.sweep_tables import show, show_plan
from trainer.sweep.config import DEFAULT_PRUNE_AT, DEFAULT_TRIALS, KEEPS, PRUNERS, SweepConfig
from trainer.sweep.draws import SAMPLERS
from trainer.sweep.results import Swept
from trainer.sweep.space import Space
from trainer.sweep.sweep import plan
from trainer.sweep.sweep import sweep as run_sweep
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig

_EXAMPLES = textwrap.dedent("""\
    examples:
      twenty trials by Optuna's TPE, four at a time from one decode; the same command goes on after a kill:
        teachonce sweep ./cache --space space.yaml --trials 20 --parallel 4 --study ./study
      where space.yaml holds flags of `teachonce train`; a list is a choice:
        student: [small.json, {student: shrink:layers=6, teacher: ./teacher}]
        losses: {kl: 1.0, ce: {uniform: [0, 1]}}
        temperature: [1, 2]
        learning_rate: {log: [1e-4, 3e-3]}
        num_train_epochs: 3

      every combination of the lists, none given up:
        teachonce sweep ./cache --space lists.yaml --sampler grid --pruner none --study ./grid

      what it would draw, without training anything:
        teachonce sweep ./cache --space space.yaml --study ./study --dry_run
    """)


def sweep(argv: list[str]) -> int:
    """`teachonce sweep`: returns the exit status."""
    told = _parser().parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise UsageError(
            "a sweep trains in one process, and not in several ranks",
            got=f"{os.environ['WORLD_SIZE']} ranks",
            do="Run it without torchrun",
        )
    config = _config(told)
    transformers_logging.disable_progress_bar()
    if told.dry_run:
        show_plan(config, plan(config, build), as_json=told.json)
        return 0
    try:
        with _logs():
            found = run_sweep(config, build)
    except Stopped as stopped:
        told = "what was training is saved; the same command goes on"
        sys.stderr.write(f"teachonce sweep: {name_of(stopped.number)}: {told}\n")
        return stopped.status
    if told.json:
        print_json(found.to_json())
    else:
        show(found)
    _raise_if_all_failed(found)
    return 0


@contextmanager
def _logs() -> Iterator[None]:
    """What becomes of trials, and what is wrong; not what each training says of itself."""
    with (
        log_on_stderr("schemas", logging.WARNING),
        log_on_stderr("trainer", logging.WARNING),
        log_on_stderr("trainer.sweep", logging.INFO),
    ):
        yield


def build(flags: Mapping[str, Any], where: str) -> tuple[TrainConfig, StudentArguments]:
    """What `train` is told by these keys of a file.

    Raises:
        UsageError: they cannot be.
    """
    parser = train_parser()
    parser.use(flags, where)
    config, arguments = parser.values([])
    return config, arguments


def read_space(path: str) -> Space:
    """The space of a file.

    Raises:
        UsageError: it cannot be read, naming its line.
    """
    told = read_file(path)
    return Space.parse(told, path, _lines(small_text(path, MOST_BYTES)))


def _lines(text: str) -> dict[str, int]:
    """The line of each key of a YAML text, by its name with dots."""
    found: dict[str, int] = {}

    def visit(node: Any, name: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            inner = f"{name}.{key.value}" if name else str(key.value)
            found[inner] = key.start_mark.line + 1
            visit(value, inner)

    visit(yaml.compose(text, yaml.SafeLoader), "")
    return found


def _raise_if_all_failed(found: Swept) -> None:
    reasons = [trial.outcome.reason for trial in found.trials if trial.outcome.state == "failed"]
    if len(reasons) == len(found.trials):
        raise TrainingError(
            f"all {len(reasons)} trials failed", where=found.study, got=f"of the first: {reasons[0]}"
        )


def _config(told: argparse.Namespace) -> SweepConfig:
    return SweepConfig(
        cache=told.cache,
        space=read_space(told.space),
        study=told.study,
        trials=told.trials,
        sampler=told.sampler,
        pruner=told.pruner,
        prune_at=tuple(told.prune_at),
        parallel=told.parallel,
        seed=told.seed,
        objective=told.objective,
        is_maximised=told.is_maximised,
        keep=told.keep,
    )


def _parser() -> Parser:
    parser = Parser(
        prog="teachonce sweep",
        description="Searches for a student over a cache that is there already: trials drawn by Optuna from a space of "
        "`train`'s flags.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("cache", help="the cache: a folder, s3://, gs:// or az://")
    add(
        "--space",
        required=True,
        metavar="FILE",
        help="YAML of train's flags: values, lists, {log: [LOW, HIGH]}",
    )
    add(
        "--study",
        required=True,
        metavar="FOLDER",
        help="where trials stand; a study that is there is gone on with",
    )
    add("--trials", type=positive, help=f"trials in all [{DEFAULT_TRIALS}; of a grid all]")
    add("--sampler", choices=SAMPLERS, default="tpe", help="how trials are drawn [tpe]")
    add("--pruner", choices=PRUNERS, default="median", help="which trials are given up on their way [median]")
    shares = " ".join(f"{share:g}" for share in DEFAULT_PRUNE_AT)
    add(
        "--prune_at",
        nargs="+",
        type=float,
        default=DEFAULT_PRUNE_AT,
        metavar="SHARE",
        help=f"shares of its steps after which a trial is measured [{shares}]",
    )
    add("--parallel", type=positive, default=1, metavar="P", help="trials at once, from one decode [1]")
    add(
        "--seed", type=natural, default=0, help="of what is drawn; train's own seed is a key of the space [0]"
    )
    add("--objective", metavar="METRIC", help="a metric of evaluate [the task's own]")
    direction = parser.add_mutually_exclusive_group()
    for flag, value, word in (("--minimise", False, "lower"), ("--maximise", True, "higher")):
        direction.add_argument(
            flag, dest="is_maximised", action="store_const", const=value, help=f"{word} is better"
        )
    add(
        "--keep",
        choices=KEEPS,
        default="front",
        help="students that stay: best and Pareto front, or all [front]",
    )
    add("--dry_run", action="store_true", help="show the space and the number of trials; nothing is written")
    add("--json", action="store_true", help="print everything as JSON")
    return parser
