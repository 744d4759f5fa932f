"""The flags of `compact`, `forget`, `merge` and `thin`: help and refusals of wrong flags, without torch and Beam."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from schemas.cli.arguments import Parser, positive, split_beam
from schemas.errors import UsageError
from schemas.shards.rewrite import ROW_GROUP_TOKENS, UNIT_TOKENS
from schemas.spec import Scalar

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

_THIN_HELP = """\
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

_THIN_EXAMPLES = """\
examples:
  A quarter of the draws of the default policy (threshold:1/32), for a student with little disk:
    teachonce thin ./cache --keep threshold:1/8 --out ./small
  Draws for a student that reads each text once, from a cache of whole distributions, on Flink:
    teachonce thin s3://bucket/whole --keep threshold:1/16 --scalars entropy --out s3://bucket/small \\
      -- --runner=FlinkRunner --flink_master=host:8081 --flink_version=1.19

exit status: 0 done, or nothing new; 1 failed, and nothing was committed; 2 a wrong flag or path, or not
what CACHE can serve
"""


_MERGE_HELP = """\
Writes the join of several teachers' caches over one corpus as one cache. No teacher is asked; CACHES stay as they are.

Each example that all caches have is one row: by the mean of their distributions (of caches with --keep all; of classes
that are each there or not, and of values), with PATH=WEIGHT as weights; or, with --pick, at each position by one
teacher, under any policy. Features stand one behind the other. What only some have is left out, and counted.

A second call with the same flags adds what is new in all of them and takes out what has left one. Everything behind
` -- ` goes to Beam.
"""

_MERGE_EXAMPLES = """\
examples:
  Two classifiers as one, the first of more weight:
    teachonce merge ./a=0.7 ./b=0.3 --out ./both
  Of language models, at each position the surer one:
    teachonce merge ./one ./two --pick entropy --out s3://bucket/both

exit status: 0 done, or nothing new; 1 failed, and nothing was committed; 2 a wrong flag or path, or caches
that differ
"""


def compact(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the line says, and the words behind `--`, which are Beam's.

    Raises:
        UsageError: a wrong flag or value.
    """
    own, beam = split_beam(list(argv))
    parser = _parser("compact", _COMPACT_HELP, _COMPACT_EXAMPLES)
    shard, group = "tokens of a full shard (default: 1,048,576)", "tokens of a row group (default: 32,768)"
    parser.add_argument("--unit_tokens", type=positive, default=UNIT_TOKENS, metavar="N", help=shard)
    parser.add_argument(
        "--row_group_tokens", type=positive, default=ROW_GROUP_TOKENS, metavar="N", help=group
    )
    return parser.parse_args(own), beam


def forget(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the line says, and the words behind `--`, which are Beam's.

    Raises:
        UsageError: a wrong flag or value.
    """
    own, beam = split_beam(list(argv))
    parser = _parser("forget", _FORGET_HELP, _FORGET_EXAMPLES)
    parser.add_argument("--ids", required=True, metavar="FILE", help="ids to forget, one a line")
    force = "take runs that seem to live for dead: they crashed"
    parser.add_argument("--force", action="store_true", help=force)
    return parser.parse_args(own), beam


def thin(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the line says, and the words behind `--`, which are Beam's.

    Raises:
        UsageError: a wrong flag or value.
    """
    own, beam = split_beam(list(argv))
    return _thin_parser().parse_args(own), beam


def merge(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the line says, and the words behind `--`, which are Beam's.

    Raises:
        UsageError: a wrong flag or value.
    """
    own, beam = split_beam(list(argv))
    parser = Parser(prog="teachonce merge", description=_MERGE_HELP, epilog=_MERGE_EXAMPLES)
    path = "folder, s3://, gs:// or az://, each with =WEIGHT or none"
    parser.add_argument("caches", nargs="+", metavar="CACHE", help=path)
    parser.add_argument(
        "--out", required=True, metavar="MERGED", help="the merged cache: new, or to be updated"
    )
    pick = "in place of the mean at each position the teacher of the lower loss, or of the lower entropy"
    parser.add_argument("--pick", choices=("loss", "entropy"), help=pick)
    _add_common(parser)
    arguments = parser.parse_args(own)
    weighed(arguments.caches)
    return arguments, beam


def weighed(told: Sequence[str]) -> dict[str, float | None]:
    """Caches by path, with their weights where they have some.

    Raises:
        UsageError: a cache stands there twice.
    """
    found: dict[str, float | None] = {}
    for text in told:
        path, _, weight = text.rpartition("=")
        try:
            path, share = (path, float(weight)) if path else (text, None)
        except ValueError:
            path, share = text, None
        if path in found:
            raise UsageError("a cache stands there twice", got=path, do="Name each once")
        found[path] = share
    return found


def _parser(verb: str, description: str, examples: str) -> Parser:
    parser = Parser(prog=f"teachonce {verb}", description=description, epilog=examples)
    parser.add_argument("cache", metavar="CACHE", help="folder, s3://, gs:// or az://")
    parser.add_argument("--no_progress", dest="show_progress", action="store_false", help="no progress lines")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return parser


def _thin_parser() -> Parser:
    parser = Parser(prog="teachonce thin", description=_THIN_HELP, epilog=_THIN_EXAMPLES)
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
    _add_common(parser)
    return parser


def _add_common(parser: Parser) -> None:
    """Of what makes one cache from others."""
    group = "tokens of a row group (default: 32,768)"
    parser.add_argument(
        "--row_group_tokens", type=positive, default=ROW_GROUP_TOKENS, metavar="N", help=group
    )
    parser.add_argument("--no_progress", dest="show_progress", action="store_false", help="no progress lines")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a line")
