"""Classifiers and scorers of whole texts, or of pairs: the model's own logits, one position a row."""

from __future__ import annotations

from transformers import AutoModelForSequenceClassification

from trainer.metrics.classes import class_metrics
from trainer.metrics.tokens import Metrics
from trainer.models.heads import run_own_head
from trainer.tasks.student_task import Measured, StudentTask, class_goal


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    return class_metrics(measured.model, batches, measured.spec, measured.device)


TASK = StudentTask(
    auto=AutoModelForSequenceClassification,
    run=run_own_head,
    measure=_measure,
    goal=class_goal,
    peft_task="SEQ_CLS",
)
