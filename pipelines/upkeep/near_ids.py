"""Ids that `forget` finds nowhere, and that the cache knows but for blanks, quotes, commas or the case of letters.

A file of ids often comes out of a spreadsheet. What it holds is taken as it stands, because an id may have blanks, and
what was erased does not come back; but a line that is nearly an id is told, so that nobody is left in by a quote. Only
numbers go into what a run leaves behind: which line it is, and which reading of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_AROUND = " \t\r\v\f\u00a0\u200b\ufeff\"'`\u00b4\u2018\u2019\u201c\u201d\u00ab\u00bb,;[](){}"
_BETWEEN = re.compile(r"[,;\t]")
ALIKE = -1
"""In place of a reading: the id has such marks itself, or other letters' case."""


def readings(line: str) -> tuple[str, ...]:
    """What a line may have meant: itself without what stands around it, and each of its fields so."""
    found = (text.strip(_AROUND) for text in (line, *_BETWEEN.split(line)))
    return tuple(dict.fromkeys(text for text in found if text and text != line))


@dataclass(frozen=True, kw_only=True)
class Likely:
    """Readings of lines, each with the line's number and its place among them; and lines without marks and case."""

    exact: dict[str, list[tuple[int, int]]]
    alike: dict[str, list[tuple[int, int]]]

    @classmethod
    def of(cls, lines: tuple[str, ...]) -> Likely:
        exact: dict[str, list[tuple[int, int]]] = {}
        alike: dict[str, list[tuple[int, int]]] = {}
        for number, line in enumerate(lines):
            for place, text in enumerate(readings(line)):
                exact.setdefault(text, []).append((number, place))
            alike.setdefault(_bare(line), []).append((number, ALIKE))
        return cls(exact=exact, alike=alike)

    def near(self, names: Iterable[str]) -> set[tuple[int, int]]:
        """Lines that nearly are one of the names of a row, none of which was asked for as it is."""
        found: set[tuple[int, int]] = set()
        for name in names:
            found.update(self.exact.get(name) or self.alike.get(_bare(name), []))
        return found


def likely_ids(lines: Sequence[str], near: Iterable[tuple[int, int]]) -> dict[str, str]:
    """For each line that is nearly an id, what to say of it."""
    found: dict[str, str] = {}
    for number, place in sorted(near, reverse=True):
        line = lines[number]
        found[line] = (
            "one is there that differs only in the case of letters, or in blanks or quotes around it"
            if place == ALIKE
            else f"{readings(line)[place]} is there"
        )
    return found


def _bare(text: str) -> str:
    return text.strip(_AROUND).casefold()
