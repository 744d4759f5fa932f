"""Labels: how what a corpus says becomes classes. What could be read in two ways is refused, never guessed.

A class is told by the teacher's own name for it, or by its number. Of a multi-label document there are four readings:
a multi-hot list (V numbers or booleans, each 0 or 1), names, distinct numbers of classes, and the empty list, which is
no class. A list that has two readings with different results (`[0, 1]` for V = 2), a number where some class is *named*
by another class's number, and a name that two classes share are rejected. Each reading is counted, for the summary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.rejects import AMBIGUOUS_LABEL, UNKNOWN_LABEL, RejectedError, kind_of
from schemas.rows.boxes import num_named
from schemas.spec import Spec
from schemas.tasks import ANSWERS

_FLOAT32_MAX = (2 - 2**-23) * 2.0**127
_WHOLE = re.compile(r"\s*[+-]?[0-9]+(\.0*)?\s*")

Label = int | float | tuple[float, ...] | tuple[int, ...] | None

NAMES, NUMBERS, MIXED = "names", "numbers", "names and numbers"
MULTI_HOT, NO_CLASS, VALUES = "multi-hot", "no class", "values"
ANSWERED, UNANSWERABLE = "answered", "unanswerable"
READINGS = (MULTI_HOT, NAMES, NUMBERS, MIXED, NO_CLASS, VALUES, ANSWERED, UNANSWERABLE)


class LabelMap(NamedTuple):
    """How labels of the corpus become classes: by the teacher's own names, or by number."""

    ids: Mapping[str, int]
    num_classes: int
    score: str
    shared: frozenset[str] = frozenset()
    """Names that several classes have."""
    numbers_mislead: bool = False
    """Whether some class is named by a number that is not its own: then a number may be meant as a name."""
    by_word: bool = False
    """Whether the words of a text have labels, and not the text (`words.py`)."""
    by_answer: bool = False
    """Whether labels are stretches of a context (`answers.py`)."""
    always_answerable: bool = False
    """Whether each question must have one."""
    by_object: bool = False
    """Whether labels are objects of an image (`objects.py`)."""
    answers: int = 1
    """How many different ones a question may have; 1: the first of them is read."""

    @classmethod
    def of(cls, names: Sequence[str], num_classes: int, score: str) -> LabelMap:
        """From the classes' names, in order."""
        shared = (
            frozenset(name for name in names if names.count(name) > 1) if len(set(names)) < len(names) else ()
        )
        mislead = any(_WHOLE.fullmatch(name) and float(name) != index for index, name in enumerate(names))
        ids = {name: index for index, name in enumerate(names) if name not in shared}
        return cls(ids, num_classes, score, frozenset(shared), mislead)

    @classmethod
    def for_spec(cls, spec: Spec) -> LabelMap | None:
        """How labels become classes; None where a task has none of its own."""
        if not spec.kind.reads_labels:
            return None
        if spec.kind.labels == "objects":
            names = spec.label_names[: num_named(spec)]
            return cls.of(names, num_named(spec), "softmax")._replace(by_object=True)
        found = cls.of(spec.label_names, spec.vocab_size, spec.score)
        if spec.kind.labels == "answer":
            always = bool(spec.setting("always_answerable"))
            answers = max(1, int(spec.setting(ANSWERS)))
            return found._replace(by_answer=True, always_answerable=always, answers=answers)
        return found._replace(by_word=spec.kind.labels == "word")


class Labelled(NamedTuple):
    """A label, and how it was read."""

    label: Label
    reading: str


def read_label(value: Any, labels: LabelMap, field: str) -> Labelled:
    """The label that a field's value means.

    Raises:
        RejectedError: it means none, or more than one.
    """
    if labels.score == "softmax":
        return Labelled(_class_of(value, labels, field), NAMES if isinstance(value, str) else NUMBERS)
    if labels.score == "sigmoid":
        return _several(value, labels, field)
    values = value if isinstance(value, list) else [value]
    if len(values) != labels.num_classes or not all(_is_number(item) for item in values):
        expected = "a number" if labels.num_classes == 1 else f"a list of {labels.num_classes} numbers"
        raise RejectedError(
            UNKNOWN_LABEL, field=field, expected=f"{expected} within float32", got=kind_of(value)
        )
    return Labelled(tuple(float(item) for item in values), VALUES)


def _class_of(value: Any, labels: LabelMap, field: str) -> int:
    if isinstance(value, str):
        return named(value, labels, field)
    if not _is_whole(value):
        raise _unknown(labels, field, kind_of(value))
    if labels.numbers_mislead:
        raise RejectedError(
            AMBIGUOUS_LABEL,
            field=field,
            expected="a class's name, as a string: the teacher's classes are named by other classes' numbers",
            got=kind_of(value),
        )
    if not 0 <= value < labels.num_classes:
        raise _unknown(labels, field, "a number of no class")
    return int(value)


def named(value: Any, labels: LabelMap, field: str, which: str = "") -> int:
    """The class of that name; `which` tells which of a record's labels it is.

    Raises:
        RejectedError: no class has it, or several have.
    """
    if not isinstance(value, str):
        raise _unknown(labels, field, f"{kind_of(value)}{which}")
    if value in labels.ids:
        return labels.ids[value]
    if value in labels.shared:
        expected = "a name of one class" if labels.by_word else "a class's number"
        got = f"a name that several classes have{which}"
        raise RejectedError(AMBIGUOUS_LABEL, field=field, expected=expected, got=got)
    folded = {name.strip().casefold() for name in (*labels.ids, *labels.shared)}
    near = value.strip().casefold() in folded
    told = "but for case or blanks is one" if near else "names none"
    raise _unknown(labels, field, f"a string that {told}{which}")


def _several(value: Any, labels: LabelMap, field: str) -> Labelled:
    """A list of classes as V numbers, each 0 or 1."""
    if not isinstance(value, list):
        raise RejectedError(UNKNOWN_LABEL, field=field, expected=_list_expected(labels), got=kind_of(value))
    if not value:
        return Labelled((0.0,) * labels.num_classes, NO_CLASS)
    hot = _multi_hot(value, labels)
    if hot is not None and not _could_be_numbers(value, labels):
        return Labelled(hot, MULTI_HOT)
    if hot is not None and _from_classes(value, labels) != hot:
        raise RejectedError(
            AMBIGUOUS_LABEL,
            field=field,
            expected="names; or true and false, or 0.0 and 1.0, for multi-hot",
            got=f"{kind_of(value)} that is multi-hot as well as numbers of classes",
        )
    classes = _distinct(value, labels, field)
    return Labelled(_from_classes(classes, labels), _reading(value))


def _multi_hot(value: list[Any], labels: LabelMap) -> tuple[float, ...] | None:
    """The list as a multi-hot one; None where it cannot be one."""
    if len(value) != labels.num_classes or not all(
        isinstance(v, bool | int | float) and v in (0, 1) for v in value
    ):
        return None
    return tuple(float(item) for item in value)


def _could_be_numbers(value: list[Any], labels: LabelMap) -> bool:
    """Whether all are whole, distinct and numbers of classes."""
    whole = all(_is_whole(item) and 0 <= item < labels.num_classes for item in value)
    return whole and len(set(value)) == len(value)


def _distinct(value: list[Any], labels: LabelMap, field: str) -> list[int]:
    if not all(isinstance(item, str) or _is_whole(item) for item in value):
        odd = next(item for item in value if not (isinstance(item, str) or _is_whole(item)))
        got = f"{kind_of(value)} that holds {kind_of(odd)}"
        raise RejectedError(UNKNOWN_LABEL, field=field, expected=_list_expected(labels), got=got)
    classes = [_class_of(item, labels, field) for item in value]
    if len(set(classes)) < len(classes):
        got = f"{kind_of(value)} that names a class twice"
        raise RejectedError(UNKNOWN_LABEL, field=field, expected=_list_expected(labels), got=got)
    return classes


def _from_classes(classes: Sequence[int], labels: LabelMap) -> tuple[float, ...]:
    return tuple(float(index in classes) for index in range(labels.num_classes))


def _reading(value: list[Any]) -> str:
    named = sum(isinstance(item, str) for item in value)
    if named == len(value):
        return NAMES
    return MIXED if named else NUMBERS


def _list_expected(labels: LabelMap) -> str:
    count = labels.num_classes
    return f"a list: {count} times 0 or 1, or distinct classes by name or by number, 0 to {count - 1}"


def _unknown(labels: LabelMap, field: str, got: str) -> RejectedError:
    expected = "a class by the teacher's name"
    if not labels.by_word:
        expected += f" or by its number, 0 to {labels.num_classes - 1}"
    return RejectedError(UNKNOWN_LABEL, field=field, expected=expected, got=got)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether a value is a number that float32 holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FLOAT32_MAX
