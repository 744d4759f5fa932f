"""Rerankers (cross-encoders): one score of each passage beside its query, all of a query's pairs in one example.

A pair is what the tokenizer makes of query and passage, cut to `max_length`, longest first. The pairs of an example
stand one after the other, and a position on the first token of each: so losses over a query's list see all of it, in
whatever batch it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import transformers

from pipelines.tasks.sequence_classification import TASK as WHOLE_TEXTS
from pipelines.tasks.teacher_task import Asked, Settings, TeacherTask, model_name
from pipelines.tasks.windows import Tokens, Window, first
from schemas.errors import UsageError
from schemas.spec import Spec


@dataclass(frozen=True)
class Pairs:
    """One window of all pairs, each begun by a token that is marked as supervised."""

    spec: Spec

    def windows(self, tokens: Tokens) -> list[Window]:
        return [Window(first(len(tokens.ids)), np.flatnonzero(tokens.supervised).astype(np.int32))]

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        return Asked(tokens.ids, window.positions)


def _check(config: Any, tokenizer: Any, settings: Settings) -> None:
    if config.num_labels != 1:
        raise UsageError(
            f"{model_name(config)} gives {config.num_labels} scores of a pair",
            expected="one score (num_labels 1), as rerankers have",
            do="Use another --teacher, or --task sequence-classification",
        )


TASK = TeacherTask(
    auto=transformers.AutoModelForSequenceClassification,
    inputs=lambda tokenizer, spec: Pairs(spec),
    body=WHOLE_TEXTS.body,
    at_positions=WHOLE_TEXTS.at_positions,
    check=_check,
    least="a passage",
)
