"""Token classifiers (entities, parts of speech): the model's own logits at the first token of each word."""

from __future__ import annotations

from transformers import AutoModelForTokenClassification

from schemas.spec import Spec
from trainer.metrics.entities import entity_metrics, has_entities
from trainer.metrics.tokens import Metrics
from trainer.models.heads import run_own_head
from trainer.tasks.student_task import Goal, Measured, StudentTask


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    return entity_metrics(measured.model, batches, measured.spec, measured.device)


def _goal(spec: Spec, labelled: bool) -> Goal:
    if not labelled:
        return Goal("agreement", is_maximised=True)
    return Goal("entity_f1" if has_entities(spec) else "accuracy", is_maximised=True)


TASK = StudentTask(
    auto=AutoModelForTokenClassification,
    run=run_own_head,
    measure=_measure,
    goal=_goal,
    peft_task="TOKEN_CLS",
)
