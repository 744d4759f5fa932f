"""Where a teacher lies: a folder, or a hub name, which is resolved to a commit and downloaded once."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from schemas.cli.progress import downloaded, printed
from schemas.errors import UsageError
from schemas.network import why_no_hub


def locate(path: str) -> tuple[str, str]:
    """The folder, and what people call it. Without a network only what was downloaded before is found, at once.

    Raises:
        UsageError: there is no such folder or model.
    """
    folder = Path(path)
    if folder.is_dir():
        return str(folder.resolve()), folder.resolve().name
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UsageError("--teacher: no such folder", where=path)
    name, _, revision = path.partition("@")
    unreachable = why_no_hub()
    try:
        with printed(lambda: downloaded(name), enabled=unreachable is None):
            found = Path(
                snapshot_download(name, revision=revision or None, local_files_only=unreachable is not None)
            )
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise UsageError(
            "--teacher is neither a folder nor a model of the hub",
            where=path,
            got=unreachable or str(error).strip().splitlines()[0],
        ) from error
    return str(found), f"{name}@{found.name}"
