"""Tables for people: one look, one format of numbers, and nothing cut, wherever they are shown.

Where there is no terminal (a pipe, a file, a log) a table is as wide as it needs, a row a line. In a terminal it fits
the columns that there are: texts are folded; where the numbers alone are too wide, rows and columns change places; and
where that is too wide as well, the columns go into several tables one below the other. No heading and no value ever
ends in an ellipsis. Costs a pass over the cells.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from schemas.printable import printable

Cell = str | int | float | None

_UNBOUNDED = 2**20
"""Columns of what is no terminal."""
_FOLDED = 16
"""Columns that a text is left at least, if it has as many."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A title, headings and rows; without headings it is a list of names and values."""

    title: str
    names: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.rows} | ({len(self.names)} if self.names else set())
        if len(widths) > 1 or 0 in widths:
            raise ValueError(f"rows of {sorted(widths)} cells in one table")


def console() -> Console:
    """Stdout, by the width of its terminal; nothing that is printed is taken for markup."""
    width = None if sys.stdout.isatty() else _UNBOUNDED
    return _Console(markup=False, highlight=False, emoji=False, width=width)


class _Console(Console):
    """Rich's, which would end the process by itself, without a word, where nobody reads on."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704  (rich calls this where it has caught the error)


def print_table(table: Table, out: Console) -> None:
    """The title as a line, and the rows below it, in `out.width` columns; nothing where there are no rows."""
    if not table.rows:
        return
    out.print(Text("\n".join(map(printable, table.title.split("\n"))), style="italic"))
    for part in _parts(table, out.width):
        out.print(_drawn(part, out.width))


def number(value: int | float | None) -> str:
    """A number as all tables show it: whole ones in full, with commas; others in five digits that count.

    From 10,000 on they are rounded to whole ones; what is not known is `-`.
    """
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 1e4:
        return f"{value:,.0f}" if isinstance(value, float) else f"{value:,}"
    return f"{value:#,.5g}".rstrip(".")


def _text(cell: Cell) -> str:
    return printable(cell) if isinstance(cell, str) else number(cell)


def _parts(table: Table, width: int) -> list[Table]:
    """The table; or turned over, if it fits only so; or in several, each with the first column before its own."""
    if not table.names or _least(table) <= width:
        return [table]
    turned = _turned(table)
    if _least(turned, folded=False) <= width:
        return [turned]
    bands, taken = [], [1]
    for index in range(2, len(table.names)):
        if _least(_chosen(table, [*taken, index])) > width:
            bands.append(taken)
            taken = []
        taken = [*taken, index]
    return [_chosen(table, own) for own in [*bands, taken]]


def _turned(table: Table) -> Table:
    names = (table.names[0], *(_text(row[0]) for row in table.rows))
    columns = zip(table.names[1:], *(row[1:] for row in table.rows), strict=True)
    return replace(table, names=names, rows=tuple(columns))


def _chosen(table: Table, indices: Sequence[int]) -> Table:
    """The first column, and these."""
    kept = [0, *indices]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return replace(table, names=tuple(table.names[index] for index in kept), rows=rows)


def _least(table: Table, *, folded: bool = True) -> int:
    """Columns of the screen that it takes, its texts folded or not; each has a border and blanks around it."""
    total = 1
    for index, name in enumerate(table.names):
        cells = [row[index] for row in table.rows]
        widest = max(map(cell_len, [printable(name), *map(_text, cells)]))
        total += 3 + (min(widest, _FOLDED) if folded and not _are_numbers(cells) else widest)
    return total


def _are_numbers(cells: Sequence[Cell]) -> bool:
    return not any(isinstance(cell, str) for cell in cells)


def _drawn(table: Table, width: int) -> Drawn:
    """As rich draws it: texts give way first, numbers only where nothing else is left to."""
    drawn = Drawn(show_header=bool(table.names))
    whole = _least(table) <= width
    for index, name in enumerate(table.names or [""] * len(table.rows[0])):
        numbers = _are_numbers([row[index] for row in table.rows])
        drawn.add_column(
            printable(name),
            justify="right" if numbers else "left",
            no_wrap=numbers and whole and bool(table.names),
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*map(_text, row))
    return drawn
