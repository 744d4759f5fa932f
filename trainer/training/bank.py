"""The cache as a memory bank: teacher's pooled states of some of its rows, which contrast takes negatives from.

A teacher's states do not change, so its bank needs no queue and no momentum: the rows are drawn once, by the run's
seed, from the side that is trained on, and a run that goes on draws the same. Cost: one float32 state a row and feature
in memory, and the row groups that hold the rows are read once when the run starts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from schemas.errors import StudentError
from schemas.features import Feature
from trainer.batches.targets import example_keys
from trainer.losses.loss import Bank
from trainer.stream.side import Side


def read_bank(sides: Sequence[Side], features: Sequence[Feature], number: int, seed: int) -> Bank:
    """So many rows, from row groups in an order that the seed decides.

    Raises:
        StudentError: there are fewer.
    """
    groups = [(side, int(group)) for side in sides for group in np.flatnonzero(side.counts())]
    keys: list[torch.Tensor] = []
    states: list[list[torch.Tensor]] = [[] for _ in features]
    left = number
    for place in np.random.default_rng(seed).permutation(len(groups)).tolist():
        if left <= 0:
            break
        side, group = groups[place]
        rows = side.read(group)
        rows = rows.take(np.arange(min(left, len(rows))))
        keys.append(example_keys(rows))
        for found, feature in zip(states, features, strict=True):
            found.append(torch.from_numpy(rows.feature(feature).copy()))
        left -= len(rows)
    if left > 0:
        raise StudentError(
            "the caches have fewer rows to train on than negatives are asked for",
            expected=f"at most {number - left}",
            got=number,
            do="Lower negatives in --losses",
        )
    return Bank(torch.cat(keys), tuple(torch.cat(found).float() for found in states))
