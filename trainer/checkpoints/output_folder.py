"""Where a student may be written: into a folder of this run's own, and by one run at a time.

A folder that holds a model, a student or checkpoints that this run did not write is refused before anything is
opened; `--overwrite_output_dir` replaces them. Never replaced are a cache, and what the run begins with: the teacher,
the start of the student. The lock is the kernel's (`flock` on a file in the folder): kill -9 releases it. On NFS it
holds between machines only where the server passes locks on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from schemas.errors import UsageError, one_line
from trainer.checkpoints.records import RECORD_NAME
from trainer.checkpoints.whole_folders import checkpoints, remove, run_of

LOCK_NAME = "teachonce-lock.json"
_MAX_LOCK_CHARS = 300
_STUDENT_FILES = (
    *("config.json", "generation_config.json", "trainer_state.json", "training_args.bin", RECORD_NAME),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja"),
    *("model*.safetensors", "model.safetensors.index.json", "projections.safetensors"),
    *("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_config.json", "adapter_model.*"),
)
"""What `from_pretrained` would open: overwritten by a student, or wrong beside one."""
_MODEL_FILES = (
    *_STUDENT_FILES,
    *("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx"),
)
"""By what a folder is known to hold a model."""
_CACHE_FILES = ("_teachonce", "_delta_log")


def check_place(
    output: str, caches: Iterable[str], beginnings: Sequence[str | None], flag: str = "--output_dir"
) -> Path:
    """The folder as an absolute path; nothing is made yet.

    Raises:
        UsageError: it is a cache, what the run begins with, or no folder.
    """
    if "://" in output:
        raise UsageError(
            f"{flag} must be a local folder", got=output, do="Train to a disk and copy what is done"
        )
    try:
        folder = Path(output).resolve()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{flag} cannot be used", where=output, got=one_line(error)) from error
    if not existing.is_dir():
        raise UsageError(f"{flag} is, or lies below, a file", where=existing, do="Name a folder")
    for cache in caches:
        _refuse_cache(folder, cache, flag)
    for beginning in beginnings:
        _refuse_beginning(folder, beginning)
    return folder


def _refuse_cache(folder: Path, cache: str, flag: str) -> None:
    for path in (folder, *folder.parents):
        if any((path / name).exists() for name in _CACHE_FILES):
            raise UsageError(f"{flag} is, or lies in, a cache", where=path, do="Name another folder")
    if "://" not in cache and folder == Path(cache).expanduser().resolve():
        raise UsageError(f"{flag} is the cache", where=folder, do="Name another folder")


def _refuse_beginning(folder: Path, beginning: str | None) -> None:
    """Refuses the teacher's folder or the student's start, and a folder in which either would be replaced."""
    if not beginning or not os.path.exists(beginning):
        return
    begun = Path(beginning).resolve()
    taken = [path.resolve() for path in held(folder)]
    if folder == begun or any(begun.is_relative_to(path) for path in taken):
        raise UsageError(
            "--output_dir holds what this run begins with", where=begun, do="Name another folder"
        )


@contextmanager
def locked(folder: Path, flag: str = "--output_dir") -> Iterator[None]:
    """Makes the folder that a flag names; it is this process's alone while it lasts.

    Raises:
        UsageError: another run has it, or it cannot be written to.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{flag} cannot be written to", where=folder, got=one_line(error)) from error
    with file:
        _lock(file, folder, flag)
        try:
            yield
        finally:
            with contextlib.suppress(
                OSError
            ):  # the folder is gone, which the run tells; or the disk is read-only
                (folder / LOCK_NAME).unlink()
            if is_new:
                with contextlib.suppress(OSError):  # what was trained is there
                    folder.rmdir()


def _lock(file: TextIO, folder: Path, flag: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The run before us may have removed, as its last act, the file that we opened.
        is_gone = not os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK_NAME))
    except FileNotFoundError:
        is_gone = True
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise UsageError(f"{flag} cannot be locked", where=folder, got=one_line(error)) from error
        raise _taken(folder, flag, file.read(_MAX_LOCK_CHARS).strip()) from error
    if is_gone:
        raise _taken(folder, flag, "")
    try:
        file.truncate(0)
        began = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump({"host": socket.gethostname(), "process": os.getpid(), "began": began}, file)
        file.flush()
    except OSError as error:
        raise UsageError(f"{flag} cannot be written to", where=folder, got=one_line(error)) from error


def _taken(folder: Path, flag: str, holder: str) -> UsageError:
    return UsageError(
        f"another training writes into {flag}",
        where=folder,
        got=holder or None,
        do="Wait for its end, or name another folder",
    )


def held(folder: Path, patterns: Sequence[str] = _MODEL_FILES) -> list[Path]:
    """What of models and checkpoints a folder holds."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return [*sorted(found), *checkpoints(folder)]


def refuse_held(folder: Path) -> None:
    """For a run that starts.

    Raises:
        UsageError: the folder holds a model or checkpoints.
    """
    found = held(folder)
    if not found:
        return
    ours = run_of(folder) or next(filter(None, map(run_of, checkpoints(folder))), None)
    kind = (
        "a model that teachonce did not write"
        if ours is None
        else "a student of another run, or its checkpoints"
    )
    go_on = "" if ours is None else "say --resume_from_checkpoint auto to go on with that run, "
    raise UsageError(
        f"--output_dir holds {kind}",
        where=found[0],
        do=f"Name another folder, {go_on}or --overwrite_output_dir to replace it",
    )


def refuse_model_of_others(folder: Path) -> None:
    """For a run that goes on: beside its checkpoints only its own student may stand.

    Raises:
        UsageError: the folder holds a model that teachonce did not write.
    """
    found = [path for path in held(folder) if not path.is_dir()]
    if found and not (folder / RECORD_NAME).exists():
        raise UsageError(
            "--output_dir holds a model that teachonce did not write",
            where=found[0],
            do="Name another folder",
        )


def check_replaceable(folder: Path, teacher_bytes: object) -> None:
    """For a run that is to overwrite: whether the folder may be the cache's teacher, which has as many weights.

    Raises:
        UsageError: it may be.
    """
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    if sizes and run_of(folder) is None and sum(sizes) == teacher_bytes:
        raise UsageError(
            "--output_dir holds the cache's teacher, or a model of just its size",
            where=folder,
            do="Name another folder",
        )


def remove_held(folder: Path) -> None:
    """Removes a model and its checkpoints from a folder, and nothing else."""
    for path in held(folder, _STUDENT_FILES):
        if not path.is_dir() or path.is_symlink():
            path.unlink()
        elif run_of(path) is not None or (path / "trainer_state.json").exists():
            remove(path)


def check_space(folder: Path, parameters: int, *, saves_optimizer: bool) -> None:
    """Whether a student of so many float32 parameters, and a checkpoint with its optimizer, can be written at all.

    Raises:
        UsageError: the disk has less left, or files may not be as large.
    """
    largest = parameters * (8 if saves_optimizer else 4)
    needed = parameters * (16 if saves_optimizer else 4)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            "the disk of --output_dir is too full for a checkpoint and the student",
            where=folder,
            expected=f"{needed:,} bytes",
            got=f"{free:,}",
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < largest:
        raise UsageError(
            "files may not be as large as a checkpoint's",
            expected=f"{largest:,} bytes",
            got=f"ulimit -f of {limit:,}",
        )
