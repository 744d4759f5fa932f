"""The folder of an export, and its mark: which files there are to be, and whether all of them are there.

The mark `_teachonce_export.json` stands first and says `"complete": false`; when all files are whole and durable it is
replaced by one that says true and counts them. So who finds it knows, and an export that was killed goes on: a file has
its name only once it is whole, and what has one is kept. Nothing in the folder is followed or deleted that an export
did not write, by its name.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import CacheError, UsageError, advice, one_line
from schemas.storage import local_files

MARK = "_teachonce_export.json"
_OURS = re.compile(r"(?:[0-9a-f]{32}\.parquet|_teachonce_export\.json)(?P<part>\.part(?:-[0-9a-f]{8})?)?")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The folder is right, and the disk or a limit is not."""
_AGAIN = "Say --overwrite to write it anew, or name another folder"


def begin(out: str | Path, asked: Mapping[str, Any], *, overwrite: bool) -> Path:
    """Makes a folder ready for an export: a new one, an empty one, or one where the same export was begun.

    `asked` is what decides the files. With `overwrite` what another export wrote goes first.

    Raises:
        UsageError: it holds something else, or cannot be written.
        CacheError: there is no room.
    """
    if "://" in str(out):
        raise UsageError("an export goes to a local folder", got=out)
    folder = Path(out)
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        found = {path.name: _OURS.fullmatch(path.name) for path in folder.iterdir()}
        parts = [name for name, ours in found.items() if ours and ours["part"]]
        whole = sorted(found.keys() - {*parts, MARK})
        before = _mark(folder)
        if others := [name for name in whole if not found[name]]:
            raise UsageError("an export goes to a new or empty folder", where=folder, got=others[0])
        same = before is not None and before["asked"] == asked
        if whole and not same and not overwrite:
            raise _another(folder, whole[0], before, asked)
        if whole and not same:  # of neither, until what was is gone
            _put_mark(folder, {}, complete=False, files={})
        local_files.delete(str(folder), parts if same else [*parts, *whole])
        _put_mark(folder, asked, complete=False, files={})
    return folder


def finish(folder: Path, asked: Mapping[str, Any], files: Mapping[str, Mapping[str, int]]) -> None:
    """Says that an export is complete: each file's bytes and examples, by its name."""
    with told(folder):
        _put_mark(folder, asked, complete=True, files=files)


def is_whole(path: Path, schema: pa.Schema, rows: int) -> bool:
    """Whether a file is there, as an export before this one finished it."""
    with told(path.parent):
        try:
            local_files.size(str(path.parent), path.name)
            found = pq.ParquetFile(path)
        except (FileNotFoundError, pa.ArrowException):
            return False
        except OSError as error:
            if error.errno is None:  # Arrow's own, of a footer that is none
                return False
            raise
        with found:
            return bool(found.metadata.num_rows == rows and found.schema_arrow.equals(schema))


def write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Writes a file whole and durably, table by table."""
    part = path.with_name(f"{path.name}.part-{secrets.token_hex(4)}")
    with told(path.parent):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with told(path.parent), os.fdopen(descriptor, "wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table)
            file.flush()
            os.fsync(descriptor)
        with told(path.parent):
            part.rename(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """What the system refuses, as one line about the folder."""
    try:
        yield
    except OSError as error:
        got = error.strerror or one_line(error)
        kind = CacheError if error.errno in _NO_ROOM else UsageError
        raise kind("the folder cannot be written", where=folder, got=got, do=advice(error)) from error


def _mark(folder: Path) -> dict[str, Any] | None:
    """What an export before this one said of the folder; None where none did."""
    with suppress(FileNotFoundError, ValueError):
        found = json.loads(local_files.read(str(folder), MARK))
        if isinstance(found, dict) and isinstance(found.get("complete"), bool) and "asked" in found:
            return found
    return None


def _put_mark(
    folder: Path, asked: Mapping[str, Any], *, complete: bool, files: Mapping[str, Mapping[str, int]]
) -> None:
    text = json.dumps({"complete": complete, "asked": asked, "files": files}, indent=2)
    local_files.write(str(folder), MARK, text.encode() + b"\n", replace=True)


def _another(
    folder: Path, name: str, before: Mapping[str, Any] | None, asked: Mapping[str, Any]
) -> UsageError:
    if before is None:
        return UsageError("an export goes to a new or empty folder", where=folder, got=name, do=_AGAIN)
    state = "a whole export" if before["complete"] else "an unfinished export"
    what = f"the folder holds {state} of something else"
    return UsageError(what, where=folder, do=_AGAIN, **_differs(before, asked))


def _differs(before: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for then and now, where it differs."""
    then = before["asked"] if isinstance(before["asked"], dict) else {}
    names = [name for name in asked if then.get(name) != asked[name]]
    return {
        "expected": ", ".join(f"{name} {asked[name]}" for name in names),
        "got": ", ".join(f"{name} {then.get(name)}" for name in names),
    }
