"""Which ids are drawn: systematic sampling of a position's tail, or independent draws from the whole distribution.

*Systematic* (`threshold`): the tail's probabilities are laid end to end in ascending id order, and marks stand at every
`tau` from a random start on; an id is kept whose stretch holds a mark. So an id of probability p < tau is kept with
probability p / tau exactly, and the number of kept ids varies by one at most.

Everything is decided in float64, unrounded: a float32 sum over a vocabulary is off by more than the rarest ids are
worth.

Costs, for N positions of V logits: in float64 a pass each for the difference to the top, for exp, for the entropy and
for the sums of blocks of 64 ids; the running sums of single ids are made for the few blocks that hold a mark. D
independent draws look into as many blocks at most, each once, and take six look-ups each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int

_BLOCK = 64


class Scratch(NamedTuple):
    """Working memory of `survey`, used again for each piece: on a CPU new pages cost as much as exp."""

    shifted: Float64[torch.Tensor, "N V"]
    mass: Float64[torch.Tensor, "N P"]
    """P is V in whole blocks; what lies beyond V is 0."""

    @classmethod
    def of(cls, rows: int, logits: Float[torch.Tensor, "N V"]) -> Scratch:
        """For pieces of at most `rows` positions of such logits."""
        width = -(-logits.shape[1] // _BLOCK) * _BLOCK
        shifted = logits.new_empty(rows, logits.shape[1], dtype=torch.float64)
        return cls(shifted, logits.new_zeros(rows, width, dtype=torch.float64))


class Survey(NamedTuple):
    """What N positions are drawn from. m is an id's largest probability over the temperatures."""

    head_logits: Float[torch.Tensor, "N K"]
    """The largest logits, descending, and their ids; equal ones by ascending id."""
    head: Int[torch.Tensor, "N K"]
    num_exact: Int[torch.Tensor, " N"]
    """How many of them are kept exactly."""
    totals: Float64[torch.Tensor, "N T"]
    """Sum of exp((logit - top) / T)."""
    rare: Float64[torch.Tensor, "N M"]
    """Sum of m over each block's ids, exact ones left out."""
    entropy: Float64[torch.Tensor, " N"]
    """At temperature 1, in nats."""

    def logsumexp(self, temperatures: tuple[float, ...]) -> Float64[torch.Tensor, "N T"]:
        """log sum exp(logit / T)."""
        by = torch.tensor(temperatures, dtype=torch.float64, device=self.head.device)
        return self.head_logits[:, :1] / by + self.totals.log()

    def part(self, start: int, stop: int) -> Survey:
        """Some of the positions."""
        return Survey(*(column[start:stop] for column in self))


class Drawn(NamedTuple):
    """Which ids were drawn for N positions. Those from `counts[n]` on are none."""

    ids: Int[torch.Tensor, "N S"]
    """Ascending."""
    draws: Int[torch.Tensor, "N S"]
    """How often each was drawn."""
    counts: Int[torch.Tensor, " N"]


def survey(
    logits: Float[torch.Tensor, "N V"],
    head: tuple[Float[torch.Tensor, "N K"], Int[torch.Tensor, "N K"]],
    temperatures: tuple[float, ...],
    scratch: Scratch,
    *,
    tau: float,
    k: int,
) -> Survey:
    """All that needs a pass over V. Exact are the first `k` of the head, and all with `m >= tau`.

    `head` holds the largest logits and their ids, as many as can be exact, and one at least.
    """
    top, ids = head[0][:, :1].double(), head[1]
    shifted, mass = scratch.shifted[: len(logits)], scratch.mass[: len(logits)]
    torch.sub(logits, top, out=shifted)
    largest = torch.exp(shifted, out=mass[:, : logits.shape[1]])
    totals = [largest.sum(1)]
    entropy = totals[0].log() - torch.linalg.vecdot(largest, shifted) / totals[0]
    largest /= totals[0][:, None]
    for temperature in temperatures[1:]:
        softer = (shifted / temperature).exp_()
        totals.append(softer.sum(1))
        torch.maximum(largest, softer.div_(totals[-1][:, None]), out=largest)
    at_head = mass.gather(1, ids)
    num_exact = (at_head >= tau).sum(1).clamp(min=min(k, ids.shape[1]))
    is_exact = torch.arange(ids.shape[1], device=ids.device) < num_exact[:, None]
    mass.scatter_(1, ids, at_head.masked_fill_(is_exact, 0))
    rare = mass.view(len(mass), mass.shape[1] // _BLOCK, _BLOCK).sum(2)
    return Survey(*head, num_exact, torch.stack(totals, dim=1), rare, entropy.clamp(min=0))


def join(parts: Sequence[Survey]) -> Survey:
    """The positions of all parts, one part after the other."""
    return Survey(*(torch.cat(column) for column in zip(*parts, strict=True)))


def draw_rare(
    logits: Float[torch.Tensor, "N V"],
    found: Survey,
    temperatures: tuple[float, ...],
    uniforms: Float64[torch.Tensor, " N"],
    *,
    tau: float,
    most: int,
) -> Drawn:
    """The `threshold` policy: ids that are not exact are kept with probability `m / tau`, at most `most` of them.

    With C the running sum of m over these ids, i is kept iff `floor(C_i / tau - u) > floor(C_(i-1) / tau - u)`.
    """
    ends, start = found.rare.cumsum(1), uniforms[:, None]
    row, block = _marked(ends, torch.zeros_like(start), start, tau).nonzero(as_tuple=True)
    before = torch.where(block > 0, ends[row, block - 1], 0)[:, None]
    inside = before + _mass_inside(logits, found, temperatures, row, block).cumsum(1)
    hit, place = _marked(inside, before, start[row], tau).nonzero(as_tuple=True)
    ids, counts = _padded(row[hit], block[hit] * _BLOCK + place, len(logits), most)
    return Drawn(ids, torch.ones_like(ids), counts)


def draw_with_replacement(
    logits: Float[torch.Tensor, "N V"],
    found: Survey,
    uniforms: Float64[torch.Tensor, "N D"],
    *,
    most_bytes: int,
) -> Drawn:
    """The `sampled:N` policy: D independent draws each, by the inverse of the cumulative distribution.

    Anshumann et al. 2025 (arXiv:2503.16870). No entry of the survey may be exact. Goes over the positions in pieces
    whose running sums of single ids take at most `most_bytes`, or over one at a time; a few arrays of that size are in
    memory at once.
    """
    draws = uniforms.shape[1]
    width = max(draws, min(draws, found.rare.shape[1]) * _BLOCK)
    size = max(1, most_bytes // (width * uniforms.element_size()))
    parts = [
        _merged(_inverted(logits[i : i + size], found.part(i, i + size), uniforms[i : i + size]))
        for i in range(0, max(1, len(logits)), size)
    ]
    return Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _inverted(
    logits: Float[torch.Tensor, "N V"], found: Survey, uniforms: Float64[torch.Tensor, "N D"]
) -> Int[torch.Tensor, "N D"]:
    """The id on whose stretch of the cumulative distribution each uniform falls."""
    ends = found.rare.cumsum(1)
    target = uniforms * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[1] - 1)
    # many draws fall into few blocks: each is looked into once
    is_met = torch.zeros_like(ends, dtype=torch.bool).scatter_(1, block, True)
    row, met = is_met.nonzero(as_tuple=True)
    before = torch.where(met > 0, ends[row, (met - 1).clamp(min=0)], 0)
    inside = before[:, None] + _mass_inside(logits, found, (1.0,), row, met).cumsum(1)
    rank = (is_met.flatten().cumsum(0) - 1).view_as(ends).gather(1, block)
    # Where rounding puts the target beyond the block's last sum, it is the block's last id that has any mass.
    last = (inside < inside[:, -1:]).sum(1)
    return block * _BLOCK + torch.minimum(_place(inside, rank, target), last[rank])


def _place(
    inside: Float64[torch.Tensor, "B 64"],
    rank: Int[torch.Tensor, "N D"],
    target: Float64[torch.Tensor, "N D"],
) -> Int[torch.Tensor, "N D"]:
    """How many of the first 63 running sums of its block each target reaches, by bisection."""
    sums, first = inside.flatten(), rank * _BLOCK
    place, step = torch.zeros_like(rank), _BLOCK // 2
    while step:
        place += step * (sums[first + place + (step - 1)] <= target)
        step //= 2
    return place


def _marked(
    sums: Float64[torch.Tensor, "N M"],
    before: Float64[torch.Tensor, "N 1"],
    start: Float64[torch.Tensor, "N 1"],
    tau: float,
) -> Bool[torch.Tensor, "N M"]:
    """Where a mark lies between a running sum and the one before it."""
    level = torch.cat([before, sums], dim=1).div_(tau).sub_(start).floor_()
    return level[:, 1:] > level[:, :-1]


def _mass_inside(
    logits: Float[torch.Tensor, "N V"],
    found: Survey,
    temperatures: tuple[float, ...],
    row: Int[torch.Tensor, " B"],
    block: Int[torch.Tensor, " B"],
) -> Float64[torch.Tensor, "B 64"]:
    """m of each id of some blocks; 0 for exact ids and beyond V."""
    ids = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=block.device)
    picked = logits[row[:, None], ids.clamp(max=logits.shape[1] - 1)]
    shifted, totals = picked - found.head_logits[row, :1].double(), found.totals[row]
    mass = shifted.exp().div_(totals[:, :1])
    for index, temperature in enumerate(temperatures[1:], start=1):
        softer = (shifted / temperature).exp_().div_(totals[:, index, None])
        torch.maximum(mass, softer, out=mass)
    last = (found.num_exact - 1).clamp(min=0)[:, None]
    cut, cut_id = found.head_logits.gather(1, last)[row], found.head.gather(1, last)[row]
    is_exact = (picked > cut) | ((picked == cut) & (ids <= cut_id))
    is_exact &= found.num_exact[row, None] > 0
    return mass.masked_fill_(is_exact | (ids >= logits.shape[1]), 0)


def _padded(
    row: Int[torch.Tensor, " E"], ids: Int[torch.Tensor, " E"], n: int, width: int
) -> tuple[Int[torch.Tensor, "N S"], Int[torch.Tensor, " N"]]:
    """Entries in the order of their rows, as one padded row each, and how many each has."""
    counts = torch.bincount(row, minlength=n)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    padded = ids.new_zeros(n, width)
    padded[row, place] = ids
    return padded, counts


def _merged(drawn: Int[torch.Tensor, "N D"]) -> Drawn:
    """Ids that were drawn more than once, once, with how often."""
    drawn = drawn.sort(dim=1).values
    is_new = torch.ones_like(drawn)
    is_new[:, 1:] = (drawn[:, 1:] != drawn[:, :-1]).long()
    group = is_new.cumsum(1) - 1
    ids = torch.zeros_like(drawn).scatter_(1, group, drawn)
    draws = torch.zeros_like(drawn).scatter_add_(1, group, torch.ones_like(drawn))
    return Drawn(ids, draws, group[:, -1] + 1)
