"""The default policy, `threshold` at one temperature and `k=1`, in one float64 pass over the logits.

What is kept is what `sampler.py` says, to the last bit of its decisions; here it costs less. No head of the largest
logits is made: an id of `p >= tau` stands in a block whose sum reaches `tau`, and few blocks do. The masses of a piece
stay in memory until its marks are looked up, so none is made twice; each mark is found by bisection, first among the
blocks and then inside one. Float32 decides nothing: a running sum over a vocabulary must be right to less than the
rarest id weighs.

Costs, for N positions of V logits: one pass for the largest, and in float64 one each for the difference to it, exp,
the sums of blocks of 64 ids and the entropy, in tiles that stay in a core's cache; then some ten blocks a position. On
a CPU these are compiled loops (`kernels.py`), which take a third of what torch takes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int

from pipelines.keep import kernels
from schemas.rows.kernels import IS_COMPILED

_BLOCK = kernels.BLOCK
_TILE_COLUMNS, _TILE_BYTES = 2**14, 2**20
"""Of one float64 array of a tile, on a CPU: small enough for its caches, large enough for what a call costs."""
_PIECE_BYTES = {"cpu": 2**24, "cuda": 2**27}
"""Masses that are in memory at a time; on a CPU few enough for malloc to keep the memory."""
_ROUNDING = 1e-9
"""By which a block's sum may lie below its largest member, times some thousands."""


class Kept(NamedTuple):
    """What is kept of N positions; entries beyond a position's count are its largest again, or id 0."""

    head: Int[torch.Tensor, "N K"]
    """The exact ids: the largest, and all with `p >= tau`; descending, equal ones by ascending id."""
    num_exact: Int[torch.Tensor, " N"]
    drawn: Int[torch.Tensor, "N S"]
    """Ascending."""
    num_drawn: Int[torch.Tensor, " N"]
    logsumexp: Float64[torch.Tensor, " N"]
    entropy: Float64[torch.Tensor, " N"]
    """In nats. Where a position's logits are not all finite, this or `logsumexp` is not."""


def keep_threshold(
    logits: Float[torch.Tensor, "N V"],
    uniforms: Float64[torch.Tensor, " N"],
    *,
    tau: float,
    most_exact: int,
    most_drawn: int,
) -> Kept:
    """Keeps the largest id and all with `p >= tau`, and draws from the others.

    With C the running sum of p over these, i is drawn iff `floor(C_i / tau - u) > floor(C_(i-1) / tau - u)`.
    """
    loops = IS_COMPILED and logits.device.type == "cpu"
    return (by_loops if loops else by_torch)(
        logits, uniforms, tau=tau, most_exact=most_exact, most_drawn=most_drawn
    )


def by_loops(
    logits: Float[torch.Tensor, "N V"],
    uniforms: Float64[torch.Tensor, " N"],
    *,
    tau: float,
    most_exact: int,
    most_drawn: int,
) -> Kept:
    """The same in compiled loops, on a CPU: each of torch's threads has a part of the positions."""
    n = len(logits)
    kept = Kept(
        head=torch.zeros(n, most_exact, dtype=torch.int64),
        num_exact=torch.empty(n, dtype=torch.int64),
        drawn=torch.zeros(n, most_drawn, dtype=torch.int64),
        num_drawn=torch.empty(n, dtype=torch.int64),
        logsumexp=torch.empty(n, dtype=torch.float64),
        entropy=torch.empty(n, dtype=torch.float64),
    )
    size = max(1, _TILE_BYTES // (8 * logits.shape[1]))
    given = (logits.contiguous(), uniforms.contiguous(), *kept)
    pieces = list(zip(*(torch.split(part, size) for part in given), strict=True))
    threads = min(torch.get_num_threads(), len(pieces))
    if threads < 2:
        _run_loops(pieces, tau)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda place: _run_loops(pieces[place::threads], tau), range(threads)))
    return kept


def _run_loops(pieces: list[tuple[torch.Tensor, ...]], tau: float) -> None:
    """Fills in what is kept of some pieces: (logits, uniforms, and the members of `Kept`) each."""
    most, v = pieces[0][0].shape
    num_blocks = -(-v // _BLOCK)
    mass = np.empty((most, num_blocks * _BLOCK))
    for piece in pieces:
        logits, uniforms, head, num_exact, drawn, num_drawn, logsumexp, entropy = (p.numpy() for p in piece)
        n = len(logits)
        blocks, (total, weighted), top = np.empty((n, num_blocks)), np.empty((2, n)), np.empty(n, np.float32)
        kernels.fill_masses(logits, logits.view(np.int32), mass[:n], blocks, top, total, weighted)
        kernels.take_exact(logits, mass[:n], blocks, total, tau, _ROUNDING, head, num_exact)
        kernels.draw_marked(mass[:n], blocks, total, uniforms, tau, drawn, num_drawn)
        log_total = np.log(total)
        logsumexp[:] = top + log_total
        entropy[:] = np.maximum(log_total - weighted / total, 0)


def by_torch(
    logits: Float[torch.Tensor, "N V"],
    uniforms: Float64[torch.Tensor, " N"],
    *,
    tau: float,
    most_exact: int,
    most_drawn: int,
) -> Kept:
    """The same in torch, on any device."""
    width = -(-logits.shape[1] // _BLOCK) * _BLOCK
    size = max(1, min(len(logits), _PIECE_BYTES[logits.device.type] // (8 * width)))
    masses = logits.new_zeros(size, width, dtype=torch.float64)
    parts = [
        _piece(rows, masses[: len(rows)], u, tau=tau, most_exact=most_exact, most_drawn=most_drawn)
        for rows, u in zip(torch.split(logits, size), torch.split(uniforms, size), strict=True)
    ]
    return parts[0] if len(parts) == 1 else Kept(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _piece(
    logits: Float[torch.Tensor, "n V"],
    mass: Float64[torch.Tensor, "n W"],
    uniforms: Float64[torch.Tensor, " n"],
    *,
    tau: float,
    most_exact: int,
    most_drawn: int,
) -> Kept:
    top, blocks, weighted = _masses(logits, mass)
    total = blocks.sum(1)
    row, ids = _exact(logits, mass, blocks, total, tau)
    head, num_exact = _descending(logits, row, ids, most_exact)
    drawn, num_drawn = _drawn(mass, blocks, total, uniforms, tau=tau, most=most_drawn)
    log_total = total.log()
    entropy = (log_total - weighted / total).clamp(min=0)
    return Kept(head, num_exact, drawn, num_drawn, top.double() + log_total, entropy)


def _masses(
    logits: Float[torch.Tensor, "n V"], mass: Float64[torch.Tensor, "n W"]
) -> tuple[Float[torch.Tensor, " n"], Float64[torch.Tensor, "n M"], Float64[torch.Tensor, " n"]]:
    """Fills in `exp(logit - top)`; the tops, the sums of blocks, and those of mass times log mass."""
    n, v = logits.shape
    top = logits.amax(1)
    blocks = mass.new_empty(n, mass.shape[1] // _BLOCK)
    weighted = mass.new_zeros(n)
    columns = min(mass.shape[1], _TILE_COLUMNS) if logits.device.type == "cpu" else mass.shape[1]
    rows = max(1, _TILE_BYTES // (8 * columns)) if logits.device.type == "cpu" else n
    scratch = mass.new_empty(min(rows, n), columns)
    for first in range(0, n, rows):
        part = slice(first, min(first + rows, n))
        tops = top[part, None].double()
        for left in range(0, v, columns):
            right = min(left + columns, v)
            log = scratch[: part.stop - first, : right - left]
            log.copy_(logits[part, left:right])
            log.sub_(tops)
            found = torch.exp(log, out=mass[part, left:right])
            weighted[part] += _dots(found, log)
            tile = mass[part, left : left + columns]
            tile = tile.view(len(tile), -1, _BLOCK)
            torch.sum(tile, 2, out=blocks[part, left // _BLOCK : left // _BLOCK + tile.shape[1]])
    return top, blocks, weighted


def _dots(left: Float64[torch.Tensor, "n v"], right: Float64[torch.Tensor, "n v"]) -> torch.Tensor:
    """Row by row. On a CPU by numpy, which is three times as fast at it."""
    if left.device.type == "cpu":
        with np.errstate(invalid="ignore"):
            found: torch.Tensor = torch.from_numpy(np.vecdot(left.numpy(), right.numpy()))
    else:
        found = torch.linalg.vecdot(left, right)
    return found


def _exact(
    logits: Float[torch.Tensor, "n V"],
    mass: Float64[torch.Tensor, "n W"],
    blocks: Float64[torch.Tensor, "n M"],
    total: Float64[torch.Tensor, " n"],
    tau: float,
) -> tuple[Int[torch.Tensor, " E"], Int[torch.Tensor, " E"]]:
    """Rows and ids of all exact entries; their masses are taken out of both arrays."""
    row, block = (blocks >= (total * (tau * (1 - _ROUNDING)))[:, None]).nonzero(as_tuple=True)
    flat = row * blocks.shape[1] + block
    by_block = mass.view(-1, _BLOCK)
    inside = by_block.index_select(0, flat)
    is_exact = inside / total[row, None] >= tau
    by_block.index_copy_(0, flat, inside.masked_fill_(is_exact, 0))
    blocks.view(-1).index_copy_(0, flat, inside.sum(1))
    hit, place = is_exact.nonzero(as_tuple=True)
    row, ids = row[hit], block[hit] * _BLOCK + place
    flat_rows = (1 / total < tau).nonzero()[:, 0]  # even the largest is rare: it is exact all the same
    if not len(flat_rows):
        return row, ids
    largest = logits[flat_rows].argmax(1)  # of equal ones the first
    mass[flat_rows, largest] = 0
    block = largest // _BLOCK
    blocks[flat_rows, block] = mass.view(len(mass), -1, _BLOCK)[flat_rows, block].sum(1)
    return torch.cat([row, flat_rows]), torch.cat([ids, largest])


def _descending(
    logits: Float[torch.Tensor, "n V"], row: Int[torch.Tensor, " E"], ids: Int[torch.Tensor, " E"], most: int
) -> tuple[Int[torch.Tensor, "n K"], Int[torch.Tensor, " n"]]:
    """Entries as one row a position, by descending logit; of each position they come by ascending id."""
    bits = (logits[row, ids] + 0.0).view(torch.int32)  # -0.0 and 0.0 are equal
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (row << 32) - ascending
    if keys.device.type == "cpu":
        order = torch.from_numpy(np.argsort(keys.numpy(), kind="stable"))
    else:
        order = keys.sort(stable=True).indices
    row, ids = row[order], ids[order]
    counts = torch.bincount(row, minlength=len(logits))
    starts = counts.cumsum(0) - counts
    first = ids[starts.clamp(max=len(ids) - 1)] if len(ids) else torch.zeros_like(starts)
    head = first[:, None].repeat(1, most)
    head[row, torch.arange(len(row), device=row.device) - starts[row]] = ids
    return head, counts


def _drawn(
    mass: Float64[torch.Tensor, "n W"],
    blocks: Float64[torch.Tensor, "n M"],
    total: Float64[torch.Tensor, " n"],
    uniforms: Float64[torch.Tensor, " n"],
    *,
    tau: float,
    most: int,
) -> tuple[Int[torch.Tensor, "n S"], Int[torch.Tensor, " n"]]:
    """Where the marks fall: at each whole number that `C / tau - u` reaches."""
    ends = (blocks / total[:, None]).cumsum(1)
    levels = (ends / tau).sub_(uniforms[:, None])
    first = (-uniforms).floor() + 1
    counts = torch.where(total.isfinite(), levels[:, -1].floor() - first + 1, 0).long()
    steps = torch.arange(int(counts.max()) if len(counts) else 0, device=mass.device)
    marks = first[:, None] + steps
    is_mark = steps < counts[:, None]
    row = is_mark.nonzero()[:, 0]
    block = torch.searchsorted(levels, marks)[is_mark]
    mark = marks[is_mark][:, None]
    before = torch.where(block > 0, ends[row, (block - 1).clamp(min=0)], 0)[:, None]
    inside = mass.view(-1, _BLOCK).index_select(0, row * blocks.shape[1] + block)
    level = inside.div_(total[row, None]).cumsum_(1).add_(before).div_(tau).sub_(uniforms[row, None])
    place = torch.searchsorted(level, mark)[:, 0]
    if bool((place == _BLOCK).any()):  # by rounding: it is the last id with any mass
        place = torch.minimum(place, (level < level[:, -1:]).sum(1))
    ids = block * _BLOCK + place
    keys = row * mass.shape[1] + ids
    is_new = torch.ones_like(keys, dtype=torch.bool)
    is_new[1:] = keys[1:] != keys[:-1]
    row, ids = row[is_new], ids[is_new]
    counts = torch.bincount(row, minlength=len(mass))
    starts = counts.cumsum(0) - counts
    drawn = ids.new_zeros(len(mass), most)
    drawn[row, torch.arange(len(row), device=row.device) - starts[row]] = ids
    return drawn, counts
