"""`--report FILE`: one JSON object of a run, there whatever becomes of the run.

From its start on the file says `"outcome": "running"`; at its end what the run did, or why it failed: a wrong flag, a
signal, an error that nobody foresaw. So last night's success never stands for tonight. Only a process that is killed
outright leaves `running`, with its host and process number. The file is replaced whole.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.cli.process import reason_of, status_of
from schemas.cli.terminal import print_json
from schemas.errors import UsageError

VERBS = ("precompute", "plan")
"""Verbs with a `--report`."""
_FLAG = "--report"
_FINISHED: set[str] = set()
"""Reports of this process that say how their run ended."""


def expected_report(verb: str, arguments: Sequence[str]) -> str | None:
    """The file that a command line names, whether or not it can be parsed; of several the last."""
    own = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    if verb not in VERBS or "--help" in own or "-h" in own:
        return None
    found = [word.partition("=")[2] for word in own if word.startswith(f"{_FLAG}=")]
    found += [value for flag, value in itertools.pairwise(own) if flag == _FLAG]
    path = found[-1] if found else None
    _FINISHED.discard(path or "")
    return path


def begin_report(path: str | None) -> None:
    """Says that a run lives.

    Raises:
        UsageError: the file cannot be written.
    """
    if path is None:
        return
    if not Path(path).absolute().parent.is_dir():
        raise UsageError("--report: no such folder", where=path)
    if Path(path).exists() and not Path(path).is_file():
        raise UsageError("--report must be a file", where=path)
    try:
        _write(path, {"outcome": "running", "status": None, "reason": None})
    except OSError as error:
        raise UsageError("--report cannot be written", where=path, got=error.strerror) from error


def finish_report(path: str | None, body: Mapping[str, Any]) -> None:
    """Says what the run did. `body` has the run's numbers, beside `outcome` and `status`."""
    if path is not None:
        _write(path, body)
        _FINISHED.add(path)


def fail_report(path: str | None, error: BaseException) -> None:
    """Says why the run failed; nothing where it had been done when the error came, or where no report can be."""
    if path is None or path in _FINISHED or (Path(path).exists() and not Path(path).is_file()):
        return
    with contextlib.suppress(OSError):
        _write(path, _failed(error))


def _failed(error: BaseException) -> dict[str, Any]:
    outcome = "ended" if isinstance(error, KeyboardInterrupt) else "failed"
    return {"outcome": outcome, "status": status_of(error), "reason": reason_of(error)}


def fail_json(arguments: Sequence[str], error: BaseException) -> None:
    """Says the same as the one object that was asked for, where the verb has not printed its own."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    first = os.environ.get("RANK", "0") == "0"  # of those that torchrun starts
    if "--json" in own and first and not getattr(error, "is_told", False):
        with contextlib.suppress(OSError, ValueError):
            print_json(_failed(error))


def _write(path: str, body: Mapping[str, Any]) -> None:
    """Replaces the file; a link stays one."""
    target = Path(path).resolve()
    part = target.with_name(f"{target.name}.part-{secrets.token_hex(4)}")
    who = {"host": socket.gethostname(), "process": os.getpid(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    try:
        part.write_text(json.dumps({**body, **who}, indent=2) + "\n", encoding="utf-8")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
