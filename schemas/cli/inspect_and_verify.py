"""The verbs `inspect` and `verify`: flags in, one documented call, tables and exit status out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from schemas.cache import Cache
from schemas.cli.arguments import Parser, natural
from schemas.cli.browse import browse, check_browsing
from schemas.cli.cache_report import describe, describe_rows
from schemas.cli.examples import example_table, table
from schemas.cli.progress import Counted, printed
from schemas.cli.tables import Table, console, print_table
from schemas.cli.terminal import print_json, print_lines
from schemas.cli.vacuum import print_repaired
from schemas.errors import BrokenShardsError, CacheError, UsageError
from schemas.generation import Generation
from schemas.upkeep.repair import repair

_INSPECT_HELP = """\
Shows what a cache holds: teacher, policy, counts, bytes a token by column, kept mass, rejects, versions.

Everything but --rows comes from the cache's log and the shards' footers; no shard's data is read.
"""

_INSPECT_EXAMPLES = """\
examples:
  What the newest version holds, and three examples with what the teacher said at each position:
    teachonce inspect ./cache --rows 3
  One number of an older version, for a script:
    teachonce inspect s3://bucket/cache --version 4 --json | jq .bytes_per_token
  Examples where the teacher is unsure, one after the other (in it: h for help, r for the next one, q to leave):
    printf 'e > 3\\nr\\nr\\n' | teachonce inspect ./cache --browse
"""

_VERIFY_HELP = """\
Checks every byte, schema, count and id of a cache: all seals, from the log down to each row group.

A cache that is not whole is exit status 1 and one line that tells how many shards are broken; before it stands a line
for each of the first twenty, or with --json one object with `status` and all of them under `broken`.
With --teacher DIR a sample is scored again as well, and compared: see `teachonce verify --teacher DIR --help`.

--repair commits a version without the shards that are broken or missing, and says what was lost; the next precompute
computes those examples again, and only those. Rows that stand in the cache twice leave but for one. With nothing
broken, nothing is committed. The log, the spec and the tokenizer's files can only be restored from a copy.
"""

_MOST_BROKEN = 20

_VERIFY_EXAMPLES = """\
examples:
  The newest version, byte by byte:
    teachonce verify ./cache
  The values too, against a fresh teacher on 200 examples (needs the extra [pipelines]):
    teachonce verify ./cache --teacher ./teacher --sample 200
  After a disk lost a file: drop what is broken, then start the nightly run again
    teachonce verify ./cache --repair
"""


def inspect(argv: Sequence[str]) -> int:
    """`teachonce inspect CACHE`."""
    parser = _parser("inspect", _INSPECT_HELP, _INSPECT_EXAMPLES)
    parser.add_argument("--rows", type=natural, default=0, metavar="N", help="also show N examples, decoded")
    shows = "examples one by one, found by text, id or entropy; commands are read from stdin, h shows them"
    parser.add_argument("--browse", action="store_true", help=shows)
    arguments = parser.parse_args(list(argv))
    if arguments.browse:
        check_browsing(arguments)
    cache = Cache.open(arguments.cache, arguments.version)
    if arguments.browse:
        browse(cache)
        return 0
    found = describe(cache)
    rows = describe_rows(cache, arguments.rows)
    if arguments.json:
        print_json({**found, "rows": rows} if arguments.rows else found)
        return 0
    out = console()
    tables = (_summary(found), _columns(found), _lengths(found), _rejects(found), _versions(found))
    for one in (*tables, *map(example_table, rows)):
        print_table(one, out)
    return 0


def verify(argv: Sequence[str]) -> int:
    """`teachonce verify CACHE`."""
    parser = _parser("verify", _VERIFY_HELP, _VERIFY_EXAMPLES)
    repairs = "commit a version without what is broken"
    parser.add_argument("--repair", action="store_true", help=repairs)
    arguments = parser.parse_args(list(argv))
    if arguments.repair:
        if arguments.version is not None:
            raise UsageError("--repair mends the newest version: it takes no --version")
        done = Counted("repair", "shards", 0)
        with printed(done.line):
            repaired = repair(arguments.cache, done.set)
        print_repaired(repaired, as_json=arguments.json)
        return 0
    try:
        cache = Cache.open(arguments.cache, arguments.version)
        done = Counted("verify", "shards", len(cache.shards))
        with printed(done.line):
            found = cache.verify(done.add)
    except CacheError as error:
        _print_broken(arguments.cache, error, as_json=arguments.json)
        error.is_told = arguments.json
        if isinstance(error, BrokenShardsError) and not arguments.json:
            raise error.counted() from error
        raise
    if arguments.json:
        whole = {"path": cache.storage.root, "version": cache.version, "status": "whole"}
        print_json({**whole, **asdict(found), "broken": []})
        return 0
    print_lines(
        f"whole: version {cache.version} of {cache.storage.root}: every byte, schema, encoding, count and id of "
        f"{found.shards:,} shards, {found.row_groups:,} row groups, {found.examples:,} examples, "
        f"{found.tokens:,} tokens, {found.bytes:,} bytes"
    )
    return 0


def _print_broken(path: str, error: CacheError, *, as_json: bool) -> None:
    """What is wrong: all of it as one object, or a line for each of the first shards."""
    faults = error.faults if isinstance(error, BrokenShardsError) else ()
    if as_json:
        broken = [{"shard": name, "what": what} for name, what in faults]
        print_json({"path": path, "status": "broken", "what": str(error), "broken": broken})
        return
    print_lines(*(f"broken: {name}: {what}" for name, what in faults[:_MOST_BROKEN]))
    if len(faults) > _MOST_BROKEN:
        print_lines(f"... and {len(faults) - _MOST_BROKEN:,} more; --json names them all")


def _parser(verb: str, description: str, examples: str) -> Parser:
    parser = Parser(prog=f"teachonce {verb}", description=description, epilog=examples)
    parser.add_argument("cache", metavar="CACHE", help="folder, s3://, gs:// or az://")
    parser.add_argument(
        "--version", type=natural, metavar="N", help="a committed version (default: the newest)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    return parser


def _summary(found: Mapping[str, Any]) -> Table:
    spec, teacher = found["spec"], found["teacher"]
    width = spec["vocab_size"]
    features = [f"{f['pooling']}:{f['layer']} ({f['width']} {f['dtype']})" for f in spec["features"]]
    lines = {
        **{f"teacher {key}": value for key, value in teacher.items() if key != "config"},
        "task, score": f"{spec['task']}, {spec['score']}" + (f" over {width:,}" if width else ""),
        "keep": spec["keep"],
        "temperatures": ", ".join(f"{t:g}" for t in spec["temperatures"]),
        "features": ", ".join(features) or "none",
        **_written(spec),
        **{key: repr(value) for key, value in spec.get("task_settings", {}).items()},
        "max length, stride": f"{spec['max_length']:,}, {spec['stride']:,} tokens",
        "examples": found["examples"],
        "tokens": found["tokens"],
        "positions": found["positions"],
        "kept entries": found["entries"],
        "kept entries a position": found["entries_per_position"],
        "kept mass": found["kept_mass"],
        "entropy, nats": found["entropy_nats"],
        "clamped codes": found["clamped_codes"],
        "shards": found["shards"],
        "row groups": found["row_groups"],
        "bytes": found["bytes"],
        "bytes a token": found["bytes_per_token"],
        "format version": found["format_version"],
    }
    return table(f"{found['path']}, version {found['version']}", (), lines.items())


def _written(spec: Mapping[str, Any]) -> dict[str, str]:
    """How the teacher wrote the texts, where it did."""
    if not spec.get("generation"):
        return {}
    how = Generation(**spec["generation"])
    return {"answers": f"written by the teacher: {how}, at most {how.max_new_tokens:,} tokens"}


def _columns(found: Mapping[str, Any]) -> Table:
    return table("bytes a token by column", (), found["bytes_per_token_by_column"].items())


def _lengths(found: Mapping[str, Any]) -> Table:
    rows = ((f"{line['from']:,} to {line['to']:,}", line["examples"]) for line in found["lengths"])
    return table("examples by length in tokens", (), rows)


def _rejects(found: Mapping[str, Any]) -> Table:
    return table("rejected documents by reason", (), found["rejects"].items() or [("none", 0)])


def _versions(found: Mapping[str, Any]) -> Table:
    names = ("version", "run", "time", "shards", "examples")
    rows = ([line[name] for name in names] for line in found["versions"])
    return table("versions", names, rows)
