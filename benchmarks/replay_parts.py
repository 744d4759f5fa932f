"""What a training step waits for, the first batch, padding, shuffle and memory: the other figures of `replay.py`.

Memory and shuffle are those of caches of 1, 10 and 100 shards of 32 small row groups: real rows, sealed again and again
under ids of their own. Memory is the largest resident size of a process that streams one epoch, less what its imports
take. The shuffle is that of the rows' numbers in the largest of these caches.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from schemas import Cache
from schemas.identity import unit_name
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.seal import SealedShard, Shard, Totals, ranking_of, seal_shard
from schemas.storage.storage import Storage
from schemas.versions.commits import commit, record_after
from schemas.versions.header import create_header
from trainer.batches.collate import Collation
from trainer.losses.objective import Objective
from trainer.stream.order import Order
from trainer.stream.replay import Address, Replay, Share
from trainer.stream.runs import read_runs
from trainer.stream.side import Side
from trainer.students.students import open_student
from trainer.training.training import make_distiller

ROOT = Path(__file__).resolve().parents[1]
TIMES = (1, 10, 100)
GROUPS, ROWS = 32, 16
"""Of a shard, and of a row group, in the caches that grow."""
STEPS, WARM, STARTS = 50, 5, 5


def report_training(cache: Cache, order: Order, batch_size: int) -> None:
    """Of the demo's student, one thread: KL, AdamW."""
    step, waited = train_steps(cache, order, batch_size)
    root = str(cache.storage.root)
    found = [
        (*first_batch(root, order, batch_size, 0.0), first_batch(root, order, batch_size, 0.9)[1])
        for _ in range(STARTS)
    ]
    opening, start, resumed = (statistics.median(each) for each in zip(*found, strict=True))
    print(f"  waiting for a batch: {waited / step:.4f} of a step ({step * 1e3:.0f} ms, {STEPS} steps)")
    for name, taken in (("at the start", start), ("at 90% of an epoch", resumed)):
        print(
            f"  first batch {name}: {taken / step:.2f} steps, {taken / opening:.1f} times opening the cache"
            f" ({taken * 1e3:.0f} ms)"
        )
    tokens, room = padding(cache, order)
    print(f"  padding: {1 - tokens / room:.4f} of all tokens", flush=True)


def _replay(cache: Cache, order: Order, batch_size: int) -> Replay:
    side = Side(cache=cache, eval_fraction=0.0, is_eval=False)
    collation = Collation(student_vocab=cache.spec.vocab_size, pad_id=0)
    return Replay([side], order, collation, Share(batch_size=batch_size))


def train_steps(cache: Cache, order: Order, batch_size: int) -> tuple[float, float]:
    """Seconds of a step, and those that it waits for its batch, in the mean."""
    student = open_student(str(ROOT / "examples/student.json"), cache, teacher=None, seed=1)
    distiller = make_distiller(student, cache, Objective.parse(["kl"]))
    optimiser = torch.optim.AdamW(student.model.parameters(), lr=1e-3)
    student.model.train()
    replay, waits, takes = _replay(cache, order, batch_size), [], []
    addresses = itertools.chain.from_iterable(replay.share.addresses(order, e) for e in itertools.count())
    for address in itertools.islice(addresses, WARM + STEPS):
        start = time.perf_counter()
        batch = replay[address]
        waits.append(time.perf_counter() - start)
        distiller(batch)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        takes.append(time.perf_counter() - start)
    replay.close()
    return statistics.mean(takes[WARM:]), statistics.mean(waits[WARM:])


def first_batch(path: str, order: Order, batch_size: int, share: float) -> tuple[float, float]:
    """Seconds until a cache is open and its footers are read, and until the batch at a share of an epoch is there."""
    start = time.perf_counter()
    cache = Cache.open(path)
    assert cache.row_groups
    opened = time.perf_counter()
    side = Side(cache=cache, eval_fraction=0.0, is_eval=False)
    own = replace(order, counts=(side.counts(),))
    replay = _replay(cache, own, batch_size)
    assert replay[Address(0, int(share * replay.share.num_batches(own)))].num_rows
    taken = time.perf_counter() - start
    replay.close()
    return opened - start, taken


def _runs(cache: Cache, order: Order) -> Iterator[tuple[Array, list[Array], Array]]:
    """Of each run of an epoch its rows' lengths, which of them each step takes, and their ids as numbers."""
    side = Side(cache=cache, eval_fraction=0.0, is_eval=False)
    for run in itertools.islice(read_runs([side], order, range(order.lanes), 0, 0), order.num_runs):
        ids = run.rows.take(np.arange(len(run.rows)), ("example_id",)).array("example_id")
        yield run.rows.lengths, run.steps, ids


def padding(cache: Cache, order: Order) -> tuple[int, int]:
    """Tokens of an epoch, and the room that its batches have."""
    tokens, room = 0, 0
    for lengths, steps, _ in _runs(cache, order):
        tokens += sum(int(lengths[step].sum()) for step in steps)
        room += sum(len(step) * int(lengths[step].max()) for step in steps)
    return tokens, room


def report_growth(cache: Cache, row_groups: int, batch_size: int) -> None:
    """Memory at more and more row groups, and the shuffle of the most."""
    with tempfile.TemporaryDirectory() as place:
        found = []
        for times in TIMES:
            grown = grow(cache, Path(place, str(times)), times)
            command = [sys.executable, __file__, str(grown.storage.root), str(row_groups), str(batch_size)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(told))
        for times, (before, largest) in zip(TIMES, found, strict=True):
            ratio = (largest - before) / (found[0][1] - found[0][0])
            print(
                f"memory at {times * GROUPS:>5,} row groups: {ratio:.2f} of that at {GROUPS}"
                f" ({(largest - before) / 2**20:.0f} MiB beside {before / 2**20:.0f} of imports)"
            )
        side = Side(cache=grown, eval_fraction=0.0, is_eval=False)
        order = Order(counts=(side.counts(),), batch_size=batch_size, row_groups=row_groups)
        ids = np.concatenate([rows.array("example_id") for rows in grown.read_all()])
        places = {one.tobytes(): number for number, one in enumerate(ids)}
        stream = [
            places[epoch_ids[row].tobytes()]
            for _, steps, epoch_ids in _runs(grown, order)
            for step in steps
            for row in step
        ]
    report_shuffle("ours", np.array(stream), batch_size)


def report_shuffle(name: str, order: Array, batch_size: int) -> None:
    """Rank correlation of place in the cache and in the stream; how many of a batch's pairs are of one shard. The order
    inside a batch, which is that of lengths, means nothing."""
    rank = np.corrcoef(order, np.arange(len(order)))[0, 1]
    shard = (order // (GROUPS * ROWS))[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    pairs = shard[:, :, None] == shard[:, None, :]
    same = (pairs.mean() * batch_size - 1) / (batch_size - 1)
    number = int(shard.max()) + 1
    print(
        f"shuffle, {name}: {len(order):,} rows, {number} shards: rank correlation {rank:+.3f},"
        f" pairs of one shard in a batch {same:.3f} (by chance {1 / number:.3f})",
        flush=True,
    )


def grow(cache: Cache, path: Path, times: int) -> Cache:
    """A cache of `times` shards, each of the same first rows of another under ids of its own."""
    storage = Storage.at(path)
    create_header(
        storage, cache.header, {name: cache.tokenizer_file(name) for name in cache.header.tokenizer}
    )
    rows = Rows.concatenate([cache.read(ref) for ref in cache.row_groups[: -(-GROUPS * ROWS // 256)]])
    rng, shards, totals = np.random.default_rng(times), [], Totals()
    for _ in range(times):
        sealed = _sealed(cache, rows.take(np.arange(GROUPS * ROWS)), rng)
        storage.put(sealed.name, sealed.data)
        shards.append(Shard(sealed.name, len(sealed.data), sealed.footer.totals.examples))
        totals += sealed.footer.totals
    shards.sort()
    fields = {"run": "grown", "header_hash": cache.record.header_hash}
    commit(storage, cache.spec, None, shards, record_after(None, shards, totals, **fields))
    return Cache.open(path)


def _sealed(cache: Cache, rows: Rows, rng: np.random.Generator) -> SealedShard:
    ids = np.sort(rng.integers(0, 2**64, len(rows), np.uint64)).astype(">u8").view(np.uint8).reshape(-1, 8)
    fresh = {
        "example_id": np.concatenate([ids, ids], 1),
        "document_hash": rng.integers(0, 256, (len(rows), 16), np.uint8),
    }
    own = Rows(spec=rows.spec, data={**rows.data, **fresh})
    return seal_shard(
        (own.take(part) for part in np.array_split(np.arange(len(own)), GROUPS)),
        spec=own.spec,
        fingerprint_hash=cache.fingerprint.hash,
        unit=unit_name(own.example_ids, own.spec.hash),
        totals=Totals(),
        ranking=ranking_of([own]),
    )


def largest_bytes() -> int:
    """The largest resident size of this process: `getrusage` would count its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def stream_once(path: str, row_groups: int, batch_size: int) -> None:
    """One epoch, as training reads it; prints what the process took before and at most."""
    torch.set_num_threads(1)
    before = largest_bytes()
    cache = Cache.open(path)
    side = Side(cache=cache, eval_fraction=0.0, is_eval=False)
    order = Order(counts=(side.counts(),), batch_size=batch_size, row_groups=row_groups)
    replay = _replay(cache, order, batch_size)
    for address in replay.share.addresses(order, 0):
        assert replay[address].num_rows
    replay.close()
    print(json.dumps([before, largest_bytes()]))


if __name__ == "__main__":
    stream_once(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
