"""The verb `export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from schemas.cache import Cache
from schemas.cli.arguments import Parser, natural
from schemas.cli.progress import Counted, printed
from schemas.cli.terminal import print_json, print_lines
from schemas.upkeep.export import Exported
from schemas.upkeep.export import export as run_export

_HELP = """\
Writes a cache as plain Parquet, for tools that know nothing of codes: one file a shard, a row an example.

ids and logprobs hold a list for each position: the kept ids, and their log-probabilities under the full softmax at
temperature 1. Where entries are drawn there are weights too: an average over entries takes these, and drawn entries
without a stored log-probability have null there. labels are the gold ids, position_index the token of each position,
features lists of floats. For scores that are all kept there is logits instead.

The files take several times the cache's bytes, and are no cache: train and verify read the cache itself. Memory is
that of one row group.

A file has its name only once it is whole, and DIR/_teachonce_export.json says "complete": true once all are there. An
export that was interrupted is finished by the same call: files that are there are kept.
"""

_EXAMPLES = """\
examples:
  All columns, then a look at them with DuckDB:
    teachonce export ./cache --out ./plain
    duckdb -c "SELECT input_ids, ids[1], logprobs[1] FROM './plain/*.parquet' LIMIT 5"
  Two columns of an older version:
    teachonce export s3://bucket/cache --version 4 --out ./plain --columns input_ids,feature_mean_6

exit status: 0 done; 1 a shard is damaged, or there is no room; 2 a wrong flag or path, or a folder that holds
something else
"""


def export(argv: Sequence[str]) -> int:
    """`teachonce export CACHE --out DIR`."""
    parser = Parser(prog="teachonce export", description=_HELP, epilog=_EXAMPLES)
    parser.add_argument("cache", metavar="CACHE", help="folder, s3://, gs:// or az://")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="a new or empty local folder, or an unfinished export's"
    )
    parser.add_argument(
        "--version", type=natural, metavar="N", help="a committed version (default: the newest)"
    )
    parser.add_argument(
        "--format", choices=["parquet"], default="parquet", help="of the files (default: parquet)"
    )
    overwrite = "write anew what an export of another version, or of other columns, left in DIR"
    parser.add_argument("--overwrite", action="store_true", help=overwrite)
    parser.add_argument("--columns", metavar="A,B", help="only these columns, in this order")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    arguments = parser.parse_args(list(argv))
    names = [] if arguments.columns is None else [name.strip() for name in arguments.columns.split(",")]
    cache = Cache.open(arguments.cache, arguments.version)
    done = Counted("export", "files", len(cache.shards))
    with printed(done.line):
        found = run_export(
            cache,
            arguments.out,
            names,
            lambda part, files: done.set(part.files, files),
            overwrite=arguments.overwrite,
        )
    if arguments.json:
        print_json(asdict(found))
    else:
        print_lines(f"{_counts(found)} in {found.path}")
    return 0


def _counts(found: Exported) -> str:
    kept = f" ({found.kept:,} of them were there)" if found.kept else ""
    return f"{found.files:,} files{kept}, {found.examples:,} examples, {found.bytes:,} bytes"
