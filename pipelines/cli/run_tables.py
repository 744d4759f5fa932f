"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from pipelines.job.outcome import RunSummary
from schemas.cli.tables import Table, number, print_table
from schemas.cli.tables import console as stdout
from schemas.printable import printable
from schemas.shards.seal import Totals


def summary_table(summary: RunSummary, cache: str, console: Console | None = None) -> None:
    """Prints what a run did."""
    console = console or stdout()
    if summary.postponed_examples:
        console.print(
            f"out of time: {summary.postponed_examples:,} examples are left; start the same run again "
            f"({printable(cache)})"
        )
    elif summary.overtaken:
        console.print(printable(_overtaken(summary, cache)))
    elif not summary.committed and not summary.new_documents:
        console.print(printable(_nothing_new(summary, cache)))
    elif not summary.committed:
        console.print(
            f"nothing came of {summary.new_documents:,} new documents: nothing was committed ({printable(cache)})"
        )
    print_table(Table(title=f"precompute into {cache}", rows=tuple(summary_lines(summary))), console)


def outcome_of(summary: RunSummary) -> str:
    """How a run ended, in a word or two."""
    if summary.postponed_examples:
        return "out of time"
    return "done" if summary.committed else "nothing new"


def _overtaken(summary: RunSummary, cache: str) -> str:
    return (
        f"overtaken: another run committed first, when this one had scored {summary.overtaken_examples:,} examples, "
        f"{summary.overtaken_tokens:,} tokens. {summary.adopted_examples:,} of them were adopted, and the others were "
        f"in the cache by then; the teacher then ran on {summary.totals.tokens:,} tokens more ({cache})"
    )


def _nothing_new(summary: RunSummary, cache: str) -> str:
    """Where something was neither new nor known, it says what."""
    rejected = sum(summary.rejects.values())
    other = [
        (rejected, "rejected"),
        (summary.remembered_documents, "not scored before and not tried again"),
        (summary.forgotten_documents, "kept out as forgotten"),
    ]
    what = f"{summary.documents:,} documents, all known"
    if not summary.documents:
        what = "the corpus holds no documents"
    elif any(count for count, _ in other):
        known = summary.known_documents + summary.duplicates
        said = [f"{count:,} {name}" for count, name in ((known, "known"), *other) if count]
        what = f"of {summary.documents:,} documents {', '.join(said)}"
    return f"nothing new: {what}; the teacher ran on nothing and nothing was committed ({cache})"


def _seldom(summary: RunSummary) -> list[tuple[str, int]]:
    """What most nights have none of."""
    return [
        ("  left by a try that did not commit", summary.adopted_documents),
        ("  not scored before, not tried again", summary.remembered_documents),
        ("  kept out: forgotten", summary.forgotten_documents),
        ("documents cut to --max_length", summary.truncated_pairs),
        ("examples adopted", summary.adopted_examples),
        ("examples pruned", summary.pruned_examples),
        ("examples replaced", summary.replaced_examples),
        ("examples scored, and overtaken by another run", summary.overtaken_examples),
        ("examples postponed", summary.postponed_examples),
        ("damaged records; nothing was pruned", summary.prune_withheld),
    ]


def _kept(totals: Totals) -> list[tuple[str, str]]:
    """What was kept of a position, where there are any."""
    return [
        ("kept entries a position", number(totals.entries / totals.positions)),
        ("kept mass", number(totals.kept_mass_sum / totals.positions)),
    ]


def labels_read(labels: Mapping[str, int]) -> list[tuple[str, str]]:
    """How labels were read, where there are any."""
    read = ", ".join(f"{reading} {count:,}" for reading, count in labels.items())
    return [("labels read as", read)] if read else []


def summary_lines(summary: RunSummary) -> list[tuple[str, str]]:
    """Name and value of each line."""
    lines = [
        ("documents read", f"{summary.documents:,}"),
        ("  repeats / already cached", f"{summary.duplicates:,} / {summary.known_documents:,}"),
        ("  new", f"{summary.new_documents:,}"),
        *((name, f"{count:,}") for name, count in _seldom(summary) if count),
        ("  rejected", f"{sum(summary.rejects.values()):,}"),
        *((f"    {reason}", f"{count:,}") for reason, count in summary.rejects.items()),
        *labels_read(summary.labels),
    ]
    totals = summary.totals
    if totals.tokens:
        workers = max(summary.workers, 1)
        worked = max(summary.wall_seconds * workers, 1e-9)
        lines += [
            ("examples", f"{totals.examples:,}"),
            ("tokens", f"{totals.tokens:,}"),
            ("padded / tokens", number(summary.padded_tokens / totals.tokens)),
            *(_kept(totals) if totals.positions else []),
            ("shards", f"{summary.shards:,}"),
            ("bytes", f"{summary.size_bytes:,}"),
            ("bytes a token", number(summary.size_bytes / totals.tokens)),
            ("workers", f"{workers:,}"),
            ("one teacher, tokens/s", number(totals.tokens / max(summary.teacher_seconds, 1e-9))),
            ("job, tokens/s", number(totals.tokens / max(summary.wall_seconds, 1e-9))),
            ("teachers busy", number(summary.teacher_seconds / worked)),
            ("encoding and sealing", number(summary.encode_seconds / worked)),
        ]
    lines += [
        ("keep", summary.keep),
        ("seconds", number(summary.wall_seconds)),
        ("version", f"{summary.version}" if summary.version >= 0 else "none"),
    ]
    return lines
