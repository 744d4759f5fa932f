"""`--where`: which rows are streamed at all, by what stands in them beside the kept entries, which are not decoded.

Rows are chosen a row group at a time, and a row group in which none is chosen is never read again: how many there are
is counted once, and kept beside the cache.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from schemas.errors import UsageError
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.spec import Spec

_FORM = re.compile(r"\s*([a-z_]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBERS = ("length", "positions", "entropy", "kept_mass", "label")
_EXPECTED = (
    f"NAME OPERATOR VALUE with one of {', '.join(_NUMBERS)}, document_id and one of {' '.join(_COMPARE)}"
)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One comparison. A row without such a value does not meet it, whatever it says."""

    name: str
    compare: str
    value: float | str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """From `length<=512`.

        Raises:
            UsageError: it is none.
        """
        match = _FORM.fullmatch(text)
        name, compare, value = match.groups() if match else ("", "", "")
        if name == "document_id" and compare in ("=", "!="):
            return cls(name=name, compare=compare, value=value)
        if name in _NUMBERS:
            if name == "label" and compare in ("=", "!=") and not _is_number(value):
                return cls(name=name, compare=compare, value=value)
            if _is_number(value):
                return cls(name=name, compare=compare, value=float(value))
        raise UsageError("--where cannot be read", expected=_EXPECTED, got=text)

    def met(self, rows: Rows) -> Bool[np.ndarray, " R"]:
        """By which of the rows."""
        if self.name == "document_id":
            ids = rows.array("document_id")
            there = np.array([value is not None for value in ids.tolist()], np.bool_)
            found: Array = there & _COMPARE[self.compare](ids.astype(str), self.value)
            return found
        values = _label(rows, self.value) if self.name == "label" else _COLUMNS[self.name](rows)
        wanted = 1.0 if self.name == "label" and rows.spec.score == "sigmoid" else self._number(rows.spec)
        met: Array = _COMPARE[self.compare](values, wanted)
        return ~np.isnan(values) & met

    def check(self, spec: Spec) -> None:
        """Whether the cache's rows can have such a value.

        Raises:
            UsageError: they cannot.
        """
        reason = {
            "entropy": "the cache does not store it" if "entropy" not in spec.scalars else "",
            "kept_mass": "the cache's policy draws, or keeps every score"
            if spec.is_sampling or spec.score != "softmax"
            else "",
            "document_id": "" if spec.has_document_id else "the cache was made without --id_field",
            "label": "" if spec.kind.labels == "document" else "the cache's rows have no label",
        }.get(self.name, "")
        if self.name == "label" and not reason:
            reason = self._wrong_label(spec)
        if reason:
            raise UsageError(f"--where {self.name} means nothing here: {reason}", got=str(self))

    def _wrong_label(self, spec: Spec) -> str:
        if isinstance(self.value, str) and self.value not in spec.label_names:
            return f"there is no such class, only {', '.join(spec.label_names) or 'numbers'}"
        if spec.score == "sigmoid" and self.compare not in ("=", "!="):
            return "a row has several classes, so that only = and != do"
        if spec.score == "identity" and spec.vocab_size > 1:
            return "a row has several values"
        return ""

    def _number(self, spec: Spec) -> float:
        return float(spec.label_names.index(self.value) if isinstance(self.value, str) else self.value)

    def __str__(self) -> str:
        value = f"{self.value:g}" if isinstance(self.value, float) else self.value
        return f"{self.name}{self.compare}{value}"


@dataclass(frozen=True)
class Where:
    """Conditions that all must be met."""

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Where | None:
        """From `["length<=512", "label=spam"]`; None where there are none.

        Raises:
            UsageError: one cannot be read.
        """
        return cls(tuple(map(Condition.parse, texts))) if texts else None

    def check(self, spec: Spec) -> None:
        """Whether each can be met by a cache's rows.

        Raises:
            UsageError: naming one that cannot.
        """
        for condition in self.conditions:
            condition.check(spec)

    def chosen(self, rows: Rows) -> Bool[np.ndarray, " R"]:
        """Which of the rows meet all."""
        found: Array = np.logical_and.reduce([condition.met(rows) for condition in self.conditions])
        return found

    def __str__(self) -> str:
        return " ".join(map(str, self.conditions))

    def key(self, *parts: object) -> int:
        """64 bits that tell what is counted by these conditions, and by what else is named."""
        told = repr([(one.name, one.compare, one.value) for one in self.conditions] + [*parts])
        return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest(), "little")


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _sums(values: Array, offsets: Array) -> Array:
    totals = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    found: Array = totals[offsets[1:]] - totals[offsets[:-1]]
    return found


def _means(values: Array, rows: Rows) -> Array:
    """Of each row's positions; not a number where it has none."""
    sums, counts = _sums(values, rows.position_offsets), np.diff(rows.position_offsets)
    found: Array = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return found


def _kept_mass(rows: Rows) -> Array:
    return _means(_sums(np.exp(rows.kept_logprobs()), rows.kept_offsets), rows)


def _label(rows: Rows, value: float | str) -> Array:
    """Each row's label; of several classes, whether it has the one that is meant."""
    labels = rows.ragged("labels")
    found = np.full(len(rows), np.nan)
    there = labels.lengths > 0
    if rows.spec.score == "sigmoid":
        names = rows.spec.label_names
        place = names.index(value) if isinstance(value, str) else int(value)
        width = rows.spec.vocab_size
        own = labels.values.reshape(-1, width)
        found[there] = own[:, place] >= 0.5 if 0 <= place < width else 0.0
        return found
    found[there] = labels.values[labels.offsets[:-1][there]]
    return found


_COLUMNS: Mapping[str, Callable[[Rows], Array]] = {
    "length": lambda rows: rows.input_ids.lengths.astype(np.float64),
    "positions": lambda rows: np.diff(rows.position_offsets).astype(np.float64),
    "entropy": lambda rows: _means(rows.entropy(), rows),
    "kept_mass": _kept_mass,
}
