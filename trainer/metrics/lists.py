"""Metrics of rerankers: whether a query's passages stand in the right order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import ndcg_score
from torch import Tensor

from schemas.rows.ragged import Array
from schemas.spec import Spec
from trainer.batches.batch import Batch
from trainer.losses.targets import DenseTargets
from trainer.metrics.classes import regression, scored
from trainer.metrics.tokens import Metrics

CUT = 10


def list_metrics(model: Any, batches: Iterable[Batch], spec: Spec, device: torch.device) -> Metrics:
    """Of each query's list, averaged over lists of two passages and more: NDCG@10 (scikit-learn's) of the student's and
    the teacher's order by the corpus's labels, and of the student's by the teacher's ranks; the share of pairs that
    both put in the same order; and whether the first is the same. Beside them what regression says of each score."""
    every: list[tuple[Tensor, DenseTargets]] = []
    sums: dict[str, list[float]] = {}
    for batch, logits in scored(model, batches, device):
        targets = batch.targets
        assert isinstance(targets, DenseTargets)
        every.append((logits, targets))
        for one in torch.unique_consecutive(targets.row):
            own = targets.row == one
            ours, theirs = (part[own, 0].double().numpy() for part in (logits, targets.logits))
            gold = targets.gold[own, 0].double().numpy() if bool(targets.labelled[own].all()) else None
            for name, value in _of_list(ours, theirs, gold).items():
                sums.setdefault(name, []).append(value)
    logits = torch.cat([logits for logits, _ in every])
    found = regression(logits, DenseTargets.joined([target for _, target in every]))
    means = {name: float(np.mean(values)) for name, values in sums.items()}
    return {**found, "lists": len(sums.get("order_agreement", ())), **means}


def _of_list(ours: Array, theirs: Array, gold: Array | None) -> dict[str, float]:
    """Of one list; nothing of a passage alone."""
    number = len(ours)
    if number < 2:
        return {}
    ranks = np.empty(number)
    ranks[np.argsort(-theirs, kind="stable")] = np.arange(number, 0, -1)
    found = {
        "order_agreement": _same_order(ours, theirs),
        "first_agreement": float(ours.argmax() == theirs.argmax()),
        "ndcg_with_teacher": float(ndcg_score(ranks[None], ours[None], k=CUT)),
    }
    if gold is not None and gold.min() >= 0 and gold.max() > 0:
        found["ndcg"] = float(ndcg_score(gold[None], ours[None], k=CUT))
        found["teacher_ndcg"] = float(ndcg_score(gold[None], theirs[None], k=CUT))
    return found


def _same_order(ours: Array, theirs: Array) -> float:
    """Of the pairs that the teacher tells apart; where the student does not, half."""
    a, b = np.triu_indices(len(ours), 1)
    signs = np.sign(theirs[a] - theirs[b])
    told = signs != 0
    if not told.any():
        return 1.0
    agree = np.sign(ours[a] - ours[b])[told] * signs[told]
    return float(((agree + 1) / 2).mean())
