"""Beam's own options, parsed so that a misspelt one is an error: Beam by itself drops it with a warning."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator, Sequence

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
)
from apache_beam.options.pipeline_options import _BeamArgumentParser as BeamParser
from apache_beam.runners.portability import flink_runner, portable_runner, prism_runner, spark_runner

from schemas.errors import UsageError

DEFAULT_RUNNER = "FnApiRunner"
"""In this process. Pinned by name: plain DirectRunner tries to download another engine."""

LOSES_DATA = {"daskrunner": "DaskRunner of Beam 2.77 loses elements of grouped data without an error"}

_RUNNER_MODULES = (flink_runner, portable_runner, prism_runner, spark_runner)
"""Imported so that their options are known."""


def parse_beam_options(flags: Sequence[str]) -> PipelineOptions:
    """The options behind `--` on the command line.

    Raises:
        UsageError: a flag that Beam does not know, or an engine that loses data.
    """
    parser = BeamParser(allow_abbrev=False, exit_on_error=False)
    for cls in _option_classes(PipelineOptions):
        if "_add_argparse_args" in cls.__dict__:
            cls._add_argparse_args(parser)
    try:
        known, unknown = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise UsageError("a Beam option is wrong", got=str(error)) from error
    if unknown:
        raise UsageError(
            "Beam knows no such option", got=unknown[0], do=_suggestion(unknown[0], _spellings(parser))
        )
    options = PipelineOptions(list(flags))
    runner = known.runner or DEFAULT_RUNNER
    reason = LOSES_DATA.get(runner.rsplit(".", 1)[-1].lower())
    if reason:
        raise UsageError(
            f"{runner} is refused", got=reason, do="Use FnApiRunner, PrismRunner, Flink or Dataflow"
        )
    if options.view_as(GoogleCloudOptions).template_location:
        raise UsageError(
            "--template_location is refused",
            got="a template holds one night's list of files and the version that the cache had then",
            do="Schedule the command itself",
        )
    options.view_as(StandardOptions).runner = runner
    options.view_as(SetupOptions).save_main_session = False
    return options


def _option_classes(base: type[PipelineOptions]) -> Iterator[type[PipelineOptions]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _option_classes(cls)


def _spellings(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings]


def _suggestion(flag: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(flag.partition("=")[0], known, n=1)
    return f"Did you mean {close[0]}?" if close else "teachonce's own flags stand before `--`"
