"""The verbs `compact` and `forget`: flags in, one documented call, lines and exit status out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cli.precompute import split_beam
from pipelines.upkeep.compaction import CompactConfig, Compacted
from pipelines.upkeep.compaction import compact as run_compact
from pipelines.upkeep.erasure import Erased
from pipelines.upkeep.forgetting import ForgetConfig
from pipelines.upkeep.forgetting import forget as run_forget
from schemas.cli.arguments import Parser, positive, small_text
from schemas.cli.terminal import print_json, print_lines
from schemas.cli.vacuum import ranges
from schemas.errors import UsageError
from schemas.shards.rewrite import ROW_GROUP_TOKENS, UNIT_TOKENS

_SHOWN = 10
"""Ids that were found nowhere, and strangers, that are named."""
_MOST_IDS_BYTES = 2**28

_COMPACT_HELP = """\
Merges the small shards of many runs into full ones, rows in id order, in one commit. The teacher is not asked.

Where there are no more shards than full ones, nothing is committed. Rows and totals stay the same, and old versions
still open: the folder shrinks at `teachonce vacuum` alone. If a run commits meanwhile, it starts again by itself, once.
Everything behind ` -- ` goes to Beam.
"""

_COMPACT_EXAMPLES = """\
examples:
  Once a week, on this machine:
    teachonce compact ./cache
  Larger shards, on Flink:
    teachonce compact s3://bucket/cache --unit_tokens 4194304 \\
      -- --runner=FlinkRunner --flink_master=host:8081 --flink_version=1.19

exit status: 0 done, or nothing to merge; 1 failed, and nothing was committed; 2 a wrong flag or path
"""

_FORGET_HELP = """\
Erases documents or examples from a cache, for good, and keeps them out of later runs.

FILE has one id a line: a value of --id_field; or, as 32 hex digits, a document's hash or an example's id. A document id
keeps out any later content with that id, a hash this content, an example id this window. Rows leave the newest version
in one commit; then every file that held them is deleted, whatever version it belongs to, and it says which versions can
no longer be read. Salted hashes are left, which tell nothing to who does not hold the ids. What was interrupted is
finished by the same call. An id is taken as it stands, blanks and quotes included: one that is nearly an id of the
cache is not forgotten, and told. A store that keeps old versions of objects, and copies and backups, are yours to
clear. Everything behind ` -- ` goes to Beam.
"""

_FORGET_EXAMPLES = """\
examples:
  Two users asked to be forgotten; ids.txt has their ids, one a line:
    teachonce forget ./cache --ids ids.txt
  After a run crashed, whose lease says that it may still live:
    teachonce forget s3://bucket/cache --ids ids.txt --force

exit status: 0 done, also where some ids were found nowhere; 1 failed: call it again; 2 a wrong flag or path
"""


def compact(argv: Sequence[str]) -> int:
    """`teachonce compact CACHE`."""
    own, beam = split_beam(list(argv))
    parser = _parser("compact", _COMPACT_HELP, _COMPACT_EXAMPLES)
    shard, group = "tokens of a full shard (default: 1,048,576)", "tokens of a row group (default: 32,768)"
    parser.add_argument("--unit_tokens", type=positive, default=UNIT_TOKENS, metavar="N", help=shard)
    parser.add_argument(
        "--row_group_tokens", type=positive, default=ROW_GROUP_TOKENS, metavar="N", help=group
    )
    arguments = parser.parse_args(own)
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
    own, beam = split_beam(list(argv))
    parser = _parser("forget", _FORGET_HELP, _FORGET_EXAMPLES)
    parser.add_argument("--ids", required=True, metavar="FILE", help="ids to forget, one a line")
    force = "take runs that seem to live for dead: they crashed"
    parser.add_argument("--force", action="store_true", help=force)
    arguments = parser.parse_args(own)
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


def _parser(verb: str, description: str, examples: str) -> Parser:
    parser = Parser(prog=f"teachonce {verb}", description=description, epilog=examples)
    parser.add_argument("cache", metavar="CACHE", help="folder, s3://, gs:// or az://")
    parser.add_argument("--no_progress", dest="show_progress", action="store_false", help="no progress lines")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return parser
