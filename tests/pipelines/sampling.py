"""The sampler by its definition, one id after the other in numpy, and its expectation over u without any draw."""

import math
from typing import NamedTuple

import numpy as np
import torch

from pipelines.keep.sampler import Scratch, draw_rare, survey
from pipelines.keep.top import top_k


class Truth(NamedTuple):
    """One position, unrounded."""

    p: np.ndarray
    """[T, V]: probabilities at each temperature."""
    m: np.ndarray
    """[V]: the largest of them."""
    is_exact: np.ndarray
    """[V]: the k largest logits, of equal ones the lower ids, and all ids with m >= tau."""
    sums: np.ndarray
    """[V]: running sums of m over the ids that are not exact."""


def truth(logits, tau, k, temperatures=(1.0,)) -> Truth:
    scores = logits.double().cpu().numpy()
    p = np.stack([np.exp((scores - scores.max()) / t) for t in temperatures])
    p /= p.sum(1, keepdims=True)
    m = p.max(0)
    is_exact = m >= tau
    is_exact[np.argsort(-scores, kind="stable")[:k]] = True
    return Truth(p, m, is_exact, np.cumsum(np.where(is_exact, 0, m)))


def drawn_by_definition(known: Truth, tau, u) -> list[int]:
    before, found = math.floor(-u), []
    for i, total in enumerate(known.sums):
        level = math.floor(total / tau - u)
        if level > before:
            found.append(i)
        before = level
    return found


def sample(logits, uniforms, tau, k, temperatures=(1.0,)):
    """The sampler on one position under each of some uniforms: which ids are exact [V], which are drawn [U, V]."""
    v, u = len(logits), len(uniforms)
    rows = logits.expand(u, v).contiguous()
    head = top_k(rows, min(v, max(k, math.ceil(len(temperatures) / tau))))
    found = survey(rows, head, temperatures, Scratch.of(u, rows), tau=tau, k=k)
    start = torch.from_numpy(np.asarray(uniforms)).to(rows.device)
    drawn = draw_rare(rows, found, temperatures, start, tau=tau, most=v)
    is_exact, is_drawn = np.zeros(v, np.bool_), np.zeros((u, v), np.bool_)
    assert (found.num_exact == found.num_exact[0]).all()
    is_exact[found.head[0, : found.num_exact[0]].cpu()] = True
    assert is_exact.sum() == found.num_exact[0]
    for row, (ids, count) in enumerate(zip(drawn.ids.cpu(), drawn.counts.tolist(), strict=True)):
        is_drawn[row, ids[:count]] = True
        assert is_drawn[row].sum() == count
        assert (drawn.draws[row, :count] == 1).all()
    return is_exact, is_drawn


def outcomes(logits, tau, k, temperatures=(1.0,)):
    """Everything that can be drawn, each with its probability: between two neighbours of frac(C_i / tau) all u are one.

    Returns the probabilities [U], which ids are exact [V], and which are drawn [U, V].
    """
    known = truth(logits, tau, k, temperatures)
    edges = np.unique(np.concatenate([[0, 1], np.mod(known.sums / tau, 1)]))
    return np.diff(edges), *sample(logits, (edges[:-1] + edges[1:]) / 2, tau, k, temperatures)
