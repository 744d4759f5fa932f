"""The verbs `precompute` and `verify --teacher`: flags in, one documented call, tables and exit status out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from pipelines.cli import run_flags
from pipelines.cli.logs import quiet, warnings_on_stderr
from pipelines.cli.run_tables import outcome_of, summary_table
from pipelines.cli.task_flags import generation_of, task_settings
from pipelines.config import (
    CorpusConfig,
    PrecomputeConfig,
    TeacherConfig,
)
from pipelines.job.run import precompute as run_precompute
from pipelines.scoring.rescore import RescoreConfig, Rescored, mean_distance, rescore, unit_of
from schemas import Cache, Verified
from schemas.cli.process import DONE, OUT_OF_TIME
from schemas.cli.run_report import begin_report, finish_report
from schemas.cli.terminal import print_json
from schemas.errors import DriftError, UsageError
from schemas.policies import parse_keep
from schemas.tasks import TASKS


def precompute(argv: Sequence[str]) -> int:
    """`teachonce precompute`."""
    quiet()
    arguments, beam = run_flags.precompute(argv)
    config = run_config(arguments, beam)
    begin_report(arguments.report)
    with warnings_on_stderr():
        summary = run_precompute(config)
    status = OUT_OF_TIME if summary.postponed_examples else DONE
    told = {"outcome": outcome_of(summary), "status": status, "reason": None, **summary.to_json()}
    finish_report(arguments.report, told)
    if arguments.json:
        print_json(told)
    else:
        summary_table(summary, config.cache)
    return status


def verify(argv: Sequence[str]) -> int:
    """`teachonce verify CACHE --teacher DIR`."""
    quiet()
    arguments = run_flags.verify(argv)
    cache = Cache.open(arguments.cache, arguments.version)
    checked = cache.verify()
    config = RescoreConfig(
        teacher=arguments.teacher,
        sample=arguments.sample,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        allow_pickle=arguments.allow_pickle,
    )
    found = rescore(cache, config)
    _print_rescored(found, cache, checked, as_json=arguments.json)
    if not found.mean_kl_nats <= arguments.max_mean_kl:  # also where it is no number
        drift = DriftError(
            "a fresh teacher does not say what the cache holds",
            where=arguments.cache,
            expected=f"a {mean_distance(cache.spec)} of at most {arguments.max_mean_kl:g}{unit_of(cache.spec)}",
            got=f"{found.mean_kl_nats:.3g}",
            do="Check that device, dtype and library versions are those of the run; see `teachonce inspect`",
        )
        drift.is_told = arguments.json
        raise drift
    return 0


def run_config(arguments: argparse.Namespace, beam: Sequence[str]) -> PrecomputeConfig:
    """The run that the flags ask for.

    Raises:
        UsageError: a value is refused.
    """
    try:
        return _config(arguments, beam)
    except ValueError as error:
        raise UsageError("a flag's value is refused", got=str(error)) from error


def _config(arguments: argparse.Namespace, beam: Sequence[str]) -> PrecomputeConfig:
    given = {key: value for key, value in vars(arguments).items() if value is not None}
    given |= {"files": tuple(arguments.corpus), "path": arguments.teacher}
    given["task_settings"] = task_settings(arguments)
    if arguments.supervise is None:
        given["supervise"] = "assistant" if arguments.messages_field or arguments.prompt_field else "all"
    given["generation"] = generation_of(arguments)
    if TASKS[arguments.task].reads_images:
        given.setdefault("image_field", "image")
    if arguments.keep is not None:
        given["keep"] = parse_keep(arguments.keep)
    return PrecomputeConfig(
        corpus=CorpusConfig(**_taken(given, CorpusConfig)),
        teacher=TeacherConfig(**_taken(given, TeacherConfig)),
        beam_options=tuple(beam),
        **{k: v for k, v in _taken(given, PrecomputeConfig).items() if k not in ("corpus", "teacher")},
    )


def _taken(given: dict[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Those of the given values that are fields of a config; lists as tuples."""
    own = {field.name for field in fields(kind)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in own}


def _print_rescored(found: Rescored, cache: Cache, checked: Verified, *, as_json: bool) -> None:
    if as_json:
        whole = {"path": cache.storage.root, "version": cache.version, **asdict(checked)}
        print_json({**whole, "scored_again": found.to_json()})
        return
    sys.stdout.write(
        f"whole: {checked.examples:,} examples, every byte, count and id\n"
        f"scored again: {found.examples:,} examples, {found.positions:,} positions\n"
        f"{mean_distance(cache.spec)} to the teacher: {found.mean_kl_nats:.3g}{unit_of(cache.spec)}, "
        f"largest {found.max_kl_nats:.3g}\n"
    )
