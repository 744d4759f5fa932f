"""Rerankers (cross-encoders): the model's own score of each pair, all of a query's in one batch."""

from __future__ import annotations

from transformers import AutoModelForSequenceClassification

from trainer.metrics.lists import list_metrics
from trainer.metrics.tokens import Metrics
from trainer.models.heads import run_own_head
from trainer.tasks.student_task import Goal, Measured, StudentTask


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    return list_metrics(measured.model, batches, measured.spec, measured.device)


TASK = StudentTask(
    auto=AutoModelForSequenceClassification,
    run=run_own_head,
    measure=_measure,
    goal=lambda spec, labelled: Goal("ndcg" if labelled else "ndcg_with_teacher", is_maximised=True),
    peft_task="SEQ_CLS",
)
