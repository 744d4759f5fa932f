"""Classifiers and scorers of whole texts, or of pairs: the model's own logits, one position a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForSequenceClassification

from trainer.metrics.classes import class_metrics
from trainer.metrics.tokens import Metrics
from trainer.models.heads import Inputs, Ran
from trainer.tasks.student_task import Measured, StudentTask


def _run(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    output = student(**inputs, output_hidden_states=bool(layers))
    states = [output.hidden_states[-1 if layer == last_layer else layer] for layer in layers]
    return Ran(states, None, output.logits)


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    return class_metrics(measured.model, batches, measured.spec, measured.device)


TASK = StudentTask(auto=AutoModelForSequenceClassification, run=_run, measure=_measure, peft_task="SEQ_CLS")
