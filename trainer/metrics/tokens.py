"""A student's distributions over a vocabulary, summed over positions in chunks: never all logits at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trainer.batches.batch import Batch
from trainer.losses.divergences import cross_entropy, kl_divergence
from trainer.losses.fused import CHUNK_ELEMENTS, chunks
from trainer.losses.targets import SparseTargets, first_ids
from trainer.models.heads import Head, Run

Metrics = dict[str, Any]


@torch.no_grad()
def token_metrics(model: Any, run: Run, batches: Iterable[Batch], device: torch.device) -> Metrics:
    """Cross entropy and KL in nats, perplexity, and top-1 agreement, means over all held-out positions.

    `run` gives what the model's head is applied to.
    """
    head, sums, count = Head.of(model), torch.zeros(4, dtype=torch.float64), 0
    for batch in batches:
        on_device = batch.to(device)
        given = run(model, on_device.model_inputs, (), -1).head_inputs
        assert given is not None
        states = on_device.at_positions(given)
        offsets, targets = batch.entry_offsets, on_device.targets
        assert isinstance(targets, SparseTargets)
        for first, last in chunks(len(states), len(head.weight), CHUNK_ELEMENTS):
            entries = slice(int(offsets[first]), int(offsets[last]))
            part = targets.chunk(first, last, entries)
            sums += position_sums(head.logits(states[first:last]).float(), part).cpu()
        count += len(states)
    ce, kl, agree, correct = (sums / max(1, count)).tolist()
    return {
        "positions": count,
        "cross_entropy_nats": ce,
        "perplexity": math.exp(min(ce, 700.0)),
        "kl_nats": kl,
        "top1_agreement": agree,
        "top1_accuracy": correct,
    }


def position_sums(logits: Tensor, targets: SparseTargets) -> Tensor:
    """Sums over positions of cross entropy, KL at T=1, agreement with the teacher's first id, and accuracy: `[4]`."""
    best = logits.argmax(-1)
    parts = [
        cross_entropy(logits, targets.gold),
        kl_divergence(logits, targets, 1.0),
        best == first_ids(targets),
        best == targets.gold,
    ]
    return torch.stack([part.double().sum() for part in parts])
