"""Runs of the real command in processes of their own, to be killed: forked from one that has imported everything.

The parent's fork server loads torch, Beam and the pipelines once; a run then starts in a moment, so that hundreds can
be killed. Each child calls `teachonce.main`, as the command does, and writes down when the teacher begins and ends a
unit, so that a test can tell what was asked twice.
"""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import apache_beam.runners.portability.fn_api_runner
import torch
import transformers.models.llama.modeling_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

import teachonce
from pipelines.scoring.handler import UnitScorer
from schemas.storage import local_files
from schemas.storage.storage import Storage
from schemas.versions import commits

LAZY = (AutoModelForCausalLM, AutoTokenizer, apache_beam.runners, transformers.models.llama)
"""What a run imports when it first needs it: named here, so that it is imported before the fork."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pipelines.cli.precompute", "tests.chaos.child"])


def start(argv: list[str], log: Path, crash_at: int | None = None):
    """A process that runs the command; `crash_at` kills it at the n-th instant at which something becomes durable."""
    process = CONTEXT.Process(target=_main, args=(argv, str(log), crash_at))
    process.start()
    return process


def finish(process, seconds: float = 120.0) -> int:
    """The exit status of a process that ends by itself."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"still running after {seconds} s")
    return process.exitcode


def units(log: Path) -> list[tuple[str, list[str]]]:
    """`("begin" | "end", example ids)` in order."""
    if not log.exists():
        return []
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [tuple(json.loads(line)) for line in whole]


def instants(log: Path) -> int:
    """How many instants a run had at which something became durable."""
    return int(log.with_suffix(".instants").read_text())


def said(log: Path) -> str:
    """What the last run printed."""
    return log.with_suffix(".out").read_text()


def _main(argv: list[str], log: str, crash_at: int | None) -> None:
    torch.set_num_threads(1)
    out = os.open(Path(log).with_suffix(".out"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    _watch_units(log)
    seen = _watch_instants(crash_at)
    status = teachonce.main(argv)
    Path(log).with_suffix(".instants").write_text(str(seen[0]))
    os._exit(status)


def _watch_units(log: str) -> None:
    score = UnitScorer.score
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def told(scorer, unit, examples):
        ids = [example.id.hex() for example in examples]
        os.write(file, json.dumps(["begin", ids]).encode() + b"\n")
        line = score(scorer, unit, examples)
        os.write(file, json.dumps(["end", ids]).encode() + b"\n")
        return line

    UnitScorer.score = told


def _watch_instants(crash_at: int | None) -> list[int]:
    """Counts the instants before and after everything that makes something durable; dies at one of them."""
    seen = [0]

    def tick():
        seen[0] += 1
        if seen[0] == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function):
        def call(*arguments, **named):
            tick()
            result = function(*arguments, **named)
            tick()
            return result

        return call

    os.fsync = watched(os.fsync)
    commits._write = watched(commits._write)
    Storage.delete = watched(Storage.delete)
    local_files.write = watched(local_files.write)
    local_files._appears = watched(local_files._appears)
    return seen
