"""Where a teacher's files are: a folder, or a hub name, resolved to a commit once."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from schemas.errors import UsageError


def locate(path: str) -> tuple[str, str]:
    """A teacher's folder, and what people call it.

    Raises:
        UsageError: there is none.
    """
    folder = Path(path)
    if folder.is_dir():
        return str(folder.resolve()), folder.resolve().name
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UsageError("--teacher: no such folder", where=path)
    name, _, revision = path.partition("@")
    try:
        found = Path(snapshot_download(name, revision=revision or None))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise UsageError(
            "--teacher is neither a folder nor a model of the hub",
            where=path,
            got=str(error).strip().splitlines()[0],
        ) from error
    return str(found), f"{name}@{found.name}"
