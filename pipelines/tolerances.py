"""What a run tolerates: how many documents may be rejected, and how many rows may leave. Rejects are written here.

Both are checked twice at most: once the corpus has been read, before the teacher starts, and at the end, with what the
teacher could not score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.config import TeacherConfig
from pipelines.rejects import Reject, fault
from pipelines.versions import shared_versions
from schemas.cache import REJECTS_FOLDER
from schemas.errors import TooManyMissingError, TooManyRejectsError
from schemas.fingerprint import Fingerprint
from schemas.printable import printable
from schemas.spec import Header
from schemas.storage.storage import Storage

MAX_REJECT_LINES = 10_000
"""Written lines for each reason; the counts beside them are full."""

NOT_FINITE, TOO_LARGE = "not_finite", "too_large"
NO_TOKENS, BAD_INPUT, BAD_ANSWER = "no_tokens", "input_out_of_range", "answer_out_of_range"
"""What breaks a rule of the cache's own reader."""
BY_TEACHER = (NOT_FINITE, TOO_LARGE, NO_TOKENS, BAD_INPUT, BAD_ANSWER)
"""Reasons of the teacher: such documents are remembered."""

LINES, READ_AS = "lines:", "label:"
"""Counts of the lines of a piece, `lines:START:FILE`, and of labels by how they were read."""

RejectLine = tuple[Any, ...]
"""A `Reject`; of the teacher's its first four parts."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every step knows of the run. Plain values: it is pickled."""

    id: str
    root: str
    base: int
    """The version that the run began with; `NO_VERSION` for a new cache."""
    header: Header
    teacher: TeacherConfig
    provenance: Mapping[str, str]
    max_reject_fraction: float
    started: float
    fingerprint: Fingerprint | None = None
    """What the driver found the teacher to be: other files than the header's may say the same."""
    max_prune_fraction: float = 1.0
    live_rows: int = 0
    """Of the version that the run began with."""
    may_leave: bool = False
    """Whether live rows may leave: then more must be known of them."""
    forgotten: tuple[str, ...] = ()
    """Files of the cache's list of what may not come back."""
    versions: Mapping[str, str] = field(default_factory=shared_versions)
    """What every worker must have too."""


class Gate(NamedTuple):
    """What is known once the corpus has been read, and before the teacher starts."""

    num_units: int
    prune_withheld: bool
    """Some records are so damaged that they could be any document: nothing is pruned tonight."""


def check_rejects(run: Run, counts: Mapping[str, int], lines: Sequence[RejectLine]) -> None:
    """Fails the run, with its rejects written, when more documents were rejected than it tolerates.

    Raises:
        TooManyRejectsError: naming the commonest reason, its first line and the file.
    """
    if too_many_rejects(run, counts) is None:
        return
    where = f"{run.root}/{write_rejects(run, lines, counts)}"
    error = too_many_rejects(run, counts, where=where, lines=lines)
    assert error is not None
    raise error


def too_many_rejects(
    run: Run, counts: Mapping[str, int], where: str | None = None, lines: Sequence[RejectLine] = ()
) -> TooManyRejectsError | None:
    """Why a run with these counts fails, its rejects standing in `where`; None where it tolerates them."""
    rejects = rejects_of(counts)
    documents, total = counts.get("documents", 0), sum(rejects.values())
    if total <= run.max_reject_fraction * documents:
        return None
    reason = max(rejects, key=lambda key: rejects[key])
    first = min(
        (Reject(*line) for line in lines if line[0] == reason), key=lambda one: one[1:3], default=None
    )
    do = "Mend the corpus or the field flags, or raise --max_reject_fraction"
    if reason in BY_TEACHER:
        do = "Mend what keeps the teacher from scoring them and say --retry_rejects, or raise --max_reject_fraction"
    return TooManyRejectsError(
        f"{total:,} of {documents:,} documents are rejected, most as {reason}; nothing was committed",
        where=where,
        expected=f"at most {run.max_reject_fraction:.2%}",
        got=f"{total / documents:.2%}",
        do=do if first is None else f"The first: {told(first, Lines(counts).number(first))}. {do}",
    )


def told(reject: Reject, line: int | None) -> str:
    """Where a reject stands, and what is wrong there."""
    place = f"{reject.file} line {line}" if line else f"{reject.file} at {reject.offset:,}"
    found = fault(reject.field, reject.expected, reject.got)
    return printable(f"{place}: {found}" if found else place)


class Lines:
    """Numbers of lines in whole files: they are counted piece by piece, and added up here."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._pieces: dict[str, dict[int, int]] = {}
        for name, count in counts.items():
            if name.startswith(LINES):
                start, _, file = name.removeprefix(LINES).partition(":")
                self._pieces.setdefault(file, {})[int(start)] = count

    def number(self, reject: Reject) -> int | None:
        """A reject's line, from 1; None where it is not known."""
        if not reject.line:
            return None
        pieces = self._pieces.get(reject.file, {})
        own = max((start for start in pieces if start <= reject.offset), default=0)
        return reject.line + sum(count for start, count in pieces.items() if start < own)


def check_missing(run: Run, counts: Mapping[str, int]) -> None:
    """Fails the run when more rows would be pruned than it tolerates.

    Raises:
        TooManyMissingError: with both numbers.
    """
    error = too_many_missing(run, counts)
    if error is not None:
        raise error


def too_many_missing(run: Run, counts: Mapping[str, int]) -> TooManyMissingError | None:
    """Why a run with these counts fails; None where it tolerates them."""
    pruned = counts.get("pruned_rows", 0)
    if pruned <= run.max_prune_fraction * run.live_rows:
        return None
    return TooManyMissingError(
        f"--prune would remove {pruned:,} of {run.live_rows:,} rows; nothing was committed",
        where=run.root,
        expected=f"at most {run.max_prune_fraction:.2%}",
        got=f"{pruned / run.live_rows:.2%}",
        do="Check that --corpus names all of the corpus, or raise --max_prune_fraction",
    )


def rejects_of(counts: Mapping[str, int]) -> dict[str, int]:
    """Rejected documents by reason, from a run's counts."""
    return {k.removeprefix("reject:"): n for k, n in sorted(counts.items()) if k.startswith("reject:")}


def labels_of(counts: Mapping[str, int]) -> dict[str, int]:
    """Documents by how their labels were read, from a run's counts."""
    return {k.removeprefix(READ_AS): n for k, n in sorted(counts.items()) if k.startswith(READ_AS)}


def write_rejects(run: Run, lines: Sequence[RejectLine], counts: Mapping[str, int]) -> str:
    """Writes at most `MAX_REJECT_LINES` a reason, in the corpus's order; returns the file's name."""
    written: dict[str, int] = {}
    out, numbers = [], Lines(counts)
    rejects = [Reject(*line) for line in lines]
    for reject in sorted(rejects, key=lambda one: (*one[:3], one.id or "")):
        written[reject.reason] = written.get(reject.reason, 0) + 1
        if written[reject.reason] <= MAX_REJECT_LINES:
            out.append(json.dumps({**reject._asdict(), "line": numbers.number(reject)}))
    name = f"{REJECTS_FOLDER}/{run.id}.jsonl"
    Storage.at(run.root).put(name, ("\n".join(out) + "\n").encode())
    return name
