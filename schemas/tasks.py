"""What a task is, to a cache: one frozen value each. Nothing else in this package knows a task by its name.

A teacher's answer about an example is a list of positions, each with scores over V. A task says where positions stand,
what is known to be right there, and what a cache of it holds beside. How documents become examples, and what models are
asked, is in `pipelines/tasks/NAME.py` and `trainer/tasks/NAME.py`: a task that is added stands here and there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from schemas.limits import refuse_unless

Score = Literal["softmax", "sigmoid", "identity"]
Places = Literal["before_next_token", "whole_text", "token"]
"""Where positions stand: on tokens that have another behind them (all where a row names none); one on the first token,
for the whole text; on tokens that each row names."""
Labels = Literal["next_token", "document", "position", "word"]
"""What is right: the token behind the position, stored nowhere else; the corpus's label, in rows that have one; an id
of each position, in every row; the corpus's label of each word, at its position, in rows that have them."""
SettingValue = bool | int | float


@dataclass(frozen=True)
class Setting:
    """A choice that a task leaves to the user: a flag of its name, and part of the spec."""

    name: str
    default: SettingValue
    low: int | float
    high: int | float
    help: str

    def check(self, value: SettingValue) -> None:
        """Refuses what this setting cannot be.

        Raises:
            ValueError: naming the setting and what it got.
        """
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
    has_source: bool = False
    """Whether an example's first tokens are a source, which an encoder reads, and the others the target, whose tokens
    positions predict; the column `SOURCE_TOKENS` says how many are the source's."""
    columns: tuple[TaskColumn, ...] = ()
    settings: tuple[Setting, ...] = ()
    is_declared: bool = True
    """Whether a reader must know the task by name; the first two stand in format 1 itself."""

    @property
    def required_features(self) -> tuple[str, ...]:
        """What a reader must know to read such a cache."""
        return (f"task:{self.name}",) if self.is_declared else ()

    @property
    def reads_labels(self) -> bool:
        """Whether the corpus says what is right."""
        return self.labels in ("document", "word")

    @property
    def stores_gold(self) -> bool:
        """Whether examples carry what is right at each position."""
        return self.labels in ("position", "word")

    @property
    def predicts_tokens(self) -> bool:
        """Whether positions are tokens of the text, which may then be supervised or not."""
        return self.places != "whole_text"

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
        """Tokens of the longest example; `max_length` is what a model reads at once, of each of source and target."""
        return 2 * max_length if self.has_source else max_length

    def position_bounds(self, examples: int, tokens: int) -> tuple[int, int]:
        """The fewest and the most positions of so many examples with so many tokens in all."""
        most = {"before_next_token": tokens - examples, "whole_text": examples, "token": tokens}
        return 0 if self.implies_places else examples, most[self.places]

    def settled(self, given: Mapping[str, SettingValue]) -> tuple[tuple[str, SettingValue], ...]:
        """Every setting's value, in order: as given, else its default.

        Raises:
            ValueError: the task has no such setting, or not with this value.
        """
        known = {setting.name: setting for setting in self.settings}
        for name, value in given.items():
            refuse_unless(name in known, f"a setting of {self.name}", name)
            known[name].check(value)
        return tuple((name, given.get(name, setting.default)) for name, setting in known.items())


CAUSAL_LM = Task(
    name="causal-lm",
    places="before_next_token",
    labels="next_token",
    scores=("softmax",),
    has_vocabulary=True,
    takes_pairs=False,
    is_declared=False,
)
SEQUENCE_CLASSIFICATION = Task(
    name="sequence-classification",
    places="whole_text",
    labels="document",
    scores=("softmax", "sigmoid", "identity"),
    has_vocabulary=False,
    takes_pairs=True,
    is_declared=False,
)
MAX_VIEWS = 1024
MASKED_LM = Task(
    name="masked-lm",
    places="token",
    labels="position",
    scores=("softmax",),
    has_vocabulary=True,
    takes_pairs=True,
    columns=(TaskColumn("view_index", 0, MAX_VIEWS - 1),),
    settings=(
        Setting("views", 1, 1, MAX_VIEWS, "masked views of each window, each with masks of its own"),
        Setting("mlm_probability", 0.15, 0.001, 1.0, "share of a window's tokens that are positions"),
        Setting("mask_replace_prob", 0.8, 0.0, 1.0, "share of these that the teacher sees as the mask token"),
        Setting(
            "random_replace_prob",
            0.1,
            0.0,
            1.0,
            "share that it sees as a random token; the rest stay as they are",
        ),
        Setting("whole_word_mask", False, 0, 1, "mask all tokens of a word, or none"),
    ),
)
OUTSIDE = "O"
"""The class of words that are part of no entity."""
TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    places="token",
    labels="word",
    scores=("softmax",),
    has_vocabulary=False,
    takes_pairs=False,
)
SOURCE_TOKENS = "source_tokens"
SEQ2SEQ_LM = Task(
    name="seq2seq-lm",
    places="before_next_token",
    labels="next_token",
    scores=("softmax",),
    has_vocabulary=True,
    takes_pairs=False,
    has_source=True,
    columns=(TaskColumn(SOURCE_TOKENS, 1, 2**31 - 2),),
    settings=(
        Setting(
            "truncate_source",
            False,
            0,
            1,
            "cut sources longer than --max_length at their end, instead of rejecting the record",
        ),
    ),
)
TASKS = {
    task.name: task
    for task in (CAUSAL_LM, SEQUENCE_CLASSIFICATION, MASKED_LM, TOKEN_CLASSIFICATION, SEQ2SEQ_LM)
}
DEFAULT = CAUSAL_LM.name
"""Where a verb does not insist on being told."""
