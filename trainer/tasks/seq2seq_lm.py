"""Encoder-decoders (translation, summaries): the head is applied to the decoder's last states in chunks.

Beside what is measured of every language model, the student writes: greedily, from the sources of some held-out rows,
and chrF, BLEU and ROUGE compare what it wrote with their targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForSeq2SeqLM

from schemas.model_heads import body_of
from trainer.metrics.texts import text_metrics
from trainer.metrics.tokens import Metrics, token_metrics
from trainer.models.heads import Inputs, Ran, run_language_model, run_whole
from trainer.tasks.student_task import LOSS_ON_TEXT, Measured, StudentTask, teacher_cross_entropy


def _run(student: Any, inputs: Inputs, layers: Sequence[int], last_layer: int) -> Ran:
    if body_of(student) is student:  # T5: its own code, less the output layer
        return run_whole(student, {**inputs, "use_cache": False}, layers, last_layer)
    return run_language_model(student, inputs, layers, last_layer)


def _measure(measured: Measured) -> Metrics:
    batches = measured.held_out.batches(measured.collation)
    found = token_metrics(measured.model, _run, batches, measured.device) | teacher_cross_entropy(measured)
    return found | text_metrics(
        measured.model,
        measured.tokenizer,
        measured.held_out.rows(),
        pad_id=measured.collation.pad_id,
        device=measured.device,
    )


TASK = StudentTask(
    auto=AutoModelForSeq2SeqLM,
    run=_run,
    measure=_measure,
    goal=lambda spec, labelled: LOSS_ON_TEXT,
    peft_task="SEQ_2_SEQ_LM",
    generates=True,
)
