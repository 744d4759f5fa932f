"""The table at the end of a run."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipelines.outcome import RunSummary
from schemas.printable import printable


def summary_table(summary: RunSummary, cache: str, console: Console | None = None) -> None:
    """Prints what a run did."""
    console = console or Console(markup=False, highlight=False, emoji=False)
    if summary.postponed_examples:
        console.print(
            f"out of time: {summary.postponed_examples:,} examples are left; start the same run again "
            f"({printable(cache)})"
        )
    elif not summary.committed and not summary.new_documents:
        console.print(
            f"nothing new: {summary.documents:,} documents, all known; "
            f"the teacher ran on nothing and nothing was committed ({printable(cache)})"
        )
    table = Table(title=printable(f"precompute into {cache}"), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in summary_lines(summary):
        table.add_row(printable(name), printable(value))
    console.print(table)


def _seldom(summary: RunSummary) -> list[tuple[str, int]]:
    """What most nights have none of."""
    return [
        ("  finished by a run that crashed", summary.adopted_documents),
        ("  not scored before, not tried again", summary.remembered_documents),
        ("  kept out: forgotten", summary.forgotten_documents),
        ("examples adopted", summary.adopted_examples),
        ("examples pruned", summary.pruned_examples),
        ("examples replaced", summary.replaced_examples),
        ("examples postponed", summary.postponed_examples),
        ("damaged records; nothing was pruned", summary.prune_withheld),
    ]


def summary_lines(summary: RunSummary) -> list[tuple[str, str]]:
    """Name and value of each line."""
    lines = [
        ("documents read", f"{summary.documents:,}"),
        ("  repeats / already cached", f"{summary.duplicates:,} / {summary.known_documents:,}"),
        ("  new", f"{summary.new_documents:,}"),
        *((name, f"{count:,}") for name, count in _seldom(summary) if count),
        ("  rejected", f"{sum(summary.rejects.values()):,}"),
        *((f"    {reason}", f"{count:,}") for reason, count in summary.rejects.items()),
    ]
    totals = summary.totals
    if totals.tokens:
        positions = max(totals.positions, 1)
        workers = max(summary.workers, 1)
        worked = max(summary.wall_seconds * workers, 1e-9)
        lines += [
            ("examples", f"{totals.examples:,}"),
            ("tokens", f"{totals.tokens:,}"),
            ("padded / tokens", f"{summary.padded_tokens / totals.tokens:.3f}"),
            ("kept entries a position", f"{totals.entries / positions:.1f}"),
            ("kept mass", f"{totals.kept_mass_sum / positions:.4f}"),
            ("shards", f"{summary.shards:,}"),
            ("bytes", f"{summary.size_bytes:,}"),
            ("bytes a token", f"{summary.size_bytes / totals.tokens:.1f}"),
            ("workers", f"{workers:,}"),
            ("one teacher, tokens/s", f"{totals.tokens / max(summary.teacher_seconds, 1e-9):,.0f}"),
            ("job, tokens/s", f"{totals.tokens / max(summary.wall_seconds, 1e-9):,.0f}"),
            ("teachers busy", f"{summary.teacher_seconds / worked:.0%}"),
            ("encoding and sealing", f"{summary.encode_seconds / worked:.1%}"),
        ]
    lines += [
        ("seconds", f"{summary.wall_seconds:.1f}"),
        ("version", f"{summary.version}" if summary.version >= 0 else "none"),
    ]
    return lines
