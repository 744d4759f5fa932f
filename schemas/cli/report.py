"""The verb `report`: one page on a cache, on students, or on both."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

from schemas.cache import Cache
from schemas.cli.arguments import Parser, natural, positive
from schemas.cli.terminal import print_json, print_lines
from schemas.errors import UsageError, one_line
from schemas.reports.cache_facts import cache_facts
from schemas.reports.page import page_of
from schemas.reports.runs import is_run, read_runs

_HELP = """\
Draws one page, which opens from a file and asks no network for anything: of a cache its kept mass, entropies, lengths,
bytes by column, rejects, versions and drift checks; of students, the output folders of `train`, their loss curves,
quality against size and speed, calibration, agreement by the teacher's entropy, settings that differ, and their worst
examples. What has to be measured for it, `teachonce evaluate --save` measures.

A cache is never read whole unless it is small: the page says how much of it was.
"""

_EXAMPLES = """\
examples:
  A cache, and the two students that it gave:
    teachonce evaluate --cache ./cache --student ./a --save
    teachonce evaluate --cache ./cache --student ./b --save
    teachonce report ./cache ./a ./b --out report.html
  An older version of a cache in a bucket, from a larger sample:
    teachonce report s3://bucket/cache --version 4 --sample_tokens 10000000 --out report.html
"""
_SAMPLE_TOKENS = 2**20
_MOST_RUNS = 40


def report(argv: Sequence[str]) -> int:
    """`teachonce report RUN_OR_CACHE... --out FILE`."""
    parser = Parser(prog="teachonce report", description=_HELP, epilog=_EXAMPLES)
    parser.add_argument("places", nargs="+", metavar="RUN_OR_CACHE", help="a cache, or train's --output_dir")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="replaced where it is there")
    parser.add_argument(
        "--version", type=natural, metavar="N", help="a committed version of the cache (default: the newest)"
    )
    parser.add_argument(
        "--sample_tokens",
        type=positive,
        default=_SAMPLE_TOKENS,
        metavar="N",
        help=f"how much of a cache to read; whole row groups (default: {_SAMPLE_TOKENS:,} tokens)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a line")
    arguments = parser.parse_args(list(argv))
    out = _checked(arguments.out)
    runs, caches = _sorted(arguments.places)
    if arguments.version is not None and len(caches) != 1:
        raise UsageError("--version is that of one cache", got=f"{len(caches)} caches")
    opened = [Cache.open(path, arguments.version) for path in caches]
    students = read_runs(runs)
    facts = [cache_facts(cache, arguments.sample_tokens) for cache in opened]
    page = page_of(facts, students, command=shlex.join(["teachonce", "report", *argv]))
    _write(out, page)
    size = len(page.encode())
    if arguments.json:
        print_json({"out": str(out), "caches": caches, "students": runs, "bytes": size})
    else:
        print_lines(f"{out}: {len(caches)} caches, {len(runs)} students, {size:,} bytes")
    return 0


def _sorted(places: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which are students, and which are caches."""
    if len(set(places)) < len(places):
        raise UsageError("a folder is named twice", got=" ".join(places))
    runs = [path for path in places if is_run(path)]
    if len(runs) > _MOST_RUNS:
        raise UsageError("too many students for one page", expected=f"at most {_MOST_RUNS}", got=len(runs))
    return runs, [path for path in places if path not in runs]


def _checked(out: str) -> Path:
    """Where the page goes, before anything is read."""
    path = Path(out)
    if (
        path.exists() and not path.is_file()
    ) or not path.absolute().parent.is_dir():  # /dev/null would be replaced
        raise UsageError("--out must be a file in a folder that is there", got=out)
    return path


def _write(path: Path, page: str) -> None:
    """Replaces the file; never half of it."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError("--out cannot be written", where=path, got=one_line(error)) from error
