"""`teachonce VERB`: one command, a verb per job. Each verb lives with its half and is imported only when asked for.

A wrong flag, path or model is one line on stderr and exit status 2; any other failure one line and its own status.
`--traceback` anywhere on the line shows where an error came from.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import resource
import sys
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

# Before another module of ours is compiled: where files may not be large, Python cuts its bytecode unseen, and trips
# over it at every later start.
if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
    sys.dont_write_bytecode = True

from schemas.cli.process import (
    DONE,
    USAGE,
    ended_by_signals,
    flush_output,
    leave_within,
    plain_streams,
    reason_of,
    status_of,
)
from schemas.cli.run_report import expected_report, fail_json, fail_report
from schemas.cli.terminal import guarded_streams, print_lines
from schemas.cli.versions import versions
from schemas.errors import UsageError, nearest
from schemas.printable import printable

_LAST_SECONDS = 10.0
"""After a signal, what threads of libraries are given to end."""


class Verb(NamedTuple):
    """Where a verb lives, which extra brings it, what it does, and where its flags are known without its half.

    A module of flags has a function of the verb's name, which refuses a wrong line, or prints the help and leaves,
    before a second and a gigabyte go into torch, Beam and transformers.
    """

    module: str
    extra: str
    purpose: str
    flags: str | None = None


VERBS = {
    "precompute": Verb(
        "pipelines.cli.precompute",
        "pipelines",
        "run the teacher over a corpus, into a cache",
        "pipelines.cli.run_flags",
    ),
    "plan": Verb(
        "pipelines.cli.plan",
        "pipelines",
        "what a precompute would do and cost; writes nothing",
        "pipelines.cli.run_flags",
    ),
    "inspect": Verb(
        "schemas.cli.inspect_and_verify",
        "",
        "show what a cache holds; with --corpus, what of a corpus is supervised",
    ),
    "verify": Verb(
        "schemas.cli.inspect_and_verify",
        "",
        "check every byte, count and id; with --teacher, the values; or --repair",
    ),
    "report": Verb("schemas.cli.report", "report", "draw a page on a cache, on students, or on both"),
    "export": Verb("schemas.cli.export", "", "write a cache as plain Parquet, for other tools"),
    "compact": Verb(
        "pipelines.cli.upkeep",
        "pipelines",
        "merge the small shards of many runs into full ones",
        "pipelines.cli.upkeep_flags",
    ),
    "thin": Verb(
        "pipelines.cli.thin",
        "pipelines",
        "make a smaller cache from a larger one",
        "pipelines.cli.upkeep_flags",
    ),
    "merge": Verb(
        "pipelines.cli.merge",
        "pipelines",
        "write the join of several teachers' caches as one cache",
        "pipelines.cli.upkeep_flags",
    ),
    "forget": Verb(
        "pipelines.cli.upkeep",
        "pipelines",
        "erase documents or examples, and keep them out",
        "pipelines.cli.upkeep_flags",
    ),
    "vacuum": Verb("schemas.cli.vacuum", "", "delete what no kept version needs"),
    "train": Verb("trainer.cli.commands", "trainer", "distil a student from a cache", "trainer.cli.flags"),
    "sweep": Verb(
        "trainer.cli.sweep",
        "trainer,sweep",
        "search over losses, rates and students, by one cache",
        "trainer.cli.sweep_flags",
    ),
    "evaluate": Verb(
        "trainer.cli.commands",
        "trainer",
        "measure a student on a cache's held-out part",
        "trainer.cli.flags",
    ),
}


@guarded_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status."""
    plain_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return DONE if arguments else USAGE
    if arguments[0] == "--version":
        print_lines(*versions())
        return DONE
    # Libraries warn while they are imported; an error of ours is one line.
    logging.basicConfig(level=logging.ERROR)
    report = expected_report(arguments[0], arguments[1:])
    with ended_by_signals():
        try:
            status = run(arguments[0], arguments[1:])
            flush_output()
            return status
        except (Exception, KeyboardInterrupt) as error:
            fail_report(report, error)
            fail_json(arguments[1:], error)
            if traceback:
                raise
            with contextlib.suppress(OSError):
                sys.stderr.write(printable(f"teachonce {arguments[0]}: {reason_of(error)}") + "\n")
            if argv is None and isinstance(error, KeyboardInterrupt):
                leave_within(_LAST_SECONDS, status_of(error))
            return status_of(error)


def run(name: str, arguments: list[str]) -> int:
    """Runs the verb `name`.

    Raises:
        UsageError: there is no such verb, or its half is not installed.
    """
    if name not in VERBS:
        raise UsageError(
            "no such verb",
            expected=", ".join(VERBS),
            got=name,
            do=f"{nearest(name, VERBS)}See `teachonce --help`",
        )
    verb = VERBS[name]
    if name == "verify" and any(argument.startswith("--teacher") for argument in arguments):
        verb = Verb("pipelines.cli.precompute", "pipelines", verb.purpose, "pipelines.cli.run_flags")
    if name == "inspect" and any(argument.startswith("--corpus") for argument in arguments):
        flags = "pipelines.cli.inspect_flags"
        verb = Verb("pipelines.cli.inspect_corpus", "pipelines", verb.purpose, flags)
    try:
        if verb.flags is not None:
            getattr(importlib.import_module(verb.flags), name)(arguments)
        module = importlib.import_module(verb.module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name} needs the package {error.name}, which is not installed",
            do=f"pip install 'teachonce[{verb.extra}]'",
        ) from error
    result: int = getattr(module, name)(arguments)
    return result


def usage() -> str:
    """The text of `teachonce --help`."""
    verbs = "\n".join(f"  {name:<11} {verb.purpose}" for name, verb in VERBS.items())
    return textwrap.dedent("""\
        teachonce: the teacher runs once, students train many times.

        usage: teachonce VERB [flags]

        {verbs}

        A first round, from text to a student:
          teachonce precompute --corpus 'corpus/*.jsonl.zst' --teacher ./teacher --task causal-lm --cache ./cache
          teachonce inspect ./cache
          teachonce train --cache ./cache --student student.json --losses kl=1.0 --output_dir ./student
          teachonce evaluate --cache ./cache --student ./student

        `teachonce VERB --help` explains each verb, with examples. --traceback shows where an error came from,
        --version what is installed.
        Exit status: 0 done, 1 failed, 2 wrong flag, path or model, 3 too many documents rejected, 4 out of time,
        128 and its number by a signal (130 Ctrl-C, 143 SIGTERM): docs/exit-statuses.md
        """).format(verbs=verbs)


if __name__ == "__main__":
    sys.exit(main())
