"""Files of a data set on the Hugging Face hub: `hf://datasets/OWNER/NAME[@REVISION]/FILES`, by the hub's own client.

Beam's filesystems know no such place, and `datasets` is not needed: what is read is the Parquet, JSONL, CSV or text
files of the repository, as from any store, in blocks of 8 MiB and never to a disk. A revision is resolved to its
commit when files are listed, so that all workers read one state. A block of another length than was asked for is an
error: the client takes what a server that ignores ranges answers.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable
from typing import IO, Any, cast

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from schemas.errors import UsageError, one_line
from schemas.network import HUB_SCHEME, refuse_unreachable_files

_BLOCK_BYTES = 8 * 2**20
_SHOWN = 8
_FORM = "hf://datasets/OWNER/NAME[@REVISION]/FILES, where FILES may have * and **"
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
"""What the client's HTTP library raises, whichever it is (httpx, httpx2): no `OSError` where nobody answers."""


def is_on_hub(path: str) -> bool:
    """Whether a file is named by its place on the hub."""
    return path.startswith(HUB_SCHEME)


def matched(pattern: str) -> dict[str, int]:
    """The bytes of each file that a pattern matches; names hold the commit.

    Raises:
        UsageError: it names no data set, the hub cannot be reached or has none of that name, or nothing matches.
    """
    if not pattern.startswith(f"{HUB_SCHEME}datasets/") or pattern.count("/") < 5:
        raise UsageError("--corpus names no files of a data set", where=pattern, expected=_FORM)
    refuse_unreachable_files("--corpus", [pattern])
    hub = HfFileSystem(skip_instance_cache=True)  # what was there an hour ago is not asked of
    try:
        place = hub.resolve_path(pattern)
        repository, revision = str(getattr(place, "repo_id", "")), getattr(place, "revision", None)
        commit = HfApi().dataset_info(repository, revision=revision).sha
        root = f"datasets/{repository}@{commit}"
        found = cast("dict[str, Any]", hub.glob(posixpath.join(root, place.path), detail=True))
        sizes = {name: int(file["size"]) for name, file in found.items() if file["type"] == "file"}
        shown = [] if sizes else [posixpath.basename(str(name)) for name in hub.ls(root, detail=False)]
    except (OSError, ValueError, NotImplementedError, HFValidationError, TRANSPORT_ERROR) as error:
        raise UsageError(
            "--corpus cannot be listed on the hub",
            where=pattern,
            got=one_line(error).rstrip("."),
            do="Check the name; a data set that is not public needs HF_TOKEN",
        ) from error
    if not sizes:
        raise UsageError(
            "--corpus matches no file of the data set",
            where=pattern,
            expected=f"files of it; at its top are {', '.join(shown[:_SHOWN]) or 'none'}",
            do="Quote globs on the command line; ** is any folder",
        )
    return {f"{HUB_SCHEME}{name}": size for name, size in sizes.items()}


def opened(path: str) -> IO[bytes]:
    """A file for reading, at any place.

    Raises:
        OSError: the hub does not give it.
    """
    file = HfFileSystem().open(path, "rb", block_size=_BLOCK_BYTES)
    file.name = path
    file.cache.fetcher = _whole(file.cache.fetcher, path)
    return io.BufferedReader(file)  # whose lines may be bounded


def _whole(fetch: Callable[[int, int], bytes], path: str) -> Callable[[int, int], bytes]:
    """A block has as many bytes as were asked for."""

    def checked(start: int, end: int) -> bytes:
        data = fetch(start, end)
        if len(data) != end - start:
            raise OSError(f"bytes {start} to {end} of {path} were asked for, and {len(data)} came")
        return data

    return checked
