"""Batches of one unit: sorted by length, filled to a budget of padded tokens.

Sorted by length, padding stays within a few percent whatever the lengths; a budget of tokens, not of examples, keeps
every batch the same work. Longest first, so that a batch too large for the memory fails at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipelines.teacher import Batch
from pipelines.tokenise import Example
from schemas.ragged import Array
from schemas.spec import Spec


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of each batch. No batch has more than `batch_tokens` padded tokens, unless one example has."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        widest = lengths[batches[-1][0]] if batches else 0
        if batches and widest * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def collate(examples: Sequence[Example], spec: Spec, *, pad_id: int, multiple: int) -> Batch:
    """Pads examples on the right to one width, a multiple of `multiple` tokens, and lists their positions."""
    ids = [np.frombuffer(example.input_ids, np.int32) for example in examples]
    width = -(-max(map(len, ids)) // multiple) * multiple
    positions = [positions_of(example) for example in examples]
    counts = [len(part) for part in positions]
    types = None
    if spec.has_token_type_ids:
        types = _padded([np.frombuffer(e.token_type_ids or b"", np.int32) for e in examples], width, 0)
    return Batch(
        input_ids=_padded(ids, width, pad_id),
        attention_mask=_padded([np.ones(len(part), np.int32) for part in ids], width, 0),
        token_type_ids=types,
        position_rows=torch.from_numpy(np.repeat(np.arange(len(ids)), counts)),
        position_tokens=torch.from_numpy(np.concatenate(positions).astype(np.int64)),
        labels=torch.from_numpy(_labels(examples, ids, positions, spec)),
    )


def positions_of(example: Example) -> Array:
    """Tokens that the example's positions stand on."""
    if example.position_index is None:
        return np.arange(example.num_tokens - 1, dtype=np.int32)
    return np.frombuffer(example.position_index, np.int32)


def _labels(
    examples: Sequence[Example], ids: Sequence[Array], positions: Sequence[Array], spec: Spec
) -> Array:
    """Gold class of each position: the next token, the document's class, or -1."""
    if spec.task == "causal-lm":
        found = [tokens[places + 1] for tokens, places in zip(ids, positions, strict=True)]
        return np.concatenate(found).astype(np.int64)
    return np.array([e.label if isinstance(e.label, int) else -1 for e in examples], np.int64)


def _padded(rows: Sequence[Array], width: int, fill: int) -> torch.Tensor:
    out = np.full((len(rows), width), fill, np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)
