"""`teachonce inspect CACHE --browse`: one example after the other, and a search among them.

Commands are lines on stdin, typed or from a file; answers are the tables of `inspect`, on stdout. Nothing is drawn over
and no screen is taken, so a terminal, a pipe and a test are one thing, and nothing of a corpus can move anything: what
it holds passes `printable`, and no part of it is taken for markup.

One row group is held at a time. A search reads on from the example that is shown, through the whole cache if it must,
and Ctrl-C ends it.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from schemas.cache import Cache
from schemas.cli.cache_report import describe_row
from schemas.cli.examples import example_table
from schemas.cli.tables import console, print_table
from schemas.cli.terminal import print_lines
from schemas.cli.vocabulary import id_texts, token_texts
from schemas.errors import UsageError
from schemas.rows.rows import Rows

HELP = """\
  Enter, n      the next example                p        the one before
  g N           the Nth, from 1                 m        more positions of this one
  / TEXT        the next that has this text (in small or capital letters)
  id BEGINNING  the next whose example id or document id begins so
  e > NATS      the next whose mean entropy is above, with e < NATS below
  r             the last search again           h, q     this help; leave
"""
_POSITIONS = 20
"""Of an example that are shown at once."""
_TOP = 5
_MOST_LETTERS = 4096
"""Of a command."""
_ENTROPY = re.compile(r"e\s*([<>])\s*(\S+)")

Found = Callable[[Rows], bool]
"""Whether a row, of which there is one, is what is looked for."""


def browse(cache: Cache) -> None:
    """Shows examples until stdin ends or says so.

    Raises:
        CorruptionError: a shard is damaged.
    """
    browser = _Browser(cache)
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    print_lines(f"{cache.storage.root}, version {cache.version}: {browser.number:,} examples; h for help")
    browser.show()
    for line in _lines(is_typed):
        if line in ("q", "quit", "exit"):
            return
        try:
            browser.obey(line)
        except UsageError as error:
            print_lines(str(error))


def _lines(is_typed: bool) -> Iterator[str]:
    """Commands, each after a prompt where somebody types them."""
    if sys.stdin is None:
        return
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    while True:
        if is_typed:
            sys.stdout.write("> ")
            sys.stdout.flush()
        line = sys.stdin.readline(_MOST_LETTERS)
        if not line:
            return
        yield line.strip()


class _Browser:
    """Which example is shown, and what was looked for last."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self._out = cache, console()
        self._inputs, self._scores = token_texts(cache), id_texts(cache)
        sizes = [ref.group.examples for ref in cache.row_groups]
        self._firsts = [0, *itertools.accumulate(sizes)]
        self.number = self._firsts[-1]
        self._at, self._position = 0, 0
        self._sought: Found | None = None

    def show(self) -> None:
        """The example, from the position on at which it stands."""
        if not self.number:
            print_lines("no example is left in this version")
            return
        row = describe_row(self._row(self._at), self._inputs, self._scores, _TOP)
        number, first = len(row["positions"]), self._position
        row["positions"] = row["positions"][first : first + _POSITIONS]
        print_lines(f"{self._at + 1:,} of {self.number:,}")
        table = example_table(row)
        if not table.rows:  # of a text of one token nothing was predicted
            print_lines(*table.title.split("\n"))
        print_table(table, self._out)
        if first + _POSITIONS < number:
            print_lines(f"positions {first + 1:,} to {first + _POSITIONS:,} of {number:,}; m for more")

    def obey(self, line: str) -> None:
        """Does what a command says.

        Raises:
            UsageError: it cannot be read.
        """
        word, _, rest = line.partition(" ")
        if line in ("h", "help", "?"):
            print_lines(*HELP.splitlines())
        elif line in ("", "n", "p"):
            self._go(self._at + (-1 if line == "p" else 1))
        elif line == "m":
            self._position += _POSITIONS
            self.show()
        elif word == "g":
            self._go(_natural(rest) - 1)
        elif line == "r":
            self._seek(self._sought)
        else:
            self._seek(self._parse(line))

    def _parse(self, line: str) -> Found:
        if line.startswith("/"):
            return functools.partial(self._has_text, needle=line[1:].strip().casefold())
        if line.startswith("id "):
            return functools.partial(_begins, start=line[3:].strip())
        if match := _ENTROPY.fullmatch(line):
            if "entropy" not in self._cache.spec.scalars or self._cache.spec.score != "softmax":
                raise UsageError("the cache keeps no entropies", do="Precompute with --scalars entropy")
            return functools.partial(_is_beyond, bound=_nats(match[2]), above=match[1] == ">")
        raise UsageError("no such command", got=line, do="h shows them all")

    def _go(self, at: int) -> None:
        if not 0 <= at < self.number:
            raise UsageError("there is no such example", expected=f"1 to {self.number:,}", got=f"{at + 1:,}")
        self._at, self._position = at, 0
        self.show()

    def _seek(self, sought: Found | None) -> None:
        """Goes to the next that is meant, round the end and back to the one that is shown."""
        if sought is None:
            raise UsageError("nothing was looked for yet", do="h shows how")
        self._sought = sought
        for step in range(1, self.number + 1):
            at = (self._at + step) % self.number
            if sought(self._row(at)):
                self._go(at)
                return
        raise UsageError("no example is so")

    def _row(self, at: int) -> Rows:
        place = int(np.searchsorted(self._firsts, at, side="right")) - 1
        return self._group(place).take(np.array([at - self._firsts[place]]))

    @functools.lru_cache(maxsize=1)  # noqa: B019  (the browser lives as long as the command)
    def _group(self, place: int) -> Rows:
        return self._cache.read(self._cache.row_groups[place])

    def _has_text(self, row: Rows, needle: str) -> bool:
        """In its own texts, or in its tokens as they stand in the vocabulary, put together in either way."""
        tokens = [self._inputs.get(index, "") for index in row.input_ids.values.tolist()]
        texts = ["".join(tokens), " ".join(tokens).replace(" ##", "")]
        texts += [str(row.array(name)[0] or "") for name in ("text", "text_pair") if name in row.data]
        return any(needle in text.casefold() for text in texts)


def _begins(row: Rows, start: str) -> bool:
    ids = [row.example_ids[0].hex(), row.array("document_hash")[0].tobytes().hex()]
    ids += [str(row.array("document_id")[0])] if "document_id" in row.data else []
    return any(own.startswith(start) for own in ids)


def _is_beyond(row: Rows, bound: float, above: bool) -> bool:
    """Of an example without a position nothing is."""
    entropies = row.entropy()
    mean = float(entropies.mean()) if len(entropies) else math.nan
    return mean > bound if above else mean < bound


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise UsageError("this is no number of an example", expected="a whole number from 1", got=text)
    return int(text)


def _nats(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError("this is no entropy", expected="a number of nats", got=text) from error


def check_browsing(arguments: Any) -> None:
    """Whether nothing is asked for beside it that it has no use for.

    Raises:
        UsageError: naming the flag.
    """
    for name in ("json", "rows"):
        if getattr(arguments, name):
            raise UsageError(f"--{name} has no effect with --browse", do="Leave one of them out")
