"""Causal language models: the head is applied to the last hidden states in chunks, so no `[B, S, V]` exists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForCausalLM

from schemas.model_heads import body_of, has_transform
from trainer.metrics.tokens import Metrics, token_metrics
from trainer.models.heads import Inputs, Ran, run_whole
from trainer.tasks.student_task import Measured, StudentTask, teacher_cross_entropy


def _run(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    if has_transform(student):
        return run_whole(student, {**inputs, "use_cache": False}, layers, last_layer)
    inner = any(layer != last_layer for layer in layers)
    output = body_of(student)(**inputs, output_hidden_states=inner, use_cache=False)
    last = output.last_hidden_state
    states = [last if layer == last_layer else output.hidden_states[layer] for layer in layers]
    return Ran(states, last)


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    return token_metrics(measured.model, _run, batches, measured.device) | teacher_cross_entropy(measured)


TASK = StudentTask(
    auto=AutoModelForCausalLM, run=_run, measure=_measure, peft_task="CAUSAL_LM", generates=True
)
