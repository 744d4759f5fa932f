"""Extractive question answering: two positions a text, the answer's first token and its last, over its own tokens.

A document is a question and its context; the context is cut into windows, and the question stands before each. A
position may choose any token of the window's context; the first token of all ([CLS]) stands for no answer there
(arXiv:1806.03822, arXiv:1810.04805). So a row has as many classes as its context has tokens, and one.

What is right is known by characters: the first and the last token that share a letter with the answer. A window that
does not hold both says that there is none; where every question has an answer, nothing is known to be right in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Int32
from torch import Tensor

from pipelines.rejects import BAD_ANSWERS, QUESTION_TOO_LONG, RejectedError
from pipelines.tasks.teacher_task import Asked, Settings, TeacherTask, model_name, refuse_no_offsets
from pipelines.tasks.windows import Tokens, Window, edges, first, stretches, taken
from schemas.errors import UsageError
from schemas.rows.ragged import Array
from schemas.spec import Spec
from schemas.tasks import ANSWERS

_AUTO = transformers.AutoModelForQuestionAnswering


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """Windows of a context, the question before each, with the places that an answer may have."""

    spec: Spec

    def windows(self, tokens: Tokens) -> list[Window]:
        before, after = edges(tokens)
        if before + after >= len(tokens.ids):
            return []
        room = self.spec.max_length - before - after
        if room <= self.spec.stride:
            expected = (
                f"a question of at most {before - 1 - self.spec.stride + room} tokens before {after} more"
            )
            raise RejectedError(
                QUESTION_TOO_LONG, expected=expected, got=f"{before}, with its special tokens"
            )
        answers, found = self._answers(tokens), list[Window]()
        kept = self._kept(tokens.label or ())
        for stretch in stretches(tokens, self.spec):
            end = len(stretch.tokens) - after
            gold = None
            if answers is not None:
                gold = self._gold(answers - stretch.tokens[before] + before, before, end)
            columns = (before, end, int(bool(tokens.label)), *kept)
            found.append(Window(stretch.tokens, first(2), columns, gold))
        return found

    def _kept(self, spans: Sequence[int]) -> tuple[int, ...]:
        """The characters of as many answers as a row has room for; -1 where there is none."""
        room = 2 * int(self.spec.setting(ANSWERS))
        return (*spans[:room], *(-1,) * (room - len(spans)))

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        return Asked(taken(tokens.ids, window), window.positions, window.gold)

    def _answers(self, tokens: Tokens) -> Int32[np.ndarray, "A 2"] | None:
        """The document's tokens that each answer begins and ends with; None where nothing is known."""
        if tokens.label is None:
            return None
        spans = np.asarray(tokens.label, np.int64).reshape(-1, 2).tolist()
        found = np.array([self._answer(tokens, *span) for span in spans], np.int32)
        return found.reshape(-1, 2)

    def _answer(self, tokens: Tokens, start: int, end: int) -> tuple[int, int]:
        assert tokens.characters is not None
        before, after = edges(tokens)
        begins, ends = tokens.characters.T
        own = np.flatnonzero((ends > start) & (begins < end))
        own = own[(own >= before) & (own < len(tokens.ids) - after)]
        shared = [tokens.text[max(begins[at], start) : min(ends[at], end)] for at in own]
        letters = [at for at, text in zip(own.tolist(), shared, strict=True) if text.strip()]
        if not letters:
            expected = "an answer of which the tokenizer keeps a token"
            raise RejectedError(BAD_ANSWERS, expected=expected, got="one that it drops")
        return letters[0], letters[-1]

    def _gold(self, answers: Array, start: int, end: int) -> Int32[np.ndarray, " 2"] | None:
        """What is right in a window whose context goes from `start` to `end`: the first that it holds whole of the
        answers, which are given by their tokens."""
        held = answers[(answers[:, 0] >= start) & (answers[:, 1] < end)]
        if len(held):
            first_held: Array = held[0].astype(np.int32)
            return first_held
        return None if self.spec.setting("always_answerable") else np.zeros(2, np.int32)


def _scores(output: Any) -> Tensor:
    return torch.stack([output.start_logits, output.end_logits], 1)


def _at_positions(output: Any, rows: Tensor, tokens: Tensor) -> Tensor:
    """Of each position the scores of all tokens: those of starts are a text's first, those of ends its second."""
    found = _scores(output)
    return found[rows.to(found.device), tokens.to(found.device)]


def _check(config: Any, tokenizer: Any, settings: Settings) -> None:
    refuse_no_offsets(tokenizer)
    pair = tokenizer("a", "b", verbose=False)
    texts = [text for text in pair.sequence_ids() if text is not None]
    if texts != sorted(texts) or set(texts) != {0, 1}:
        raise UsageError(
            "the teacher's tokenizer does not put a question before its context",
            got=type(tokenizer).__name__,
            do="Use another --teacher, or another tokenizer.json",
        )
    own = tokenizer.cls_token_id
    if not settings["always_answerable"] and own in pair["input_ids"] and pair["input_ids"][0] != own:
        raise UsageError(
            "the token that stands for no answer is not the first of a text",
            expected=f"{tokenizer.cls_token} first",
            got=tokenizer.decode(pair["input_ids"]),
            do="Say --always_answerable where every question has an answer, or use another --teacher",
        )
    _refuse_other_heads(config, torch.tensor([pair["input_ids"]]))


def _refuse_other_heads(config: Any, ids: Tensor) -> None:
    """Models that search for an answer by themselves (XLNet's and XLM's own heads), or say no token."""
    if getattr(config, "auto_map", None):
        return  # code of its own, which is not run before it is hashed
    try:
        opened = _AUTO._model_mapping[type(config)].__name__
    except KeyError:
        opened = ""
    named = [name for name in config.architectures or () if "QuestionAnswering" in name]
    output = None
    with contextlib.suppress(Exception), torch.device("meta"), torch.inference_mode():
        output = _AUTO.from_config(config).eval()(input_ids=ids.to("meta"))
    scores = [getattr(output, name, None) for name in ("start_logits", "end_logits")]
    fits = output is None or all(getattr(one, "shape", None) == ids.shape for one in scores)
    if not opened or (named and opened not in named) or not fits:
        raise UsageError(
            f"{model_name(config)} does not give each token a plain score as the answer's start and end",
            expected="a model that AutoModelForQuestionAnswering opens, with start_logits and end_logits",
            got="a head that searches by itself, or of something else" if opened else "no such class",
            do="Use another --teacher, for instance a BERT, RoBERTa, ELECTRA or DeBERTa",
        )


TASK = TeacherTask(
    auto=_AUTO,
    inputs=lambda tokenizer, spec: Contexts(spec=spec),
    body=lambda model: model,
    at_positions=_at_positions,
    scores=_scores,
    check=_check,
    reads_characters=True,
    cuts_second_text=True,
    least="a context of which the tokenizer keeps a token",
)
