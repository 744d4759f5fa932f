"""The verb `vacuum`, and what `verify --repair` prints."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from schemas.cli.arguments import Parser, duration
from schemas.cli.terminal import print_json, print_lines
from schemas.storage.storage import Storage
from schemas.upkeep.repair import Repaired
from schemas.upkeep.vacuum import Vacuumed
from schemas.upkeep.vacuum import vacuum as run_vacuum
from schemas.versions.history import told_of

_SHOWN = 5
"""Names that are told, of what is left alone."""

_VACUUM_HELP = """\
Deletes what no kept version needs. A cache's folder shrinks by this verb, and by `forget`, alone.

Kept are the newest version, and every version that was current within --older_than; a file goes only if it was also
written before that. Shards that no version ever added, and parts of unfinished writes, are left alone while a run
lives. Give a time that is longer than your longest run and your longest training. What bears no name that teachonce
gives is never deleted, and no symbolic link in the folder is followed.
"""

_VACUUM_EXAMPLES = """\
examples:
  Once a week: what was live within seven days can still be opened afterwards
    teachonce vacuum ./cache --older_than 7d
  What would go if only the newest version were kept:
    teachonce vacuum s3://bucket/cache --older_than 0d --dry_run

exit status: 0 done; 1 the log is damaged, or the store refuses; 2 a wrong flag or path
"""


def vacuum(argv: Sequence[str]) -> int:
    """`teachonce vacuum CACHE`."""
    parser = Parser(prog="teachonce vacuum", description=_VACUUM_HELP, epilog=_VACUUM_EXAMPLES)
    parser.add_argument("cache", metavar="CACHE", help="folder, s3://, gs:// or az://")
    days = "keep what was current within this time: 7d, 12h; 0d keeps the newest version alone"
    parser.add_argument("--older_than", type=duration, required=True, metavar="TIME", help=days)
    parser.add_argument("--dry_run", action="store_true", help="say what would go, and delete nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args(list(argv))
    found = run_vacuum(arguments.cache, arguments.older_than, dry_run=arguments.dry_run)
    _print_vacuumed(found, as_json=arguments.json)
    return 0


def print_repaired(found: Repaired, *, as_json: bool) -> None:
    """What `verify --repair` did."""
    if as_json:
        print_json(found.to_json())
        return
    lines = [
        f"lost: {lost.name}: {lost.examples:,} examples of version {lost.version}, run {lost.run}: "
        f"{lost.fault}"
        for lost in found.lost
    ]
    if not found.committed:
        lines.append(f"whole: version {found.version} of {found.path}; nothing was committed")
    else:
        lines += [
            f"lost: {name}: what it remembered is tried again, or to be forgotten again"
            for name in found.lost_memory
        ]
        lines += ["the totals in the log were wrong, and were counted again"] * found.miscounted
        lines.append(
            f"version {found.version} of {found.path} has {found.shards:,} shards: {len(found.lost):,} shards, "
            f"{found.lost_examples:,} examples and {found.lost_tokens:,} tokens were lost, and {found.repeats:,} "
            "repeated rows left"
        )
    if found.lost:
        lines.append("start precompute again: it computes what was lost, and only that")
    print_lines(*lines)


def _print_vacuumed(found: Vacuumed, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    lines = [
        f"{'would delete' if found.dry_run else 'deleted'}: {found.old_shards:,} shards of old versions, "
        f"{found.orphans:,} orphans, {found.parts:,} parts of unfinished writes; {found.bytes:,} bytes; "
        f"{found.index_files:,} files of row counts",
        f"kept: versions {found.oldest_kept} to {found.version} of {found.path}",
    ]
    if found.unreadable_versions:
        lines.append(f"can no longer be read: versions {ranges(found.unreadable_versions)}")
    if found.living_runs:
        alive = told_of(Storage.at(found.path), found.living_runs)
        lines.append(f"left alone: {found.spared:,} orphans and parts, because a run lives: {alive}")
    if found.strangers:
        more = f" and {len(found.strangers) - _SHOWN:,} more" if len(found.strangers) > _SHOWN else ""
        lines.append(f"not this cache's, and left alone: {', '.join(found.strangers[:_SHOWN])}{more}")
    print_lines(*lines)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as people write them: `0 to 3, 5`."""
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
