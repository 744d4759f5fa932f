"""Classifiers and scorers of whole texts, or of pairs: the model's own logits, one position a row."""

from __future__ import annotations

from transformers import AutoModelForSequenceClassification

from schemas.spec import Spec
from trainer.metrics.classes import class_metrics
from trainer.metrics.tokens import Metrics
from trainer.models.heads import run_own_head
from trainer.tasks.student_task import Goal, Measured, StudentTask


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    return class_metrics(measured.model, batches, measured.spec, measured.device)


def _goal(spec: Spec, labelled: bool) -> Goal:
    if spec.score == "identity":
        return Goal("mse" if labelled else "mse_with_teacher", is_maximised=False)
    return Goal("accuracy" if labelled else "agreement", is_maximised=True)


TASK = StudentTask(
    auto=AutoModelForSequenceClassification,
    run=run_own_head,
    measure=_measure,
    goal=_goal,
    peft_task="SEQ_CLS",
)
