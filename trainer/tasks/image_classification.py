"""Classifiers of images: the model's own logits, one position a row, of the pixels that the teacher was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import AutoModelForImageClassification

from trainer.metrics.classes import class_metrics
from trainer.metrics.tokens import Metrics
from trainer.models.heads import Inputs, Ran
from trainer.tasks.student_task import Measured, StudentTask, class_goal


def _run(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    output = student(**inputs, output_hidden_states=bool(layers))
    every = [output.hidden_states[-1 if layer == last_layer else layer] for layer in layers]
    return Ran([listed(states) for states in every], None, output.logits)


def listed(states: Tensor) -> Tensor:
    """Of a map `[B, D, H, W]` its mean as one token, which is what any pooling of it gives; a list as it is."""
    return states.mean((2, 3))[:, None] if states.ndim == 4 else states


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    return class_metrics(measured.model, batches, measured.spec, measured.device)


TASK = StudentTask(auto=AutoModelForImageClassification, run=_run, measure=_measure, goal=class_goal)
