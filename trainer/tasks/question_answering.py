"""Extractive question answering: the model's own scores of each token as the answer's start, and as its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

from trainer.metrics.answers import answer_metrics
from trainer.metrics.tokens import Metrics
from trainer.models.heads import Inputs, Ran
from trainer.tasks.student_task import Goal, Measured, StudentTask


def _scores(output: Any) -> Tensor:
    return torch.stack([output.start_logits, output.end_logits], -1)


def _run(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    """Scores `[B, 2, S]`: of starts and of ends, over a row's tokens. Which of them are no choice, the targets say."""
    output = student(**inputs, output_hidden_states=bool(layers))
    states = [output.hidden_states[-1 if layer == last_layer else layer] for layer in layers]
    return Ran(states, None, _scores(output).transpose(1, 2))


def _measure(measured: Measured) -> Metrics:
    return answer_metrics(
        measured.model,
        _run,
        measured.held_out.batches(measured.collation),
        rows=measured.held_out.rows(),
        tokenizer=measured.tokenizer,
        device=measured.device,
        reader=measured.collation.reader,
    )


TASK = StudentTask(
    auto=AutoModelForQuestionAnswering,
    run=_run,
    scores=_scores,
    measure=_measure,
    goal=lambda spec, labelled: Goal("f1" if labelled else "agreement", is_maximised=True),
    peft_task="QUESTION_ANS",
)
