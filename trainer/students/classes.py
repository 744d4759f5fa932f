"""What a student's config is told of the cache's classes, and whether it has them already."""

from __future__ import annotations

from typing import Any

from schemas.spec import Spec
from schemas.tasks import Task
from trainer.students.compatibility import check_labels
from trainer.tasks.tasks import STUDENT_TASKS

_PROBLEM_TYPES = {
    "softmax": "single_label_classification",
    "sigmoid": "multi_label_classification",
    "identity": "regression",
}


def is_trained_classifier(config: Any, task: Task) -> bool:
    """Whether a config's checkpoint has the task's own head."""
    head = STUDENT_TASKS[task.name].auto.__name__.removeprefix("AutoModelFor")
    return any(head in str(name) for name in config.architectures or ())


def fit_config(config: Any, spec: Spec, tokenizer: Any) -> None:
    """Gives a classifier the cache's classes; a decoder needs a padding token to find a text's end by.

    Raises:
        StudentError: it is trained, and has others.
    """
    task = spec.kind
    if task.has_vocabulary:
        return
    if task.has_named_classes:
        if is_trained_classifier(config, task):
            check_labels(config, spec, "student")
        names = spec.label_names or tuple(f"LABEL_{index}" for index in range(spec.vocab_size))
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        if not task.predicts_tokens:
            config.problem_type = _PROBLEM_TYPES[spec.score]
    else:
        config.num_labels = task.text_positions  # of each token, a score for each position
    if getattr(config.get_text_config(), "pad_token_id", None) is None:
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
