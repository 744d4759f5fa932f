"""A student of another tokenizer beside its teacher: in bits a byte of text, which are the same for both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from trainer.batches.batch import Batch
from trainer.losses.aligned_targets import AlignedScores, AlignedTargets
from trainer.losses.cross_tokenizer import chunk_likelihoods
from trainer.losses.fused import CHUNK_ELEMENTS, chunks
from trainer.metrics.tokens import Metrics
from trainer.models.heads import Head, Run


@torch.no_grad()
def aligned_metrics(model: Any, run: Run, batches: Iterable[Batch], device: torch.device) -> Metrics:
    """Cross entropy of the student's own tokens, and of the text in chunks with the teacher's of the same bytes; the
    teacher's only where the cache has its likelihood."""
    head, sums, seen = Head.of(model), torch.zeros(5, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    for batch in batches:
        on_device = batch.to(device)
        targets = on_device.targets
        assert isinstance(targets, AlignedTargets)
        given = run(model, on_device.model_inputs, (), -1).head_inputs
        assert given is not None
        states = on_device.at_positions(given)
        cuts = targets.host.cuts(len(states))
        for first, last in chunks(len(states), len(head.weight), CHUNK_ELEMENTS, cuts):
            part = targets.part(first, last)
            sums += _sums(AlignedScores(head.logits(states[first:last]).float(), part)).cpu()
        seen += torch.stack([batch.counts[1], batch.counts[0], targets.num_bytes.sum().cpu()])
    tokens, number, size = seen.tolist()
    own, right, ours, theirs, divergence = sums.tolist()
    mean = own / max(1, tokens)
    found: Metrics = {
        "positions": tokens,
        "cross_entropy_nats": mean,
        "perplexity": math.exp(min(mean, 700.0)),
        "top1_accuracy": right / max(1, tokens),
        "chunks": number,
        "chunk_bytes": size,
        "bits_per_byte": ours / max(1, size) / math.log(2),
    }
    if math.isfinite(theirs):
        found["teacher_bits_per_byte"] = theirs / max(1, size) / math.log(2)
        found["chunk_kl_nats"] = divergence / max(1, number)
    return found


def _sums(scores: AlignedScores) -> torch.Tensor:
    """Sums of the cross entropy and accuracy of tokens, of the cross entropy of chunks, the teacher's, and the binary
    KL of chunks at tau 1: `[5]`."""
    ours, theirs = scores.chunks, scores.targets.teacher
    parts = [
        -scores.gold,
        scores.logits.argmax(-1) == scores.targets.gold,
        -ours,
        -theirs,
        chunk_likelihoods(ours, theirs, 1.0),
    ]
    return torch.stack([part.double().sum() for part in parts])
