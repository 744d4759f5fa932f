"""Embeddings of images: a model without a head, whose pooled last states are the student's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainer.models.heads import Inputs, Ran
from trainer.tasks.feature_extraction import TASK as TEXTS
from trainer.tasks.feature_extraction import measure_embeddings
from trainer.tasks.image_classification import listed
from trainer.tasks.student_task import StudentTask


def _run(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    inner = any(layer != last_layer for layer in layers)
    output = student(**inputs, output_hidden_states=inner)
    last = output.last_hidden_state
    every = [last if layer == last_layer else output.hidden_states[layer] for layer in layers]
    return Ran([listed(states) for states in every], None)


TASK: StudentTask = replace(
    TEXTS, run=_run, measure=lambda measured: measure_embeddings(measured, _run), peft_task=None
)
