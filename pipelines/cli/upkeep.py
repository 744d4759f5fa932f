"""The verbs `compact` and `forget`: flags in, one documented call, lines and exit status out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cli import upkeep_flags
from pipelines.upkeep.compaction import CompactConfig, Compacted
from pipelines.upkeep.compaction import compact as run_compact
from pipelines.upkeep.erasure import Erased
from pipelines.upkeep.forgetting import ForgetConfig
from pipelines.upkeep.forgetting import forget as run_forget
from schemas.cli.arguments import small_text
from schemas.cli.terminal import print_json, print_lines
from schemas.cli.vacuum import ranges
from schemas.errors import UsageError

_SHOWN = 10
"""Ids that were found nowhere, and strangers, that are named."""
_MOST_IDS_BYTES = 2**28


def compact(argv: Sequence[str]) -> int:
    """`teachonce compact CACHE`."""
    arguments, beam = upkeep_flags.compact(argv)
    done = run_compact(
        CompactConfig(
            cache=arguments.cache,
            unit_tokens=arguments.unit_tokens,
            row_group_tokens=arguments.row_group_tokens,
            show_progress=arguments.show_progress,
            beam_options=tuple(beam),
        )
    )
    _print(done.to_json(), _compacted(done, arguments.cache), as_json=arguments.json)
    return 0


def forget(argv: Sequence[str]) -> int:
    """`teachonce forget CACHE --ids FILE`."""
    arguments, beam = upkeep_flags.forget(argv)
    try:
        config = ForgetConfig(
            cache=arguments.cache,
            ids=read_ids(arguments.ids),
            force=arguments.force,
            show_progress=arguments.show_progress,
            beam_options=tuple(beam),
        )
    except ValueError as error:
        raise UsageError("--ids is refused", where=arguments.ids, got=str(error)) from error
    done = run_forget(config)
    _print(done.to_json(), _erased(done, arguments), as_json=arguments.json)
    return 0


def read_ids(path: str) -> tuple[str, ...]:
    """The lines of a file, without empty ones.

    Raises:
        UsageError: it cannot be read, or is no text.
    """
    try:
        text = small_text(path, _MOST_IDS_BYTES)
    except OSError as error:
        raise UsageError("--ids: the file cannot be read", where=path, got=error.strerror) from error
    except UnicodeDecodeError as error:
        raise UsageError("--ids: the file is no UTF-8", where=path, got=error.reason) from error
    except ValueError as error:
        raise UsageError(
            "--ids: the file is too large", where=path, got=str(error), do="Forget them in several calls"
        ) from error
    if "\0" in text:
        raise UsageError("--ids: the file is no UTF-8 text", where=path, got="NUL", do="Save it as UTF-8")
    return tuple(line for line in (line.removesuffix("\r") for line in text.split("\n")) if line)


def _compacted(done: Compacted, cache: str) -> list[str]:
    if not done.committed:
        return [f"nothing to merge: version {done.version} of {cache} has {done.shards:,} shards"]
    return [
        f"merged: {done.shards_before:,} shards ({done.size_bytes_before:,} bytes) into {done.shards:,} "
        f"({done.size_bytes:,} bytes), {done.examples:,} examples; version {done.version} of {cache}"
    ]


def _erased(done: Erased, arguments: Any) -> list[str]:
    lines = [
        f"forgotten: {done.examples:,} examples, {done.documents:,} whole documents, of {done.rewritten_shards:,} "
        f"live shards; version {done.version} of {arguments.cache}",
        f"deleted: {done.deleted_files:,} files that held them ({done.deleted_bytes:,} bytes), and "
        f"{done.remembered_lines:,} lines about them",
    ]
    if done.unreadable_versions:
        lines.append(f"can no longer be read: versions {ranges(done.unreadable_versions)}")
    if done.not_found:
        more = f" and {len(done.not_found) - _SHOWN:,} more" if len(done.not_found) > _SHOWN else ""
        named = ", ".join(map(_seen, done.not_found[:_SHOWN])) + more
        lines.append(f"found nowhere, and kept out all the same: {len(done.not_found):,} ids: {named}")
    if done.likely:
        lines.append(f"NOT FORGOTTEN: {len(done.likely):,} ids are not written as the cache has them:")
        lines += [f"  {_seen(line)}: {said}" for line, said in list(done.likely.items())[:_SHOWN]]
        lines += [f"  and {len(done.likely) - _SHOWN:,} more: see --json"] * (len(done.likely) > _SHOWN)
    if done.strangers:
        more = f" and {len(done.strangers) - _SHOWN:,} more" if len(done.strangers) > _SHOWN else ""
        named = ", ".join(done.strangers[:_SHOWN]) + more
        lines.append(f"not this cache's, and neither looked into nor deleted: {named}")
    if done.living_runs:
        names = ", ".join(done.living_runs)
        lines.append(f"if one of these lives after all, forget again once it has ended: {names}")
    return lines


def _seen(line: str) -> str:
    """An id, in quotes where blanks or quotes around it would not be seen."""
    return line if line[:1].isalnum() and line[-1:].isalnum() else repr(line)


def _print(value: Mapping[str, Any], lines: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json(value)
    else:
        print_lines(*lines)
