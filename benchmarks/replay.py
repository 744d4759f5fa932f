"""An epoch of the stream alone, as ratios: to decoding the same rows, and to four peers that hold the same content.

* **stream**: runs read, shuffled, dealt and collated, as `teachonce train` has them before a step; targets made. In a
  first epoch, and of what later ones do not find in memory.
* **later**: the same where row groups stay in memory, as they do in a later epoch and an evaluation (`Held`).
* **decode**: `Cache.read` of the same row groups: fetched, checked by hash, parsed, every rule of the format looked at.
* **peers** (`--peers`): see `replay_worker.py`; each in an environment of its own, which is fetched once.

All take turns within one run, one thread each, by processor time of all threads a position; the first turn is not
counted, and a ratio is the median of the pairs' own. What a run reads ahead is not counted either. Then: what a
training step waits for, the first batch, padding, the shuffle and memory, by the functions of `replay_parts.py`.

    python benchmarks/replay.py
    python benchmarks/replay.py --peers
    python benchmarks/replay.py --cache CACHE --batch_size 32
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import replay_parts
import replay_peers
import torch
from ratios import tell

from pipelines import CorpusConfig, PrecomputeConfig, TeacherConfig, precompute
from schemas import Cache
from schemas.errors import CacheError
from schemas.policies import parse_keep
from trainer.batches.collate import Collation
from trainer.stream.held import Held
from trainer.stream.order import Order
from trainer.stream.runs import read_runs
from trainer.stream.side import Side
from trainer.training.flags import MEMORY_GB_DEFAULT

ROOT = Path(__file__).resolve().parents[1]
POLICIES = ("threshold:1/32", "top_p:0.99,k=64")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    if arguments.cache:
        compare(Cache.open(arguments.cache), arguments)
        return
    caches = [make_cache(arguments.folder, policy) for policy in POLICIES]
    for cache in caches:
        compare(cache, arguments)
    replay_parts.report_growth(caches[0], arguments.row_groups, arguments.batch_size)
    if arguments.peers:
        shape = (replay_parts.TIMES[-1], replay_parts.GROUPS * replay_parts.ROWS)
        shuffled = replay_peers.buffer_shuffled(arguments.folder, *shape)
        replay_parts.report_shuffle(f"datasets, buffer {replay_peers.BUFFER}", shuffled, arguments.batch_size)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cache", help="default: made from examples/, under two policies")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--row_groups", type=int, default=8, help="that are shuffled together")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--peers", action="store_true", help="fetch and measure them too (needs the network once)"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".bench", help="where caches and environments are made"
    )
    return parser.parse_args()


def make_cache(folder: Path, policy: str) -> Cache:
    """A policy's cache, made if it is not there."""
    path = folder / "caches" / policy.replace("/", "_").replace(":", "-").replace(",", "-")
    try:
        return Cache.open(path)
    except CacheError:
        print(f"precompute --keep {policy}", flush=True)
    precompute(
        PrecomputeConfig(
            corpus=CorpusConfig(files=(str(ROOT / "examples/corpus.jsonl.zst"),)),
            teacher=TeacherConfig(path=str(ROOT / "examples/teacher"), task="causal-lm"),
            cache=str(path),
            keep=parse_keep(policy),
            max_length=128,
            show_progress=False,
        )
    )
    return Cache.open(path)


def compare(cache: Cache, arguments: argparse.Namespace) -> None:
    side = Side(cache=cache, eval_fraction=0.0, is_eval=False)
    later = replace(side, held=Held(int(MEMORY_GB_DEFAULT * 1e9)))
    order = Order(counts=(side.counts(),), batch_size=arguments.batch_size, row_groups=arguments.row_groups)
    collation = Collation(student_vocab=cache.spec.vocab_size, pad_id=0)
    positions = cache.totals.positions
    print(f"{cache.spec.keep}: {positions:,} positions, {cache.totals.entries / positions:.1f} entries each")
    with tempfile.TemporaryDirectory() as place:
        peers = start_peers(cache, collation, Path(place), arguments) if arguments.peers else []
        works: dict[str, Callable[[], float]] = {
            "stream": lambda: seconds(lambda: stream(side, order, collation)),
            "later": lambda: seconds(lambda: stream(later, order, collation)),
            "decode": lambda: seconds(lambda: decode(cache)),
            **{peer.name: functools.partial(epoch_of, peer) for peer in peers},
        }
        turns = [[work() for work in works.values()] for _ in range(arguments.turns + 1)][1:]
        sizes = {"stream": cache.size_bytes, **{peer.name: peer.size_bytes for peer in peers}}
        report(str(cache.spec.keep), list(works), turns, positions, sizes)
        for peer in peers:
            peer.close()
    replay_parts.report_training(cache, order, arguments.batch_size)


def report(
    policy: str, names: Sequence[str], turns: list[list[float]], positions: int, sizes: dict[str, int]
) -> None:
    heads = ("ns a position", "stream / it", "later / it", "B a position")
    print(f"  {'':<12}{''.join(f'{head:>14}' for head in heads)}   {len(turns)} turns")
    for place, name in enumerate(names):
        taken = statistics.median(turn[place] for turn in turns) / positions * 1e9
        first, later = (statistics.median(turn[at] / turn[place] for turn in turns) for at in (0, 1))
        size = f"{sizes[name] / positions:.1f}" if name in sizes else ""
        print(f"  {name:<12}{taken:>14.0f}{first:>14.2f}{later:>14.2f}{size:>14}")
        if name not in ("stream", "later"):
            told = "decoding the same rows" if name == "decode" else name
            for epoch, ratio in (("stream", first), ("later epochs", later)):
                tell(f"{epoch} / {told}, {policy}", ratio, 1.3 if name == "decode" else 1.0)


def start_peers(
    cache: Cache, collation: Collation, folder: Path, arguments: argparse.Namespace
) -> list[replay_peers.Peer]:
    source = folder / "source.npz"
    replay_peers.write_source(cache, collation, source)
    names = replay_peers.PACKAGES
    return [replay_peers.Peer(name, source, folder, arguments.folder, arguments.batch_size) for name in names]


def epoch_of(peer: replay_peers.Peer) -> float:
    return float(peer.epoch()["seconds"])


def seconds(work: Callable[[], int]) -> float:
    """Processor time."""
    start = time.process_time()
    work()
    return time.process_time() - start


def decode(cache: Cache) -> int:
    return sum(rows.num_positions for rows in cache.read_all())


def stream(side: Side, order: Order, collation: Collation) -> int:
    runs = itertools.islice(read_runs([side], order, range(order.lanes), 0, 0), order.num_runs)
    return sum(len(batch.row) for run in runs for batch in collation.each(run.rows, run.steps))


if __name__ == "__main__":
    main()
