"""A student's classes, or values, against labels and teacher: scikit-learn's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    mean_squared_error,
    multilabel_confusion_matrix,
    r2_score,
    roc_auc_score,
)
from torch import Tensor

from schemas.errors import StudentError
from schemas.rows.ragged import Array
from schemas.spec import Spec
from trainer.batches.batch import Batch
from trainer.losses.divergences import binary_kl_divergence, cross_entropy, kl_divergence
from trainer.losses.targets import NO_LABEL, DenseTargets, SparseTargets, first_ids
from trainer.metrics.tokens import Metrics
from trainer.models.heads import Run, run_own_head


def class_metrics(model: Any, batches: Iterable[Batch], spec: Spec, device: torch.device) -> Metrics:
    """Accuracy, macro F1, ROC AUC, confusion matrix (scikit-learn's), and agreement and KL with the teacher."""
    sparse: list[tuple[Tensor, SparseTargets]] = []
    dense: list[tuple[Tensor, DenseTargets]] = []
    for batch, logits in scored(model, batches, device):
        if isinstance(batch.targets, SparseTargets):
            sparse.append((logits, batch.targets))
        elif isinstance(batch.targets, DenseTargets):
            dense.append((logits, batch.targets))
    if spec.score == "softmax":
        return single_label(sparse)
    scores = torch.cat([logits for logits, _ in dense])
    targets = DenseTargets.joined([target for _, target in dense])
    return _multi_label(scores, targets) if spec.score == "sigmoid" else regression(scores, targets)


def scored(
    model: Any, batches: Iterable[Batch], device: torch.device, run: Run = run_own_head
) -> Iterator[tuple[Batch, Float[Tensor, "N _"]]]:
    """Each batch with the student's logits at its positions, on the CPU; `run` calls a student with logits of its own.

    Raises:
        StudentError: they are not finite.
    """
    for batch in batches:
        on_device = batch.to(device)
        with torch.no_grad():
            given = run(model, on_device.model_inputs, (), -1).logits
            assert given is not None
            logits = on_device.at_positions(given).float().cpu()
        if not bool(torch.isfinite(logits).all()):
            raise StudentError("the student gives logits that are not numbers", where=type(model).__name__)
        yield batch, logits


def single_label(batches: Sequence[tuple[Tensor, SparseTargets]]) -> Metrics:
    """Of softmax scores, from each batch's logits and targets."""
    scores = torch.cat([logits for logits, _ in batches])
    gold = torch.cat([target.gold for _, target in batches])
    teacher = torch.cat([first_ids(target) for _, target in batches])
    kl = torch.cat([kl_divergence(logits, target, 1.0) for logits, target in batches])
    best, known = scores.argmax(-1), gold != NO_LABEL
    found: Metrics = {
        "positions": len(scores),
        "labelled": int(known.sum()),
        "kl_nats": kl.mean().item(),
        "agreement": (best == teacher).double().mean().item(),
    }
    if not known.any():
        return found
    truth, guess = gold[known].numpy(), best[known].numpy()
    classes = np.arange(scores.shape[1])
    return found | {
        "cross_entropy_nats": cross_entropy(scores[known], gold[known]).mean().item(),
        "accuracy": float(accuracy_score(truth, guess)),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
        "roc_auc": _auc(truth, scores[known].softmax(-1).numpy(), classes),
        "confusion_matrix": confusion_matrix(truth, guess, labels=classes).tolist(),
        "teacher_accuracy": float(accuracy_score(truth, teacher[known].numpy())),
    }


def _auc(truth: Array, probabilities: Array, classes: Array) -> float | None:
    """One against the rest, macro; None where the held-out part lacks a class, for which it is not defined."""
    if len(np.unique(truth)) < len(classes) or len(classes) < 2:
        return None
    if len(classes) == 2:
        return float(roc_auc_score(truth, probabilities[:, 1]))
    return float(roc_auc_score(truth, probabilities, multi_class="ovr", labels=classes))


def _multi_label(scores: Tensor, targets: DenseTargets) -> Metrics:
    ours, theirs = (scores > 0).int().numpy(), (targets.logits > 0).int().numpy()
    known = targets.labelled.numpy()
    found: Metrics = {
        "positions": len(scores),
        "labelled": int(known.sum()),
        "kl_nats": binary_kl_divergence(scores, targets.logits, 1.0).mean().item(),
        "agreement": float((ours == theirs).mean()),
    }
    if not known.any():
        return found
    truth = targets.gold.int().numpy()[known]
    defined = all(len(np.unique(column)) == 2 for column in truth.T)
    return found | {
        "accuracy": float(accuracy_score(truth, ours[known])),
        "macro_f1": float(f1_score(truth, ours[known], average="macro", zero_division=0)),
        "roc_auc": float(roc_auc_score(truth, scores.numpy()[known], average="macro")) if defined else None,
        "confusion_matrix": multilabel_confusion_matrix(truth, ours[known]).tolist(),
        "teacher_accuracy": float(accuracy_score(truth, theirs[known])),
    }


def regression(scores: Tensor, targets: DenseTargets) -> Metrics:
    """Of identity scores `[N, V]`: squared errors with the teacher and the labels."""
    ours, theirs, known = scores.numpy(), targets.logits.numpy(), targets.labelled.numpy()
    found: Metrics = {
        "positions": len(ours),
        "labelled": int(known.sum()),
        "mse_with_teacher": float(mean_squared_error(theirs, ours)),
    }
    if not known.any():
        return found
    truth = targets.gold.numpy()[known]
    return found | {
        "mse": float(mean_squared_error(truth, ours[known])),
        "r2": float(r2_score(truth, ours[known])) if len(truth) > 1 else None,
        "teacher_mse": float(mean_squared_error(truth, theirs[known])),
    }
