"""The verb `sweep`: a space file and flags to a `SweepConfig`, and what was found as tables or JSON."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml  # type: ignore[import-untyped]
from transformers.utils import logging as transformers_logging

from schemas.cli.arguments import small_text
from schemas.cli.logs import log_on_stderr
from schemas.cli.terminal import print_json
from schemas.errors import TrainingError, UsageError
from trainer.checkpoints.signals import Stopped, name_of
from trainer.cli.commands import own_train_parser
from trainer.cli.flag_files import MOST_BYTES, read_file
from trainer.cli.sweep_flags import sweep_parser
from trainer.cli.sweep_tables import show, show_plan
from trainer.sweep.config import SweepConfig
from trainer.sweep.results import Swept
from trainer.sweep.space import Space
from trainer.sweep.sweep import plan
from trainer.sweep.sweep import sweep as run_sweep
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig


def sweep(argv: list[str]) -> int:
    """`teachonce sweep`: returns the exit status."""
    told = sweep_parser().parse_args(argv)
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
        reason = f"{name_of(stopped.number)}: what was training is saved; the same command goes on"
        sys.stderr.write(f"teachonce sweep: {reason}\n")
        if told.json:
            print_json({"outcome": "ended", "status": stopped.status, "reason": reason})
        return stopped.status
    if told.json:
        print_json(found.to_json())
    else:
        show(found)
    _raise_if_all_failed(found, is_told=told.json)
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
    parser = own_train_parser()
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


def _raise_if_all_failed(found: Swept, *, is_told: bool) -> None:
    reasons = [trial.outcome.reason for trial in found.trials if trial.outcome.state == "failed"]
    if len(reasons) == len(found.trials):
        failed = TrainingError(
            f"all {len(reasons)} trials failed", where=found.study, got=f"of the first: {reasons[0]}"
        )
        failed.is_told = is_told
        raise failed


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
