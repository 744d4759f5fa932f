"""Token classifiers (entities, parts of speech): a position on the first token of each word.

Words are the corpus's own where it says them, else the tokenizer's. A token is of the first word that it shares a
character with. A span's label is that of each word it shares a character with; the first of these begins it. A word of
which no token is left (a tokenizer may drop characters) has no position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import transformers
from jaxtyping import Int64
from torch import Tensor

from pipelines.tasks.teacher_task import Asked, Settings, TeacherTask, gathered, model_name
from pipelines.tasks.windows import Tokens, Window, stretches
from schemas.errors import UsageError
from schemas.rows.ragged import Array
from schemas.spec import Spec


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """Windows whose positions are the words that begin in them."""

    spec: Spec
    outside: int | None
    """The class of words that no span has."""

    def windows(self, tokens: Tokens) -> list[Window]:
        begins, found = self._begins(tokens), []
        for stretch in stretches(tokens, self.spec):
            places = np.flatnonzero(begins[stretch.tokens]).astype(np.int32)
            places = places[places >= stretch.first_new]
            if places.size:
                found.append(Window(stretch.tokens, places))
        return found

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        gold = None
        if tokens.label is not None:
            gold = self._gold(tokens)[window.tokens[window.positions]].astype(np.int32)
        return Asked(tokens.ids[window.tokens], window.positions, gold)

    def _begins(self, tokens: Tokens) -> Array:
        """Which tokens are the first of their word."""
        word, begins = _words(tokens), np.zeros(len(tokens.ids), np.bool_)
        known = np.flatnonzero(word >= 0)
        begins[known[np.unique(word[known], return_index=True)[1]]] = True
        return begins

    def _gold(self, tokens: Tokens) -> Int64[np.ndarray, " S"]:
        """The class of each token's word; what stands at tokens of none means nothing."""
        word = _words(tokens)
        if tokens.document_words is not None:
            found: Array = np.asarray(tokens.label, np.int64)[word]
            return found
        assert self.outside is not None  # without such a class no label was read
        first, last = _spans(tokens, word)
        gold = np.full(len(first), self.outside, np.int64)
        for start, end, begin, inside in np.asarray(tokens.label, np.int64).reshape(-1, 4).tolist():
            own = np.flatnonzero((last > start) & (first < end))
            gold[own], gold[own[:1]] = inside, begin
        each: Array = gold[word]
        return each


def _words(tokens: Tokens) -> Int64[np.ndarray, " S"]:
    """Which word each token is of; -1: of none."""
    assert tokens.characters is not None
    assert tokens.words is not None
    begins, ends = tokens.characters.T
    if tokens.document_words is None:
        word = tokens.words.astype(np.int64)
    else:
        own = np.asarray(tokens.document_words, np.int64).reshape(-1, 2)
        word = np.searchsorted(own[:, 1], begins, side="right")
        inside = (word < len(own)) & (own[np.minimum(word, len(own) - 1), 0] < ends)
        word = np.where(inside, word, -1)
    found: Array = np.where(tokens.special | (begins == ends), -1, word)
    return found


def _spans(tokens: Tokens, word: Int64[np.ndarray, " S"]) -> tuple[Array, Array]:
    """First and last character, exclusive, of each word."""
    assert tokens.characters is not None
    known = word >= 0
    size = int(word.max(initial=-1)) + 1
    first, last = np.full(size, np.iinfo(np.int64).max), np.zeros(size, np.int64)
    np.minimum.at(first, word[known], tokens.characters[known, 0])
    np.maximum.at(last, word[known], tokens.characters[known, 1])
    return first, last


def _check(config: Any, tokenizer: Any, settings: Settings) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            "the teacher's tokenizer does not tell where its tokens stand in the text",
            got=f"{type(tokenizer).__name__} of {model_name(config)}",
            do="Save a fast tokenizer (tokenizer.json) beside the teacher",
        )


def _at_positions(output: Any, rows: Tensor, tokens: Tensor) -> Tensor:
    return gathered(output.logits, rows, tokens)


TASK = TeacherTask(
    auto=transformers.AutoModelForTokenClassification,
    inputs=lambda tokenizer, spec: Words(
        spec=spec, outside=spec.label_names.index("O") if "O" in (spec.label_names or ()) else None
    ),
    body=lambda model: model,
    at_positions=_at_positions,
    check=_check,
    reads_words=lambda spec: True,
    reads_characters=True,
)
