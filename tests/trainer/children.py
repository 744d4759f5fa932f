"""The real command in a process of its own, to be killed: forked from one that has imported everything."""

import gc
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import transformers.models.llama.modeling_llama

import teachonce

LAZY = (transformers.models.llama,)
"""Imported before the fork."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["trainer.cli.commands", "tests.trainer.children"])
_SECONDS = 120.0


def start(argv: list[str], log: Path, crash_at: int | None = None, file_bytes: int | None = None) -> Any:
    """A process that runs the command; `crash_at` kills it at the n-th instant at which something is written."""
    process = CONTEXT.Process(target=_main, args=(argv, str(log), crash_at, file_bytes, dict(os.environ)))
    process.start()
    return process


def finish(process: Any, seconds: float = _SECONDS) -> int:
    """The exit status; negative where a signal ended it. What runs longer hangs."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"still running after {seconds} s")
    return int(process.exitcode)


def run(argv: list[str], log: Path, *, seconds: float = _SECONDS, **keywords: Any) -> int:
    return finish(start(argv, log, **keywords), seconds)


def instants(log: Path) -> int:
    """How many instants a run had at which something was written."""
    return int(log.with_suffix(".instants").read_text())


def _main(
    argv: list[str], log: str, crash_at: int | None, file_bytes: int | None, environ: dict[str, str]
) -> None:
    os.environ.update(environ)  # what is forked from has that of its own start
    torch.set_num_threads(1)
    gc.freeze()  # what was imported before the fork is no garbage: nobody need look
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    seen = _watch(crash_at)
    if file_bytes is not None:
        sys.dont_write_bytecode = True  # it would be cut
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    status = teachonce.main(argv)
    Path(log).with_suffix(".instants").write_text(str(seen[0]))
    os._exit(status)


def _watch(crash_at: int | None) -> list[int]:
    """Counts the instants before and after everything that writes; dies at one of them."""
    seen = [0]

    def tick() -> None:
        seen[0] += 1
        if seen[0] == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            tick()
            result = function(*arguments, **named)
            tick()
            return result

        return call

    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, watched(getattr(os, name)))
    torch.save = watched(torch.save)
    return seen
