"""Classifiers and scorers of whole texts, or of pairs: one position an example, which belongs to no token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor

from pipelines.tasks.teacher_task import Asked, TeacherTask
from pipelines.tasks.windows import Tokens, Window, first, stretches, taken
from schemas.spec import Spec


@dataclass(frozen=True)
class WholeTexts:
    """Each window is a text of its own, with its document's label."""

    spec: Spec

    def windows(self, tokens: Tokens) -> list[Window]:
        position = first(1)
        return [Window(stretch.tokens, position) for stretch in stretches(tokens, self.spec)]

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        return Asked(taken(tokens.ids, window), window.positions)


def _at_positions(output: Any, rows: Tensor, tokens: Tensor) -> Tensor:
    """Every row has one position, so these are rows of the batch in order."""
    logits: Tensor = output.logits
    return logits


TASK = TeacherTask(
    auto=transformers.AutoModelForSequenceClassification,
    inputs=lambda tokenizer, spec: WholeTexts(spec),
    body=lambda model: model,
    at_positions=_at_positions,
)
