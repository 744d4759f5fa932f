"""The verb `plan`: the flags of `precompute` in, one documented call, a table out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pipelines.cli.logs import quiet, warnings_on_stderr
from pipelines.cli.precompute import run_config, run_parser, split_beam
from pipelines.cli.run_tables import labels_read
from pipelines.job.plan import SAMPLE_TOKENS, Expected, Plan
from pipelines.job.plan import plan as make_plan
from pipelines.scoring.sample import Measured
from schemas.cli.arguments import positive
from schemas.cli.process import DONE
from schemas.cli.run_report import begin_report, finish_report
from schemas.cli.terminal import print_json
from schemas.printable import printable

_HELP = """\
Says what `teachonce precompute` with the same flags would do, what it would cost, and whether it would be refused.

The corpus is read and joined with the cache as the run does it, so the counts are exact. A sample of the new examples
is scored by the real teacher, on a worker with its share of the machine: time (by so many --workers), shards and bytes
are reckoned from it. Nothing is written to the cache. On an engine elsewhere, workers tell what they found through
Beam's --temp_location.
"""

_EXAMPLES = """\
examples:
  What tonight's corpus would add, and what would leave:
    teachonce plan --corpus 'corpus/*.jsonl.zst' --teacher ./teacher --task causal-lm --cache ./cache --prune
  From how many students of three epochs on a cache pays, for a script; a larger sample, on Flink:
    teachonce plan --corpus 's3://bucket/*.parquet' --teacher ./teacher --task causal-lm --cache s3://bucket/cache \\
      --sample_tokens 100000 --epochs 3 --json -- --runner=FlinkRunner --flink_master=host:8081 --flink_version=1.19 \\
      --temp_location=s3://bucket/tmp | jq .expected.students

exit status: 0 planned, also where the run would be refused for its rejects or for what it would prune; 1 failed, or
another teacher or spec than the cache's; 2 a wrong flag, path or model
"""


def plan(argv: Sequence[str]) -> int:
    """`teachonce plan`."""
    quiet()
    own, beam = split_beam(list(argv))
    parser = run_parser("plan", _HELP, _EXAMPLES)
    group = parser.add_argument_group("plan")
    group.add_argument(
        "--sample_tokens", type=positive, default=SAMPLE_TOKENS, metavar="N", help="tokens to score (8,192)"
    )
    epochs = "epochs that each student would train (1)"
    group.add_argument("--epochs", type=positive, default=1, metavar="E", help=epochs)
    group.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args(own)
    config = run_config(arguments, beam)
    begin_report(arguments.report)
    with warnings_on_stderr():
        found = make_plan(config, sample_tokens=arguments.sample_tokens, epochs=arguments.epochs)
    finish_report(arguments.report, {"outcome": "planned", "status": DONE, "reason": None, **found.to_json()})
    if arguments.json:
        print_json(found.to_json())
    else:
        print_plan(found, arguments.cache)
    return DONE


def print_plan(found: Plan, cache: str, console: Console | None = None) -> None:
    """Prints what a run would do."""
    console = console or Console(markup=False, highlight=False, emoji=False)
    for refusal in found.refusals:
        console.print(printable(f"the run would be refused: {refusal}"), soft_wrap=True)
    table = Table(
        title=printable(f"plan of a precompute into {cache}"), title_justify="left", show_header=False
    )
    table.add_column(style="bold")
    table.add_column(justify="right")
    for line in plan_lines(found):
        table.add_row(*map(printable, line))
    console.print(table)


def plan_lines(found: Plan) -> list[tuple[str, str]]:
    """Name and value of each line."""
    lines = [
        ("documents read", f"{found.documents:,}"),
        ("  repeats / already cached", f"{found.duplicates:,} / {found.known_documents:,}"),
        ("  new", f"{found.new_documents:,}"),
        *((name, f"{count:,}") for name, count in _seldom(found) if count),
        ("  rejected before the teacher", f"{sum(found.rejects.values()):,}"),
        *((f"    {reason}", f"{count:,}") for reason, count in found.rejects.items()),
        *labels_read(found.labels),
        ("new examples", f"{found.examples:,}"),
        ("new tokens", f"{found.tokens:,}"),
        ("keep", found.keep),
    ]
    if found.sample is not None:
        lines += _sample_lines(found.sample)
    if found.expected is not None:
        lines += _expected_lines(found.expected, found.epochs, found.workers)
    return lines


def _seldom(found: Plan) -> list[tuple[str, int]]:
    """What most nights have none of."""
    return [
        ("  left by a try that did not commit", found.adopted_documents),
        ("  not scored before, not tried again", found.remembered_documents),
        ("  kept out: forgotten", found.forgotten_documents),
        ("examples to adopt", found.adopted_examples),
        ("examples to prune", found.pruned_examples),
        ("examples to replace", found.replaced_examples),
        ("shards to adopt or rewrite", found.moved_shards),
        ("damaged records; nothing would be pruned", found.prune_withheld),
    ]


def _sample_lines(sample: Measured) -> list[tuple[str, str]]:
    tokens, positions = max(sample.tokens, 1), max(sample.positions, 1)
    lines = [
        ("sample: examples / tokens", f"{sample.examples:,} / {sample.tokens:,}"),
        ("  padded / tokens", f"{sample.padded_tokens / tokens:.3f}"),
        ("  kept entries a position", f"{sample.entries / positions:.1f}"),
    ]
    if sample.kept_mass_sum:
        lines.append(("  kept mass", f"{sample.kept_mass_sum / positions:.4f}"))
    if sample.rejects:
        lines.append(("  the teacher could not score", f"{sample.rejects:,}"))
    return lines


def _expected_lines(expected: Expected, epochs: int, workers: int) -> list[tuple[str, str]]:
    students = "for no number" if expected.students is None else f"from {expected.students:,}"
    return [
        ("expected: new shards", f"{expected.shards:,}"),
        ("  bytes", f"{expected.size_bytes:,}"),
        (f"  seconds (workers: {workers:,})", f"{expected.wall_seconds:,.1f}"),
        ("  tokens/s", f"{expected.tokens_per_second:,.0f}"),
        ("  teacher, tokens/s", f"{expected.teacher_tokens_per_second:,.0f}"),
        ("  decoding for students, tokens/s", f"{expected.decode_tokens_per_second:,.0f}"),
        (f"  students (epochs: {epochs:,}) for whom it is cheaper", students),
    ]
