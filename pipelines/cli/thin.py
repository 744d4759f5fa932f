"""The verb `thin`: flags in, one documented call, a line and an exit status out."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.cli import upkeep_flags
from pipelines.upkeep.thin import ThinConfig, Thinned
from pipelines.upkeep.thin import thin as run_thin
from schemas.cli.terminal import print_json, print_lines
from schemas.policies import parse_keep


def thin(argv: Sequence[str]) -> int:
    """`teachonce thin CACHE --keep POLICY --out CACHE2`."""
    arguments, beam = upkeep_flags.thin(argv)
    done = run_thin(
        ThinConfig(
            cache=arguments.cache,
            out=arguments.out,
            keep=parse_keep(arguments.keep),
            scalars=None if arguments.scalars is None else tuple(arguments.scalars),
            temperatures=None if arguments.temperatures is None else tuple(arguments.temperatures),
            own_logits=arguments.own_logits,
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


def told(done: Thinned, out: str) -> str:
    """The closing line."""
    if not done.committed:
        return f"nothing new: version {done.version} of {out} is thinned from version {done.source_version}"
    tokens = max(done.tokens, 1)
    share = done.size_bytes / max(done.size_bytes_before, 1)
    return (
        f"thinned: {done.keep_before}, {done.size_bytes_before:,} bytes "
        f"({done.size_bytes_before / tokens:.1f} a token), to {done.keep}, {done.size_bytes:,} bytes "
        f"({done.size_bytes / tokens:.1f} a token; {share:.0%}); {done.examples:,} examples, "
        f"{done.added_shards:,} of {done.shards:,} shards new; version {done.version} of {out}"
    )
