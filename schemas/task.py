"""What a task is, to a cache: `Task`. The tasks themselves, one frozen value each, are in `tasks.py`.

A teacher's answer about an example is a list of positions, each with scores over V. A task says where positions stand,
what is known to be right there, and what a cache of it holds beside. How documents become examples, and what models are
asked, is in `pipelines/tasks/NAME.py` and `trainer/tasks/NAME.py`: a task that is added stands here and there.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy.typing as npt

from schemas.limits import refuse_unless

Score = Literal["softmax", "sigmoid", "identity", "none"]
"""What a position's scores are; `none` where there is no position to have any."""
Places = Literal["before_next_token", "whole_text", "token", "text", "none"]
"""Where positions stand: on tokens that have another behind them (all where a row names none); on no token, for the
whole text, numbered from 0; on tokens that each row names; on the first token of each of the texts that a row holds;
nowhere, where a text has features alone."""
Labels = Literal["next_token", "document", "position", "word", "answer", "text", "objects", "none"]
"""What is right: the token behind the position, stored nowhere else; the corpus's label, in rows that have one; an id
of each position, in every row; the corpus's label of each word, at its position, in rows that have them; the first
and the last token of the corpus's answer, in rows of which that is known; its number of each text; the corpus's
objects, any number in a row, in columns of their own; nothing."""
SettingValue = bool | int | float | str
MAX_ROW_TOKENS = 2**30
"""Of several texts in one row: its lists have offsets of 32 bits."""


def is_unicode(text: str) -> bool:
    """Whether a text can be written down: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Setting:
    """A choice that a task leaves to the user: a flag of its name, and part of the spec."""

    name: str
    default: SettingValue
    low: int | float
    """Of a text, its least characters."""
    high: int | float
    help: str
    by_teacher: bool = False
    """Whether the teacher's folder may say another default."""
    is_later: bool = False
    """Whether there are caches from before it: a spec names it only where it is not the default."""

    def check(self, value: SettingValue) -> None:
        """Refuses what this setting cannot be.

        Raises:
            ValueError: naming the setting and what it got.
        """
        if isinstance(value, str):
            fits = isinstance(self.default, str) and self.low <= len(value) <= self.high and is_unicode(value)
            refuse_unless(fits, f"{self.name} (a text of at most {self.high:g} characters)", value)
        else:
            fits = type(value) is type(self.default) and self.low <= value <= self.high
            refuse_unless(fits, f"{self.name} ({self.low:g} to {self.high:g})", value)


@dataclass(frozen=True)
class TaskColumn:
    """A whole number that each row of a task has."""

    name: str
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of question that a teacher can be asked."""

    name: str
    places: Places
    labels: Labels
    scores: tuple[Score, ...]
    """Those that its teachers can have; where there are several, the teacher's config says which."""
    has_vocabulary: bool
    """Whether V is the tokenizer's, and a head is applied to the last hidden states in chunks; else it is the number of
    classes."""
    takes_pairs: bool
    needs_pairs: bool = False
    """Whether a document is always a pair."""
    reads_images: bool = False
    """Whether an example is an image: its row has the bytes, and one token that stands for it."""
    text_positions: int = 1
    """How many positions a whole text has."""
    counted_by: str = ""
    """The setting that says so instead, where teachers differ."""
    has_boxes: bool = False
    """Whether each position has a box beside its scores; of softmax scores the last class is then no object."""
    class_columns: tuple[str, str] | None = None
    """Where the classes are a row's own tokens, V is `max_length` and an id is a token's index: the columns that say
    from which token on, and before which, a position may choose. Beside these the first token, which stands for none,
    unless the setting `always_answerable` is on."""
    has_source: bool = False
    """Whether an example's first tokens are a source, which an encoder reads, and the others the target, whose tokens
    positions predict; the column `SOURCE_TOKENS` says how many are the source's."""
    columns: tuple[TaskColumn, ...] = ()
    settings: tuple[Setting, ...] = ()
    numbered_by: str = ""
    """The setting that says how often a row has the numbered columns."""
    numbered_columns: tuple[TaskColumn, ...] = ()
    """Columns that a row has several of, `NAME_1`, `NAME_2` and so on."""
    is_written: bool = False
    """Whether a teacher can write the texts itself."""
    is_declared: bool = True
    """Whether a reader must know the task by name; the first two stand in format 1 itself."""

    def column_index(self, name: str) -> int:
        """Which of its columns has this name.

        Raises:
            ValueError: none.
        """
        return [column.name for column in self.columns].index(name)

    @property
    def required_features(self) -> tuple[str, ...]:
        """What a reader must know to read such a cache."""
        return (f"task:{self.name}",) if self.is_declared else ()

    @property
    def reads_labels(self) -> bool:
        """Whether the corpus says what is right."""
        return self.labels in ("document", "word", "answer", "text", "objects")

    @property
    def stores_gold(self) -> bool:
        """Whether examples carry what is right at each position."""
        return self.labels in ("position", "word", "answer")

    @property
    def predicts_tokens(self) -> bool:
        """Whether positions are tokens of the text, which may then be supervised or not."""
        return self.places not in ("whole_text", "text", "none")

    @property
    def holds_texts(self) -> bool:
        """Whether a row is several texts, one after the other, each asked for alone; `max_length` is of one."""
        return self.places == "text"

    @property
    def has_positions(self) -> bool:
        """Whether a teacher scores anything; else a row holds what its text is, and a cache needs a feature."""
        return self.places != "none"

    @property
    def takes_conversations(self) -> bool:
        """Whether a document may be messages, or a prompt with its completion."""
        texts = self.has_positions and not (self.has_source or self.reads_images)
        return texts and self.labels not in ("word", "text", "answer")

    @property
    def classes_are_tokens(self) -> bool:
        """Whether each row has classes of its own: its tokens."""
        return self.class_columns is not None

    @property
    def has_named_classes(self) -> bool:
        """Whether V is a list of classes, which the teacher's config names."""
        return self.has_positions and not (self.has_vocabulary or self.classes_are_tokens)

    @property
    def precedes_tokens(self) -> bool:
        """Whether positions stand before the tokens that they predict, which no model may see there."""
        return self.places == "before_next_token"

    @property
    def implies_places(self) -> bool:
        """Whether a row need not name its positions: null means every token but the last."""
        return self.precedes_tokens and not self.has_source

    def num_places(self, tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """How many tokens of an example, from its first on, may hold a position; from how many it has."""
        return tokens - 1 if self.precedes_tokens else tokens

    def most_tokens(self, max_length: int) -> int:
        """Tokens of the longest row; `max_length` is what a model reads at once, of each of source and target."""
        if self.reads_images:
            return 1
        if self.holds_texts:
            return MAX_ROW_TOKENS
        return 2 * max_length if self.has_source else max_length

    def position_bounds(self, examples: int, tokens: int) -> tuple[int, int]:
        """The fewest and the most positions of so many examples with so many tokens in all."""
        whole = examples * self.text_positions
        fewest, most = {
            "before_next_token": (0, tokens - examples),
            "whole_text": (whole, whole),
            "token": (examples, tokens),
            "text": (examples, tokens),
            "none": (0, 0),
        }[self.places]
        return fewest, most

    def settled(self, given: Mapping[str, SettingValue]) -> tuple[tuple[str, SettingValue], ...]:
        """Every setting's value, in order: as given, else its default, which a later one leaves out.

        Raises:
            ValueError: the task has no such setting, or not with this value.
        """
        known = {setting.name: setting for setting in self.settings}
        for name, value in given.items():
            refuse_unless(name in known, f"a setting of {self.name}", name)
            known[name].check(value)
        values = ((setting, given.get(name, setting.default)) for name, setting in known.items())
        return tuple(
            (setting.name, value)
            for setting, value in values
            if not (setting.is_later and value == setting.default)
        )

    def default_of(self, name: str) -> SettingValue:
        """What a setting is where nobody says it.

        Raises:
            KeyError: there is none of that name.
        """
        return {setting.name: setting.default for setting in self.settings}[name]

    def of_settings(self, settings: tuple[tuple[str, SettingValue], ...]) -> Task:
        """The same with the columns, and the number of positions, that these settings ask for."""
        if self.counted_by:
            return _counted(self, int(dict(settings)[self.counted_by]))
        return self if not self.numbered_by else _numbered(self, int(dict(settings).get(self.numbered_by, 0)))


@functools.lru_cache(maxsize=64)
def _counted(task: Task, positions: int) -> Task:
    return replace(task, text_positions=positions)


@functools.lru_cache(maxsize=64)
def _numbered(task: Task, times: int) -> Task:
    more = (
        replace(column, name=f"{column.name}_{number}")
        for number in range(1, times + 1)
        for column in task.numbered_columns
    )
    return replace(task, columns=(*task.columns, *more))
