"""A model's config and weights, fitted to what a cache is for: its classes, and no weight that is missing unseen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.errors import StudentError
from schemas.rows.boxes import num_named
from schemas.spec import Spec
from schemas.task import Task
from trainer.students.compatibility import check_labels
from trainer.students.opening import open_weights
from trainer.tasks.tasks import STUDENT_TASKS

_PROBLEM_TYPES = {
    "softmax": "single_label_classification",
    "sigmoid": "multi_label_classification",
    "identity": "regression",
}


def filled(
    spec: Spec, source: str, config: Any, loading: Mapping[str, Any] | None = None
) -> tuple[Any, list[str]]:
    """A model from its folder, and what of it is new: only a classifier's head may be."""
    model, missing = open_weights(STUDENT_TASKS[spec.task].auto, source, config, loading)
    new = missing = [name for name in missing if not is_unused(name, spec)]
    classifies = spec.kind.has_positions and not spec.kind.has_vocabulary
    if classifies and not is_trained_classifier(config, spec.kind):
        inner = f"{model.base_model_prefix}."
        missing = [name for name in missing if name.startswith(inner) and "pooler" not in name]
    refuse_missing(model, missing, source)
    return model, new


def refuse_missing(model: Any, missing: Sequence[str], where: str) -> None:
    """transformers fills what is missing at random, with a warning."""
    if missing:
        raise StudentError(
            f"the folder lacks weights of {type(model).__name__}, which would be random",
            where=where,
            got=f"{len(missing)} missing, {missing[0]} among them",
            do="Name a whole model of the cache's task; or a config .json to start from scratch",
        )


def freeze_unused(model: Any, spec: Spec) -> None:
    """What no answer comes from has no gradient, which DDP would wait for."""
    for name, weight in model.named_parameters():
        if is_unused(name, spec):
            weight.requires_grad_(False)


def is_unused(name: str, spec: Spec) -> bool:
    """Whether a weight of this name has no part in any answer."""
    return any(word in name for word in STUDENT_TASKS[spec.task].unused)


def is_trained_classifier(config: Any, task: Task) -> bool:
    """Whether a config's checkpoint has the task's own head."""
    head = STUDENT_TASKS[task.name].auto.__name__.removeprefix("AutoModelFor")
    return any(head in str(name) for name in config.architectures or ())


def fit_config(config: Any, spec: Spec, tokenizer: Any) -> None:
    """Gives a classifier the cache's classes; a decoder needs a padding token to find a text's end by, where there are
    texts.

    Raises:
        StudentError: it is trained, and has others.
    """
    task = spec.kind
    if task.has_vocabulary or not task.has_positions:
        return
    if task.has_named_classes:
        if is_trained_classifier(config, task):
            check_labels(config, spec, "student")
        number = num_named(spec)
        names = spec.label_names[:number] or tuple(f"LABEL_{index}" for index in range(number))
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        if not (task.predicts_tokens or task.has_boxes):
            config.problem_type = _PROBLEM_TYPES[spec.score]
    else:
        config.num_labels = task.text_positions  # of each token, a score for each position
    if tokenizer is not None and getattr(config.get_text_config(), "pad_token_id", None) is None:
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
