"""`evaluate --save`: what was measured, beside the student that it was measured of."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.cache import Cache
from schemas.errors import UsageError
from schemas.reports.evaluations import EVALUATION_FORMAT, Closer, Evaluation
from trainer.checkpoints.records import RECORD_NAME, Manifest, seal_of


def check_place(student: str) -> str:
    """The seal of the finished student in this folder, before anything is measured.

    Raises:
        UsageError: the folder holds none; a checkpoint is none, and holds its own files alone.
    """
    manifest = Manifest.load(student)
    if manifest is None or not manifest.finished:
        raise UsageError(
            "--save keeps what it measured beside a student that `train` has finished",
            where=student,
            got="no record of one" if manifest is None else "a checkpoint, which holds its own files alone",
            do="Name an --output_dir, or leave --save out",
        )
    return seal_of(student)


def save_evaluation(
    student: str, seal: str, cache: Cache, evaluated: Mapping[str, Any], closer: Closer | str
) -> Path:
    """Writes the file that `teachonce report` reads.

    Raises:
        UsageError: it cannot be written; or the student was replaced while it was measured.
    """
    if check_place(student) != seal:
        raise UsageError(
            "the student was trained anew while it was measured", where=Path(student) / RECORD_NAME
        )
    found, why = ((), closer) if isinstance(closer, str) else ((closer,), "")
    return Evaluation(
        format=EVALUATION_FORMAT,
        seal=seal,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        cache=cache.storage.root,
        cache_version=cache.version,
        evaluated=evaluated,
        closer=found,
        no_closer=why,
    ).save(student)
