"""A student's embeddings beside the teacher's: do they hold the same texts to be alike, and find the same neighbours?

Over the first `MOST` held-out texts, whose order is that of hashes: a random part. Both are compared by cosine, so
widths may differ; Spearman's correlation is scipy's, NDCG scikit-learn's, with the teacher's ten nearest as what is
relevant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score
from torch import Tensor

from schemas.errors import StudentError
from trainer.batches.batch import Batch
from trainer.metrics.tokens import Metrics
from trainer.models.embeddings import Embedder
from trainer.models.heads import Run

MOST = 2048
"""Texts: every pair of them is compared."""
NEAREST = (1, 10)


@torch.no_grad()
def embedded(
    model: Any, run: Run, embedder: Embedder, batches: Iterable[Batch], device: torch.device
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R T"]]:
    """The student's embeddings of held-out texts and the teacher's, on the CPU; of at most `MOST` of them.

    Raises:
        StudentError: one is not finite.
    """
    ours, theirs, count = list[Tensor](), list[Tensor](), 0
    for batch in batches:
        on_device = batch.to(device)
        states = run(model, on_device.model_inputs, (-1,), -1).states[0]
        ours.append(embedder(states, on_device.example_mask).cpu())
        theirs.append(batch.features[0].float())
        count += len(ours[-1])
        if not bool(torch.isfinite(ours[-1]).all()):
            raise StudentError(
                "the student gives embeddings that are not numbers", where=type(model).__name__
            )
        if count >= MOST:
            break
    return torch.cat(ours)[:MOST], torch.cat(theirs)[:MOST]


def embedding_metrics(ours: Float[Tensor, "R D"], theirs: Float[Tensor, "R T"]) -> Metrics:
    """`spearman` of the cosines of all pairs; `recall_at_k`, the share of a text's k nearest by the teacher that are
    among the student's k; `ndcg_at_10`; and where both have one width `cosine_to_teacher`. None where there are too few
    texts, or where all pairs are alike."""
    found: Metrics = {"texts": len(ours)}
    if ours.shape == theirs.shape:
        found["cosine_to_teacher"] = torch.cosine_similarity(ours, theirs).double().mean().item()
    student, teacher = cosines(ours), cosines(theirs)
    pairs = np.triu_indices(len(ours), 1)
    alike = len(pairs[0]) < 2 or np.ptp(student[pairs]) == 0 or np.ptp(teacher[pairs]) == 0
    found["spearman"] = None if alike else float(spearmanr(student[pairs], teacher[pairs]).statistic)
    others = ~np.eye(len(ours), dtype=np.bool_)
    student, teacher = (part[others].reshape(len(ours), -1) for part in (student, teacher))
    for k in NEAREST:
        known = student.shape[1] >= k
        found[f"recall_at_{k}"] = (
            float((nearest(student, k) & nearest(teacher, k)).sum(1).mean() / k) if known else None
        )
    most = NEAREST[-1]
    enough = student.shape[1] > most
    relevant = nearest(teacher, most) if enough else teacher
    found[f"ndcg_at_{most}"] = float(ndcg_score(relevant, student, k=most)) if enough else None
    return found


def cosines(embeddings: Float[Tensor, "R D"]) -> Float[np.ndarray, "R R"]:
    """Of every pair."""
    unit = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    found: Float[np.ndarray, "R R"] = (unit @ unit.t()).numpy()
    return found


def nearest(similarities: Float[np.ndarray, "R O"], k: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the others are each text's k nearest; of equal ones the earlier."""
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    found = np.zeros(similarities.shape, np.bool_)
    np.put_along_axis(found, order, values=True, axis=1)
    return found
