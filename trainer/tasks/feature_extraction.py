"""Text embeddings: a model without a head, whose pooled last states are the student's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import AutoModel

from trainer.metrics.embeddings import embedded, embedding_metrics
from trainer.metrics.tokens import Metrics
from trainer.models.heads import Inputs, Ran, Run, without_cache
from trainer.tasks.student_task import Goal, Measured, StudentTask


def _run(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    inner = any(layer != last_layer for layer in layers)
    output = student(**inputs, output_hidden_states=inner, **without_cache(student))
    last = output.last_hidden_state
    return Ran([last if layer == last_layer else output.hidden_states[layer] for layer in layers], None)


def measure_embeddings(measured: Measured, run: Run) -> Metrics:
    """Of a student that is run so, beside the teacher's."""
    assert measured.embedder is not None
    collation = replace(measured.collation, features=measured.spec.features[:1])
    batches = measured.held_out.batches(collation)
    return embedding_metrics(*embedded(measured.model, run, measured.embedder, batches, measured.device))


TASK = StudentTask(
    auto=AutoModel,
    run=_run,
    scores=lambda output: output.last_hidden_state,
    measure=lambda measured: measure_embeddings(measured, _run),
    goal=lambda spec, labelled: Goal("spearman", is_maximised=True),
    peft_task="FEATURE_EXTRACTION",
    unused=("pooler",),
)
