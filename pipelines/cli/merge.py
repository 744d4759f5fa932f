"""The verb `merge`: flags in, one documented call, a line and an exit status out."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.cli import upkeep_flags
from pipelines.upkeep.merge import MergeConfig, Merged
from pipelines.upkeep.merge import merge as run_merge
from schemas.cli.terminal import print_json, print_lines


def merge(argv: Sequence[str]) -> int:
    """`teachonce merge CACHE CACHE ... --out MERGED`."""
    arguments, beam = upkeep_flags.merge(argv)
    done = run_merge(
        MergeConfig(
            caches=upkeep_flags.weighed(arguments.caches),
            out=arguments.out,
            pick=arguments.pick,
            row_group_tokens=arguments.row_group_tokens,
            show_progress=arguments.show_progress,
            beam_options=tuple(beam),
        )
    )
    if arguments.json:
        print_json(done.to_json())
    else:
        print_lines(told(done, arguments.out))
    return 0


def told(done: Merged, out: str) -> str:
    """The closing line."""
    left = ", ".join(f"{path} {number:,}" for path, number in done.left_out.items())
    if not done.committed:
        return (
            f"nothing new: version {done.version} of {out} has {done.examples:,} examples; left out: {left}"
        )
    return (
        f"merged: {done.examples:,} examples that all caches have, {done.size_bytes:,} bytes; left out: {left}; "
        f"{done.added_shards:,} of {done.shards:,} shards new; version {done.version} of {out}"
    )
