"""Token classifiers (entities, parts of speech): a position on the first token of each word.

Words are the corpus's own where it says them, else the tokenizer's. A token is of the first word that it shares a
letter with; blanks at its edges count for nothing, and a token of blanks alone is of no word. A span's label is that of
each word it shares a letter with. A word of which no token is left (a tokenizer may drop characters) has no position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import transformers
from jaxtyping import Int32, Int64
from torch import Tensor

from pipelines.tasks.teacher_task import Asked, Settings, TeacherTask, gathered, model_name, refuse_no_offsets
from pipelines.tasks.windows import Tokens, Window, stretches, taken, trimmed
from schemas.errors import UsageError
from schemas.rows.ragged import Array
from schemas.spec import Spec
from schemas.tasks import OUTSIDE


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """Windows whose positions are the words that begin in them."""

    spec: Spec

    def windows(self, tokens: Tokens) -> list[Window]:
        letters = _letters(tokens)
        word, found = _words(tokens, letters), list[Window]()
        begins = np.zeros(len(word), np.bool_)
        known = np.flatnonzero(word >= 0)
        begins[known[np.unique(word[known], return_index=True)[1]]] = True
        gold = None if tokens.label is None else self._gold(tokens, letters, word)
        for stretch in stretches(tokens, self.spec):
            places = np.flatnonzero(begins[stretch.tokens]).astype(np.int32)
            places = places[places >= stretch.first_new]
            if places.size:
                own = None if gold is None else gold[word[stretch.tokens[places]]]
                found.append(Window(stretch.tokens, places, gold=own))
        return found

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        return Asked(taken(tokens.ids, window), window.positions, window.gold)

    def _gold(
        self, tokens: Tokens, letters: Int64[np.ndarray, "S 2"], word: Int64[np.ndarray, " S"]
    ) -> Int32[np.ndarray, " W"]:
        """The class of each word."""
        if tokens.document_words is not None:
            return np.asarray(tokens.label, np.int32)
        known, size = word >= 0, int(word.max(initial=-1)) + 1
        first, last = np.full(size, np.iinfo(np.int64).max), np.zeros(size, np.int64)
        np.minimum.at(first, word[known], letters[known, 0])
        np.maximum.at(last, word[known], letters[known, 1])
        gold = np.full(size, self.spec.label_names.index(OUTSIDE), np.int32)
        for start, end, begin, inside, ending, alone in np.asarray(tokens.label).reshape(-1, 6).tolist():
            own = np.flatnonzero((last > start) & (first < end))
            gold[own], gold[own[:1]], gold[own[-1:]] = inside, begin, ending
            if len(own) == 1:
                gold[own] = alone
        return gold


def _letters(tokens: Tokens) -> Int64[np.ndarray, "S 2"]:
    """The characters that each token is from, without blanks at their edges."""
    assert tokens.characters is not None
    found = [trimmed(tokens.text, start, end) for start, end in tokens.characters.tolist()]
    return np.array(found, np.int64).reshape(-1, 2)


def _words(tokens: Tokens, letters: Int64[np.ndarray, "S 2"]) -> Int64[np.ndarray, " S"]:
    """Which word each token is of; -1: of none."""
    assert tokens.words is not None
    begins, ends = letters.T
    if tokens.document_words is None:
        word = tokens.words.astype(np.int64)
    else:
        own = np.asarray(tokens.document_words, np.int64).reshape(-1, 2)
        word = np.searchsorted(own[:, 1], begins, side="right")
        inside = (word < len(own)) & (own[np.minimum(word, len(own) - 1), 0] < ends)
        word = np.where(inside, word, -1)
    found: Array = np.where(tokens.special | (begins == ends), -1, word)
    return found


def _at_positions(output: Any, rows: Tensor, tokens: Tensor) -> Tensor:
    return gathered(output.logits, rows, tokens)


def _check(config: Any, tokenizer: Any, settings: Settings) -> None:
    refuse_no_offsets(tokenizer)
    if getattr(config, "problem_type", None) in ("multi_label_classification", "regression"):
        raise UsageError(
            f"{model_name(config)} gives each word several labels, or numbers: here a word has one class",
            expected="problem_type of one label a word, or none",
            got=config.problem_type,
            do="Use a teacher of one label a word; whole texts may have several (--task sequence-classification)",
        )


TASK = TeacherTask(
    auto=transformers.AutoModelForTokenClassification,
    inputs=lambda tokenizer, spec: Words(spec=spec),
    body=lambda model: model,
    at_positions=_at_positions,
    check=_check,
    reads_words=lambda spec: True,
    reads_characters=True,
    least="a word that the tokenizer keeps",
)
