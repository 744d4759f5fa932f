"""An example as a table: what the teacher was given and, position by position, what it said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from schemas.cli.tables import Table, number
from schemas.printable import printable


def example_table(row: Mapping[str, Any]) -> Table:
    """Of what `cache_report.describe_row` gives."""
    title = f"example {row['example_id']}, window {row['window']}, {row['tokens']:,} tokens"
    shown = [
        f"{name}: {printable(row[name])}" for name in ("document_id", "text", "text_pair") if row.get(name)
    ]
    shown += [f"image: {row['image_bytes']:,} bytes"] if "image_bytes" in row else []
    title = "\n".join([title, *shown])
    if "features" in row:
        features = ((name, one["length"], _numbers_of(one["first"])) for name, one in row["features"].items())
        return table(title, ("feature", "length", "first numbers"), features)
    return table(
        title, ("token", "input", "label", "kept", "largest entries"), map(_position, row["positions"])
    )


def table(title: str, names: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A table of numbers, and of all else as text."""
    return Table(title=title, names=tuple(names), rows=tuple(tuple(map(_cell, row)) for row in rows))


def _position(position: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        position["index"],
        _text(position.get("input")),
        _text(position["label"]),
        position.get("kept"),
        "  ".join(map(_entry, position["entries"])),
    )


def _numbers_of(values: Iterable[float]) -> str:
    return "  ".join(map(number, values))


def _entry(entry: Mapping[str, Any]) -> str:
    """What is known of it: its log-probability, its raw score, or what a drawn one weighs."""
    if "logprob" in entry:
        return f"{_text(entry)} {number(entry['logprob'])}"
    if "logit" in entry:
        return f"{_text(entry)} {number(entry['logit'])}"
    return f"{_text(entry)} weighs {number(entry['weight'])}"


def _text(value: Any) -> str:
    """An id with its text, quoted so that spaces and line ends show; other labels as they are."""
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    return f"{value['id']} {value['text']!r}" if "text" in value else str(value["id"])


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else str(value)
