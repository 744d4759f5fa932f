"""Folders that are whole or not there: checkpoints, and the finished student.

Each is written under a temporary name beside its place, its files and folder are synced, its manifest (the hashes of
all files) is written last and synced, and then it is renamed. So kill -9, a full disk or a power failure leaves what
was whole before, and a leftover of ours that the next run clears up or, where it was sealed already, puts in its
place. The finished student's files go one by one to the output folder, the manifest last: until it stands there, the
sealed leftover says how the move is completed.

Costs one SHA-256 pass (about 1 GB/s) over what is saved, and again over what is loaded.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from schemas.errors import UsageError
from schemas.storage.durable import sync
from trainer.checkpoints.records import RECORD_NAME, Manifest, Record

OWN_PREFIX = ".teachonce-"
SAVING = OWN_PREFIX + "saving-"
FINISHED = OWN_PREFIX + "finished"
_REPLACED = OWN_PREFIX + "replaced-"
_CHECKPOINT = re.compile(r"checkpoint-[0-9]+")


def checkpoint_name(step: int) -> str:
    """The folder's name, which transformers knows too."""
    return f"checkpoint-{step}"


def seal(folder: Path, manifest: Manifest) -> None:
    """Makes a folder whole: everything in it is on the disk, and its manifest lists it."""
    names = _names(folder)
    for name in names:
        sync(folder / name)
    manifest = replace(manifest, saved=time.time(), files={name: _sha256(folder / name) for name in names})
    manifest.save(folder)
    sync(folder / RECORD_NAME)
    for inner in {(folder / name).parent for name in names} | {folder}:
        sync(inner)


def check_whole(folder: Path) -> Manifest:
    """The manifest of a folder whose every file is what was written.

    Raises:
        UsageError: naming the file that is missing, changed or too many; or the manifest.
    """
    manifest = Manifest.load(folder)
    if manifest is None:
        raise UsageError(f"this is no checkpoint of teachonce: it has no {RECORD_NAME}", where=folder)
    check_files(folder, manifest)
    found = set(_names(folder))
    if extra := sorted(found - set(manifest.files)):
        raise UsageError("a checkpoint holds a file that is not its own", where=folder / extra[0])
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Whether the files of a manifest are what was written.

    Raises:
        UsageError: naming the first that is not.
    """
    for name, wanted in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise UsageError("a file of this checkpoint is missing", where=path)
        if _sha256(path) != wanted:
            raise UsageError("a file of this checkpoint is not what was written", where=path)


def publish(temporary: Path, place: Path) -> None:
    """Puts a sealed folder in its place, instead of an older one if there is one."""
    old = place.with_name(_REPLACED + place.name)
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
    temporary.rename(place)
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def finish(temporary: Path, output: Path) -> None:
    """Moves a sealed student's files to the output folder; may be called again where it was interrupted."""
    manifest = Manifest.load(temporary)
    assert manifest is not None, temporary
    before = _readable(output)
    (output / RECORD_NAME).unlink(missing_ok=True)
    sync(output)
    for name in () if before is None else set(before.files) - set(manifest.files):
        (output / name).unlink(missing_ok=True)
    for name in manifest.files:
        if (temporary / name).exists():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).replace(output / name)
    (temporary / RECORD_NAME).replace(output / RECORD_NAME)
    sync(output)
    shutil.rmtree(temporary, ignore_errors=True)


def clear_up(output: Path) -> None:
    """Completes what a killed run had sealed and not yet moved, and removes its other leftovers."""
    if (output / FINISHED / RECORD_NAME).exists() and _readable(output / FINISHED) is not None:
        finish(output / FINISHED, output)
    for leftover in output.glob(SAVING + "*"):
        manifest = _readable(leftover)
        place = output / checkpoint_name(-1 if manifest is None else manifest.step)
        if manifest is not None and not place.exists() and _is_whole(leftover):
            publish(leftover, place)
    for leftover in output.glob(OWN_PREFIX + "*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)


def rotate(output: Path, limit: int | None, keep: Sequence[str | None]) -> None:
    """Removes the oldest checkpoints but `limit`, the newest and those to keep; never half of one."""
    found = newest_first(output)
    kept = {Path(name).name for name in keep if name} | {path.name for path in found[:1]}
    limit = len(found) if limit is None else max(limit, len(kept))
    remaining = len(found)
    for path in reversed(found):
        if remaining > limit and path.name not in kept:
            remove(path)
            remaining -= 1


def remove(folder: Path) -> None:
    """Removes a checkpoint: first its name, then its files."""
    old = folder.with_name(_REPLACED + folder.name)
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def checkpoints(output: Path) -> list[Path]:
    """Folders that are named as checkpoints."""
    if not output.is_dir():
        return []
    return [path for path in sorted(output.iterdir()) if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]


def newest_first(output: Path) -> list[Path]:
    """The checkpoints by the time at which they were saved; without those whose manifest cannot be read."""
    dated = [
        (manifest.saved, manifest.step, path) for path in checkpoints(output) if (manifest := _readable(path))
    ]
    return [path for _, _, path in sorted(dated, reverse=True)]


def run_of(folder: Path) -> Record | None:
    """The record of a checkpoint or student, if it can be read."""
    try:
        return Record.load(folder)
    except UsageError:
        return None


def _readable(folder: Path) -> Manifest | None:
    try:
        return Manifest.load(folder)
    except UsageError:
        return None


def _is_whole(folder: Path) -> bool:
    try:
        check_whole(folder)
    except UsageError:
        return False
    return True


def _names(folder: Path) -> list[str]:
    """Every file below a folder but the manifest."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    return sorted(name for name in found if name != RECORD_NAME)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
