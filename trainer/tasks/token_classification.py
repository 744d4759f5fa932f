"""Token classifiers (entities, parts of speech): the model's own logits at the first token of each word."""

from __future__ import annotations

from transformers import AutoModelForTokenClassification

from trainer.metrics.entities import entity_metrics
from trainer.metrics.tokens import Metrics
from trainer.models.heads import run_own_head
from trainer.tasks.student_task import Measured, StudentTask


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    return entity_metrics(measured.model, batches, measured.spec, measured.device)


TASK = StudentTask(
    auto=AutoModelForTokenClassification, run=run_own_head, measure=_measure, peft_task="TOKEN_CLS"
)
