"""The verb `plan`: the flags of `precompute` in, one documented call, a table out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from rich.console import Console

from pipelines.cli import run_flags
from pipelines.cli.logs import quiet, warnings_on_stderr
from pipelines.cli.precompute import run_config
from pipelines.cli.run_tables import labels_read
from pipelines.job.cost import Cost, Expected, Prices
from pipelines.job.plan import Plan
from pipelines.job.plan import plan as make_plan
from pipelines.scoring.sample import Measured
from schemas.cli.process import DONE
from schemas.cli.run_report import begin_report, finish_report
from schemas.cli.tables import Table, number, print_table
from schemas.cli.tables import console as stdout
from schemas.cli.terminal import print_json
from schemas.printable import printable


def plan(argv: Sequence[str]) -> int:
    """`teachonce plan`."""
    quiet()
    arguments, beam = run_flags.plan(argv)
    config = run_config(arguments, beam)
    begin_report(arguments.report)
    prices = Prices(**{one.name: getattr(arguments, one.name) for one in fields(Prices)})
    with warnings_on_stderr():
        found = make_plan(
            config, sample_tokens=arguments.sample_tokens, epochs=arguments.epochs, prices=prices
        )
    finish_report(arguments.report, {"outcome": "planned", "status": DONE, "reason": None, **found.to_json()})
    if arguments.json:
        print_json(found.to_json())
    else:
        print_plan(found, arguments.cache)
    return DONE


def print_plan(found: Plan, cache: str, console: Console | None = None) -> None:
    """Prints what a run would do."""
    console = console or stdout()
    for refusal in found.refusals:
        console.print(printable(f"the run would be refused: {refusal}"), soft_wrap=True)
    print_table(Table(title=f"plan of a precompute into {cache}", rows=tuple(plan_lines(found))), console)


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
    if found.cost is not None:
        lines += _cost_lines(found.cost, found.epochs)
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
        ("  padded / tokens", number(sample.padded_tokens / tokens)),
        ("  kept entries a position", number(sample.entries / positions)),
    ]
    if sample.kept_mass_sum:
        lines.append(("  kept mass", number(sample.kept_mass_sum / positions)))
    if sample.rejects:
        lines.append(("  the teacher could not score", f"{sample.rejects:,}"))
    return lines


def _expected_lines(expected: Expected, epochs: int, workers: int) -> list[tuple[str, str]]:
    students = "for no number" if expected.students is None else f"from {expected.students:,}"
    return [
        ("expected: new shards", f"{expected.shards:,}"),
        ("  bytes", f"{expected.size_bytes:,}"),
        (f"  seconds (workers: {workers:,})", number(expected.wall_seconds)),
        ("  tokens/s", number(expected.tokens_per_second)),
        ("  teacher, tokens/s", number(expected.teacher_tokens_per_second)),
        ("  decoding for students, tokens/s", number(expected.decode_tokens_per_second)),
        (f"  students (epochs: {epochs:,}) for whom it is cheaper", students),
    ]


def _cost_lines(cost: Cost, epochs: int) -> list[tuple[str, str]]:
    euro = [
        ("  euro: the teacher's hours", cost.accelerator_euro),
        ("  euro: writes", cost.write_euro),
        ("  euro: reads of a student", cost.read_euro),
        ("  euro a month: storage", cost.storage_euro_a_month),
    ]
    return [
        (f"cost: hours at {number(cost.teacher_rate)} tokens/s", number(cost.accelerator_hours)),
        ("  requests: writes of shards", f"{cost.write_requests:,}"),
        (f"  requests: reads of a student (epochs: {epochs:,})", f"{cost.read_requests:,}"),
        *((name, number(value)) for name, value in euro if value is not None),
    ]
