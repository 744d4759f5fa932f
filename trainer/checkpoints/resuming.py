"""What a run goes on from: its own newest whole checkpoint, a checkpoint that was named, or nothing.

Newest goes by the time of saving. A checkpoint that is not whole is left out with a notice where an older one is
whole; a folder with checkpoints of several runs is refused, whoever wrote them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from schemas.errors import UsageError
from trainer.checkpoints.output_folder import refuse_held, refuse_model_of_others
from trainer.checkpoints.records import Manifest, Record
from trainer.checkpoints.whole_folders import check_files, check_whole, checkpoints, newest_first

_log = logging.getLogger(__name__)

_NO = (None, False, "false", "False")
_LAST = (True, "true", "True", "last")


class Beginning(NamedTuple):
    """Where a run begins: from nothing, if both are None."""

    checkpoint: Path | None
    manifest: Manifest | None
    """Of the checkpoint; or of the finished student, where there is no checkpoint."""
    finished: Manifest | None = None
    """Of the student that stands in the output folder."""

    @property
    def record(self) -> Record | None:
        return None if self.manifest is None else self.manifest.record


def choose(asked: Any, folder: Path, *, overwrite: bool) -> Beginning:
    """What `--resume_from_checkpoint` means in an output folder.

    Raises:
        UsageError: there is nothing whole to go on from, or the folder holds what is another's.
    """
    if asked in _NO:
        if not overwrite:
            refuse_held(folder)
        return Beginning(None, None)
    if asked not in (*_LAST, "auto"):
        return _named(Path(asked), folder)
    finished = _finished(folder)
    _one_run(folder, [finished])
    refuse_model_of_others(folder)
    found = _newest_whole(folder)
    if found is not None:
        return Beginning(*found, finished)
    if finished is not None:
        return Beginning(None, finished, finished)
    if asked == "auto":
        refuse_held(folder)
        return Beginning(None, None)
    raise UsageError("there is no checkpoint to resume from", where=folder)


def check_finished(folder: Path, manifest: Manifest) -> bool:
    """Whether the student that stands in the folder is what was written; says so where it is not."""
    try:
        check_files(folder, manifest)
    except UsageError as error:
        _log.warning("the finished student is written again: %s", error)
        return False
    return True


def _named(checkpoint: Path, folder: Path) -> Beginning:
    if not checkpoint.is_dir():
        raise UsageError("there is no such checkpoint", where=checkpoint)
    manifest = Manifest.load(checkpoint)
    if manifest is not None and manifest.finished:
        raise UsageError(
            "this is a finished student, no checkpoint: it holds no optimizer",
            where=checkpoint,
            do="Name one of its checkpoints, or start a new run with it as the --student",
        )
    manifest = check_whole(checkpoint)
    standing = _finished(folder)
    refuse_model_of_others(folder)
    _one_run(folder, [manifest, standing])
    return Beginning(checkpoint.resolve(), manifest, None)


def _finished(folder: Path) -> Manifest | None:
    try:
        return Manifest.load(folder)
    except UsageError as error:
        _log.warning("left out: %s", error)
        return None


def _newest_whole(folder: Path) -> tuple[Path, Manifest] | None:
    """The newest whole checkpoint; None where there are none at all."""
    reasons = []
    dated = newest_first(folder)
    undated = [path for path in checkpoints(folder) if path not in dated]
    for path in (*undated, *dated):
        try:
            found = path.resolve(), check_whole(path)
        except UsageError as error:
            reasons.append(error)
            continue
        for reason in reasons:
            _log.warning("left out: %s", reason)
        if reasons:
            _log.warning("going on from %s", path)
        return found
    if not reasons:
        return None
    raise UsageError(
        "no checkpoint is whole",
        where=folder,
        got=str(reasons[0]),
        do="Restore it from a copy, or start again in another --output_dir",
    )


def _one_run(folder: Path, others: Iterable[Manifest | None]) -> None:
    """Whether all that can be read in a folder is one run's.

    Raises:
        UsageError: naming the checkpoint of another run.
    """
    runs = {manifest.record.run: "the student" for manifest in others if manifest is not None}
    for path in newest_first(folder):
        manifest = Manifest.load(path)
        assert manifest is not None
        runs.setdefault(manifest.record.run, path.name)
    if len(runs) > 1:
        raise UsageError(
            "--output_dir holds checkpoints of more than one run",
            where=folder,
            got=", ".join(f"{place} of run {run[:8]}" for run, place in runs.items()),
            do="Move the others away, or name another folder",
        )
