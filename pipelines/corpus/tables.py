"""CSV and TSV: a header names the fields, a row is a record of texts. Python's `csv` reads the dialect (RFC 4180).

A quoted field may hold line ends, so a file is one piece: no reader that began in its middle could know whether a quote
is open. What one row takes in memory is bounded all the same; a row that cannot be one is told as a `BadRow`; and a
quote that is never closed is an error, for nobody can say how many rows are behind it.

There is neither null nor number: an empty field is an empty text, and only a label's text is taken as a number.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipelines.config import MAX_LINE_BYTES
from pipelines.corpus.labels import LabelMap
from pipelines.corpus.lines import BadRow, LongLine, Record, lines
from pipelines.rejects import AMBIGUOUS_LABEL, BAD_ROW, INVALID_UTF8, RejectedError
from schemas.errors import CorpusError, UsageError
from schemas.printable import printable

TABLES = {"csv": ",", "tsv": "\t"}
"""What stands between two fields, by format."""
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,18}\s*", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII)


class _LongRowError(Exception):
    """A row is too long already, and a quote is open where its next line begins: that line."""


class _Lines(Iterator[str]):
    """The lines that `csv` asks for, and where the row stands that it is at."""

    def __init__(self, chunks: Iterable[bytes], path: str, kind: str, limit: int) -> None:
        csv.field_size_limit(
            max(csv.field_size_limit(), limit + MAX_LINE_BYTES)
        )  # of the process: only raised
        self.delimiter = TABLES[kind]
        self._records, self._path, self._limit = lines(chunks, max(limit, MAX_LINE_BYTES)), path, limit
        self.number = self._next_offset = 0
        self.begin()

    def rows(self) -> Iterator[list[str]]:
        """These lines as rows."""
        return csv.reader(self, delimiter=self.delimiter, strict=True)

    def begin(self) -> None:
        """The next line begins a row."""
        self.offset, self.line = self._next_offset, self.number + 1
        self.size_bytes, self.is_utf8, self.opened = 0, True, self.line
        """`opened`: the line on which a quote was opened that is not closed yet, if one is."""

    def lines(self) -> str:
        """The lines that the row takes, in words."""
        return (
            f"on line {self.line}" if self.number == self.line else f"on lines {self.line} to {self.number}"
        )

    def __next__(self) -> str:
        line = self.take()
        if self.size_bytes - len(line) > self._limit:
            raise _LongRowError(line)
        return line

    def take(self) -> str:
        """The next line, however long its row is."""
        record = next(self._records)
        value = record.value
        self.number += 1
        if not isinstance(value, bytes):
            raise CorpusError(
                "a line of a table is too long: whether a quote is open behind it cannot be told",
                where=f"{self._path} line {self.number}",
                expected=f"lines of at most {max(self._limit, MAX_LINE_BYTES):,} bytes",
                got=f"{value.size_bytes:,} bytes" if isinstance(value, LongLine) else None,
                do="Mend the line, or raise --max_line_bytes",
            )
        self._next_offset = record.offset + len(value) + 1
        self.size_bytes += len(value) + 1
        if record.offset == 0:
            value = value.removeprefix(codecs.BOM_UTF8)
        try:
            line = value.decode("utf-8") + "\n"
        except UnicodeDecodeError:
            self.is_utf8 = False
            line = value.decode("utf-8", "surrogateescape") + "\n"
        if self.number > self.line and len(_behind_open_quote(line, self.delimiter)) > 1:
            self.opened = self.number
        return line


def _behind_open_quote(line: str, delimiter: str) -> list[str]:
    """The fields of a line at whose beginning a quote is open, if one is at its end too; else none."""
    rows = list(csv.reader([f'"{line}', "x"], delimiter=delimiter))
    return rows[0] if len(rows) == 1 else []


def header_of(chunks: Iterable[bytes], path: str, kind: str, limit: int) -> list[str]:
    """The names of a table's fields.

    Raises:
        UsageError: there is no header, or it names a field twice or not at all.
    """
    found = _Lines(chunks, path, kind, limit)
    return _header(found, found.rows(), path)


def table_records(chunks: Iterable[bytes], path: str, kind: str, limit: int) -> Iterator[Record]:
    """A table's rows, in order, each with the offset of its first byte; an empty line is one of no bytes.

    Raises:
        CorpusError: a quote is never closed, or a line is longer than `limit` and than the default one.
        UsageError: there is no header, or it names a field twice or not at all.
    """
    found = _Lines(chunks, path, kind, limit)
    rows = found.rows()
    names = _header(found, rows, path)
    while True:
        found.begin()
        try:
            row = next(rows)
        except StopIteration:
            return
        except _LongRowError as error:
            _pass_over(str(error), found, path)
            row = []
        except csv.Error as error:
            if _is_open(error):
                raise _never_closed(found, path) from None
            expected = "quotes around a whole field alone, and those inside it doubled (RFC 4180)"
            yield Record(found.offset, BadRow(BAD_ROW, expected, f"{error}, {found.lines()}"))
            continue
        yield Record(found.offset, _value(row, names, found, limit))


def _header(found: _Lines, rows: Iterator[list[str]], path: str) -> list[str]:
    expected, do = "one name a field, each once", "Give the file a header row, or say --format"
    try:
        names = next(rows, [])
    except (csv.Error, _LongRowError) as error:
        got = "a quote that is never closed" if _is_open(error) else "a row that is too long"
        got = str(error) if isinstance(error, csv.Error) and not _is_open(error) else got
        raise UsageError(
            "the first row of a table names no fields", where=path, expected=expected, got=got, do=do
        ) from None
    got = ""
    if not names:
        got = "nothing"
    elif not found.is_utf8:
        got = "other bytes than UTF-8"
    elif blank := [at for at, name in enumerate(names, 1) if not name.strip()]:
        got = f"no name, as field {blank[0]} of {len(names)}"
    elif len({*names}) < len(names):
        twice = min(name for name in names if names.count(name) > 1)
        got = f"{printable(twice)} {names.count(twice)} times"
    if got:
        raise UsageError(
            "the first row of a table names no fields", where=path, expected=expected, got=got, do=do
        )
    return names


def _value(row: list[str], names: list[str], found: _Lines, limit: int) -> Any:
    if found.size_bytes > limit:
        return LongLine(found.size_bytes)
    if not row:
        return b""
    if not found.is_utf8:
        return BadRow(INVALID_UTF8, "UTF-8", f"other bytes, {found.lines()}")
    if len(row) != len(names):
        return BadRow(BAD_ROW, f"{len(names)} fields, as in the header", f"{len(row)}, {found.lines()}")
    return dict(zip(names, row, strict=True))


def _pass_over(line: str, found: _Lines, path: str) -> None:
    """Reads on to where a row ends that is too long: of it a quote is open at the beginning of `line`."""
    while _behind_open_quote(line, found.delimiter):
        try:
            line = found.take()
        except StopIteration:
            raise _never_closed(found, path) from None


def _is_open(error: Exception) -> bool:
    return "unexpected end of data" in str(error)


def _never_closed(found: _Lines, path: str) -> CorpusError:
    return CorpusError(
        "a quote is never closed in a table",
        where=f"{path} line {found.opened}",
        got=f"one opened there, in the row of line {found.line} (byte {found.offset:,}), open to the file's end",
        do="Mend the row, or copy the file again if it was cut; nothing was committed",
    )


def with_number(fields: Mapping[str, Any], name: str | None, labels: LabelMap | None) -> Mapping[str, Any]:
    """The fields, and a label's text as the number that it is: of classes a whole one, unless the text is a class's
    name; of values any. Other texts stay.

    Raises:
        RejectedError: it is a number that some class is named by, and not that class's own.
    """
    value = fields.get(name) if name else None
    if name is None or labels is None or not isinstance(value, str) or labels.by_word or labels.by_answer:
        return fields
    if labels.score != "softmax":
        return {**fields, name: float(value)} if _NUMBER.fullmatch(value) else fields
    if not _WHOLE.fullmatch(value):
        return fields
    if labels.numbers_mislead and labels.ids.get(value) != int(value):
        expected = "a class's name: the teacher's classes are named by other classes' numbers"
        raise RejectedError(AMBIGUOUS_LABEL, field=name, expected=expected, got="a number")
    return fields if value in labels.ids or value in labels.shared else {**fields, name: int(value)}
