"""Causal language models: a position stands on the token *before* the one that it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers

from pipelines.rejects import TOO_LONG, RejectedError
from pipelines.tasks.teacher_task import (
    Asked,
    Inputs,
    TeacherTask,
    head_inputs,
    language_body,
    refuse_encoder_decoder,
)
from pipelines.tasks.windows import Tokens, Window, edges, first, stretches, taken
from schemas.spec import Spec


@dataclass(frozen=True)
class NextTokens:
    """Windows that predict something: every supervised token once, where it has context.

    Special tokens before the text stand in every window, those after it only in the last: they end the document.
    """

    spec: Spec

    def windows(self, tokens: Tokens) -> list[Window]:
        _, suffix = edges(tokens)
        found = []
        for stretch in stretches(tokens, self.spec):
            index = stretch.tokens if stretch.is_last else stretch.tokens[: len(stretch.tokens) - suffix]
            places = first(len(index) - 1)[max(stretch.first_new - 1, 0) :]
            if tokens.plain is None:
                places = places[tokens.supervised[index[places + 1]]]
            if places.size:
                found.append(Window(index, places))
        return found

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        every = len(window.positions) == len(window.tokens) - 1
        return Asked(taken(tokens.ids, window), None if every else window.positions)


@dataclass(frozen=True)
class Prompts:
    """One window a text, in which nothing is predicted yet: the teacher writes what follows."""

    spec: Spec

    def windows(self, tokens: Tokens) -> list[Window]:
        """Special tokens behind a text would end it before its answer.

        Raises:
            RejectedError: the prompt and its answer may be longer than `max_length`.
        """
        assert self.spec.generation is not None
        _, suffix = edges(tokens)
        size = len(tokens.ids) - suffix
        most = self.spec.max_length - self.spec.generation.max_new_tokens
        if size > most:
            expected = f"a prompt of at most {most} tokens beside its answer"
            raise RejectedError(TOO_LONG, expected=expected, got=str(size))
        return [Window(first(size), first(0))] if size else []

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        return Asked(taken(tokens.ids, window), window.positions)


def _inputs(tokenizer: Any, spec: Spec) -> Inputs:
    return NextTokens(spec) if spec.generation is None else Prompts(spec)


TASK = TeacherTask(
    auto=transformers.AutoModelForCausalLM,
    inputs=_inputs,
    body=language_body,
    at_positions=head_inputs,
    check=lambda config, tokenizer, settings: refuse_encoder_decoder(config, "causal language model"),
)
