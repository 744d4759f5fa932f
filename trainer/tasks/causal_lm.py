"""Causal language models: the head is applied to the last hidden states in chunks, so no `[B, S, V]` exists."""

from __future__ import annotations

from dataclasses import replace

from transformers import AutoModelForCausalLM

from trainer.batches.aligned import LIKELIHOOD, knows_likelihood
from trainer.metrics.aligned import aligned_metrics
from trainer.metrics.tokens import Metrics, token_metrics
from trainer.models.heads import run_language_model
from trainer.tasks.student_task import LOSS_ON_TEXT, Measured, StudentTask, teacher_cross_entropy


def _measure(measured: Measured) -> Metrics:
    if measured.collation.reader is not None:
        stored = frozenset({LIKELIHOOD} if knows_likelihood(measured.spec) else ())
        batches = measured.held_out.batches(replace(measured.collation, stored=stored))
        return aligned_metrics(measured.model, run_language_model, batches, measured.device)
    batches = measured.held_out.batches(measured.collation)
    found = token_metrics(measured.model, run_language_model, batches, measured.device)
    return found | teacher_cross_entropy(measured)


TASK = StudentTask(
    auto=AutoModelForCausalLM,
    run=run_language_model,
    measure=_measure,
    goal=lambda spec, labelled: LOSS_ON_TEXT,
    peft_task="CAUSAL_LM",
    generates=True,
)
