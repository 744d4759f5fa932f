"""An epoch of the stream alone against decoding the same rows: what a training step gets, targets made. A ratio.

* **stream**: windows read, shuffled, cut, batches gathered and collated, as `teachonce train` has them before a step.
* **decode**: `Cache.read` of the same row groups: fetched, checked by hash, parsed, every rule of the format looked at.

Both run in this process on one thread, in turns, by processor time. An epoch's first window of the next one is not
read. `--cache` names a cache; default: one of what the repository ships, under each of the policies.

    python benchmarks/replay.py
    python benchmarks/replay.py --cache CACHE --batch_size 32
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipelines import CorpusConfig, PrecomputeConfig, TeacherConfig, precompute
from schemas import Cache
from schemas.policies import parse_keep
from trainer.batches.collate import Collation
from trainer.stream.order import Order, Side, read_windows

ROOT = Path(__file__).resolve().parents[1]
POLICIES = ("threshold:1/32", "top_p:0.99,k=64")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    if arguments.cache:
        compare(Cache.open(arguments.cache), arguments)
        return
    for policy in POLICIES:
        with tempfile.TemporaryDirectory() as folder:
            compare(make_cache(Path(folder, "cache"), policy), arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cache", help="default: made from examples/, under two policies")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--shuffle_row_groups", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    return parser.parse_args()


def make_cache(path: Path, policy: str) -> Cache:
    precompute(
        PrecomputeConfig(
            corpus=CorpusConfig(files=(str(ROOT / "examples/corpus.jsonl.zst"),)),
            teacher=TeacherConfig(path=str(ROOT / "examples/teacher"), task="causal-lm"),
            cache=str(path),
            keep=parse_keep(policy),
            max_length=128,
        )
    )
    return Cache.open(str(path))


def compare(cache: Cache, arguments: argparse.Namespace) -> None:
    side = Side(cache=cache, eval_fraction=0.0, is_eval=False)
    order = Order.of(
        side.counts(),
        batch_size=arguments.batch_size,
        row_groups=arguments.shuffle_row_groups,
        seed=0,
        shuffled=True,
    )
    collation = Collation(student_vocab=cache.spec.vocab_size, pad_id=0)
    pairs = [
        (seconds(lambda: stream(side, order, collation)), seconds(lambda: decode(cache)))
        for _ in range(arguments.turns + 1)
    ][1:]
    positions = cache.totals.positions
    each = [statistics.median(pair[i] for pair in pairs) / positions * 1e9 for i in (0, 1)]
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{cache.spec.keep}: {positions:,} positions, {cache.totals.entries / positions:.1f} entries each")
    print(f"  stream {each[0]:.0f} ns a position, decode {each[1]:.0f} ns")
    print(f"  stream / decode   {ratio:.2f}, the median of {len(pairs)} pairs   (aim: at most 1.3)")


def seconds(work: Callable[[], int]) -> float:
    """Processor time."""
    start = time.process_time()
    work()
    return time.process_time() - start


def decode(cache: Cache) -> int:
    return sum(rows.num_positions for rows in cache.read_all())


def stream(side: Side, order: Order, collation: Collation) -> int:
    positions = 0
    for window in itertools.islice(read_windows(side, order, 0, 0), order.num_windows):
        cuts = order.batches(0, window.number, window.rows.lengths)
        positions += sum(len(batch.row) for batch in collation.each(window.rows, cuts))
    return positions


if __name__ == "__main__":
    main()
