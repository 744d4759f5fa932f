"""The verb `thin`: flags in, one documented call, a line and an exit status out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from pipelines.cli.precompute import split_beam
from pipelines.upkeep.thin import ThinConfig, Thinned
from pipelines.upkeep.thin import thin as run_thin
from schemas.cli.arguments import Parser, positive
from schemas.cli.terminal import print_json, print_lines
from schemas.policies import parse_keep
from schemas.shards.rewrite import ROW_GROUP_TOKENS
from schemas.spec import Scalar

_HELP = """\
Makes a smaller cache from a larger one. The teacher is not asked, and CACHE stays as it is.

  from CACHE              to --keep
  all                     all (fewer scalars), top_k, top_p, threshold, sampled
  top_k:K                 top_k, top_p with at most that k
  top_p:P,k=K             top_p with at most that p and k
  threshold:TAU,k=K       threshold with at least that TAU and at most that k; top_k with at most that k

The largest entries are copied: row for row what the teacher would have given. Draws from `all` and from `threshold` are
equal in law to the teacher's own, not in bytes. What CACHE cannot serve is refused, with the reason.

A second call with the same flags adds what is new in CACHE and takes out what has left it: run it after each nightly
precompute. Everything behind ` -- ` goes to Beam.
"""

_EXAMPLES = """\
examples:
  A quarter of the draws of the default policy (threshold:1/32), for a student with little disk:
    teachonce thin ./cache --keep threshold:1/8 --out ./small
  Draws for a student that reads each text once, from a cache of whole distributions, on Flink:
    teachonce thin s3://bucket/whole --keep threshold:1/16 --scalars entropy --out s3://bucket/small \\
      -- --runner=FlinkRunner --flink_master=host:8081 --flink_version=1.19

exit status: 0 done, or nothing new; 1 failed, and nothing was committed; 2 a wrong flag or path, or not
what CACHE can serve
"""


def thin(argv: Sequence[str]) -> int:
    """`teachonce thin CACHE --keep POLICY --out CACHE2`."""
    own, beam = split_beam(list(argv))
    arguments = _parser().parse_args(own)
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="teachonce thin", description=_HELP, epilog=_EXAMPLES)
    parser.add_argument("cache", metavar="CACHE", help="folder, s3://, gs:// or az://")
    policy = "all, top_k:K, top_p:P,k=K, threshold:TAU[,k=K] or sampled:N"
    parser.add_argument("--keep", required=True, metavar="POLICY", help=policy)
    parser.add_argument(
        "--out", required=True, metavar="CACHE2", help="the smaller cache: new, or to be updated"
    )
    scalars = "of those that CACHE stores beside its entries (default: all of them)"
    parser.add_argument("--scalars", nargs="*", choices=get_args(Scalar), metavar="S", help=scalars)
    warm = "of those that CACHE declares, 1 first (default: all of them)"
    parser.add_argument("--temperatures", type=float, nargs="+", metavar="T", help=warm)
    own = "store drawn entries' own log-probabilities (default: as CACHE does, or as temperatures need it)"
    parser.add_argument("--own_logits", action=argparse.BooleanOptionalAction, help=own)
    group = "tokens of a row group (default: 32,768)"
    parser.add_argument(
        "--row_group_tokens", type=positive, default=ROW_GROUP_TOKENS, metavar="N", help=group
    )
    parser.add_argument("--no_progress", dest="show_progress", action="store_false", help="no progress lines")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a line")
    return parser
