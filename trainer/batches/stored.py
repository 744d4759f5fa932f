"""What of a position only some losses ask for, beside its entries: the gold id's log-probability, the entropy, and
drawn entries' own log-probabilities at another temperature than 1. Nothing is decoded that no loss needs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32

from schemas.rows.entries import softened
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from trainer.losses.targets import SparseTargets


def with_stored(
    targets: SparseTargets, rows: Rows, counts: Array, temperature: float, names: Collection[str]
) -> SparseTargets:
    """The targets of some rows' positions, of so many entries each, with what is asked for: of `gold`, `entropy` and
    `own`.

    Raises:
        ValueError: what is stored cannot be told at a temperature that the cache does not declare.
    """
    if temperature not in (1, *rows.spec.temperatures) and {"gold", "own"} & set(names):
        raise ValueError(f"the cache declares {rows.spec.temperatures}, but got temperature {temperature}")
    found = replace(targets, drawn=rows.spec.is_sampling)
    if "entropy" in names:
        found = replace(found, entropy=torch.from_numpy(rows.entropy()))
    if "gold" in names:
        plain = gold_logprobs(rows, len(targets.tail))
        warm = plain
        if temperature != 1:
            warm = softened(rows, plain, np.ones(len(plain), np.int64), temperature)
        tensors = torch.from_numpy(plain), torch.from_numpy(warm)
        found = replace(found, gold_logprobs=tensors[0], gold_softened=tensors[1])
    if "own" in names and temperature != 1:
        shift = rows.logsumexp().astype(np.float64) / temperature - rows.logsumexp(temperature)
        own = targets.logprobs / temperature + torch.from_numpy(np.repeat(shift, counts))
        found = replace(found, softened=own.float())
    return found


def gold_logprobs(rows: Rows, number: int) -> Float32[np.ndarray, " N"]:
    """At temperature 1; NaN where a row has no labels."""
    column = rows.gold_logprob()
    row = np.repeat(np.arange(len(rows)), np.diff(rows.position_offsets))
    found: Array = np.full(number, np.nan, np.float32)
    found[column.validity[row]] = column.values
    return found
