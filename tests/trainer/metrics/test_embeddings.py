"""Neighbours and pairs as a textbook counts them, one at a time."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from trainer.metrics.embeddings import embedding_metrics


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def order(vectors, i):
    """The other texts, nearest first."""
    return sorted((j for j in range(len(vectors)) if j != i), key=lambda j: -cosine(vectors[i], vectors[j]))


def ndcg(ours, theirs, k=10):
    gains = []
    for i in range(len(ours)):
        relevant = set(order(theirs, i)[:k])
        found = sum(1 / math.log2(n + 2) for n, j in enumerate(order(ours, i)[:k]) if j in relevant)
        gains.append(found / sum(1 / math.log2(n + 2) for n in range(k)))
    return np.mean(gains)


def recall(ours, theirs, k):
    shared = [len(set(order(ours, i)[:k]) & set(order(theirs, i)[:k])) for i in range(len(ours))]
    return np.mean(shared) / k


def spearman(ours, theirs):
    pairs = list(itertools.combinations(range(len(ours)), 2))
    ranks = [rankdata([cosine(v[i], v[j]) for i, j in pairs]) for v in (ours, theirs)]
    return np.corrcoef(ranks)[0, 1]


@pytest.mark.parametrize("width", [8, 5])
def test_metrics_are_the_textbooks(width):
    torch.manual_seed(width)
    theirs = torch.randn(30, 8, dtype=torch.float64)
    ours = (theirs + 0.5 * torch.randn(30, 8, dtype=torch.float64))[:, :width]
    found = embedding_metrics(ours.float(), theirs.float())
    ours, theirs = ours.float().double(), theirs.float().double()
    expected = {"spearman": spearman(ours, theirs), "ndcg_at_10": ndcg(ours, theirs)}
    expected |= {f"recall_at_{k}": recall(ours, theirs, k) for k in (1, 10)}
    if width == 8:
        expected["cosine_to_teacher"] = np.mean([cosine(a, b) for a, b in zip(ours, theirs, strict=True)])
    assert found.pop("texts") == 30
    assert found == pytest.approx(expected, abs=1e-5)
    assert 0.1 < found["recall_at_10"] < 0.99


def test_the_teacher_itself_is_perfect_and_a_few_texts_have_no_metric():
    torch.manual_seed(0)
    theirs = torch.randn(40, 6)
    assert embedding_metrics(3 * theirs, theirs) == pytest.approx(
        {
            "texts": 40,
            "cosine_to_teacher": 1,
            "spearman": 1,
            "recall_at_1": 1,
            "recall_at_10": 1,
            "ndcg_at_10": 1,
        }
    )
    few = embedding_metrics(theirs[:2], theirs[:2])
    assert few["recall_at_1"] == 1
    assert (few["spearman"], few["recall_at_10"], few["ndcg_at_10"]) == (None, None, None)
    alone = embedding_metrics(theirs[:1], theirs[:1])
    assert (alone["texts"], alone["recall_at_1"]) == (1, None)
    alike = embedding_metrics(torch.ones(12, 6), theirs[:12])
    assert alike["spearman"] is None
