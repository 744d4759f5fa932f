"""Detectors of the DETR family: scores and a box for each of the student's own queries, of the teacher's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForObjectDetection

from trainer.metrics.detections import detection_metrics
from trainer.metrics.tokens import Metrics
from trainer.models.heads import Inputs, Ran
from trainer.tasks.image_classification import listed
from trainer.tasks.student_task import Goal, Measured, StudentTask


def _run(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    output = student(**inputs, output_hidden_states=bool(layers))
    every = [output.hidden_states[-1 if layer == last_layer else layer] for layer in layers]
    return Ran([listed(states) for states in every], None, output.logits, output.pred_boxes)


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    return detection_metrics(measured.model, _run, batches, measured.device)


TASK = StudentTask(
    auto=AutoModelForObjectDetection,
    run=_run,
    measure=_measure,
    goal=lambda spec, labelled: Goal("agreement", is_maximised=True),
)
"""Students are compared by the teacher's detections, with labels too: mAP needs a package that may not be there."""
