"""The tasks that students can learn, by name: those of `schemas/tasks.py`."""

from __future__ import annotations

from trainer.tasks import (
    causal_lm,
    feature_extraction,
    image_classification,
    image_feature_extraction,
    masked_lm,
    object_detection,
    pair_score,
    question_answering,
    seq2seq_lm,
    sequence_classification,
    token_classification,
)
from trainer.tasks.student_task import StudentTask

STUDENT_TASKS: dict[str, StudentTask] = {
    "causal-lm": causal_lm.TASK,
    "sequence-classification": sequence_classification.TASK,
    "masked-lm": masked_lm.TASK,
    "token-classification": token_classification.TASK,
    "pair-score": pair_score.TASK,
    "feature-extraction": feature_extraction.TASK,
    "question-answering": question_answering.TASK,
    "seq2seq-lm": seq2seq_lm.TASK,
    "image-classification": image_classification.TASK,
    "image-feature-extraction": image_feature_extraction.TASK,
    "object-detection": object_detection.TASK,
}
