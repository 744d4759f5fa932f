"""What a step of the head and its losses costs, forward and backward: ratios against three references.

* **dense**: KL of whole distributions, teacher's and student's logits both in memory
* **ce**: cross entropy of whole logits, as `transformers` has it
* **top-k**: KL over kept entries without a tail, in chunks of whole logits, as axolotl has it

Hidden states `[N, H]` and a head `[V, H]` are drawn, and so are the kept entries: what a step costs does not depend on
their values. References run in the same process, in turns with ours, and cross entropy once a turn; the figure is the
median over turns of the ratio of processor times. Memory is what each takes at its peak beside its inputs, in a
process of its own, on Linux.

    python benchmarks/loss.py                                    # V = 4,096 and 49,152
    python benchmarks/loss.py --vocab 50000 128000 256000 --positions 512 --references
    python benchmarks/loss.py --vocab 128000 --positions 4096 --turns 0             # memory alone: gigabytes
    python benchmarks/loss.py --losses "kl" "kl ce jsd" --vocab 49152
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ratios import tell
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from trainer.losses.buffers import Buffers  # noqa: E402
from trainer.losses.fused import fused_loss  # noqa: E402
from trainer.losses.objective import position_losses  # noqa: E402
from trainer.losses.registry import LOSSES  # noqa: E402
from trainer.losses.targets import SparseTargets  # noqa: E402
from trainer.models.heads import Head, LogitTransform  # noqa: E402

MIXES = ("kl", "kl ce", "kl ce jsd", "rkl", "brier", "kl ce jsd dkd")
_CHUNK = 512
_LARGE, _HUGE, _MANY, _TIME_OF_LARGE = 49_000, 128_000, 4096, 0.9
"""Vocabularies and positions from which aims hold."""


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    if arguments.one is not None:
        name, vocab, drawn = arguments.one
        problem = Problem(int(vocab), arguments, drawn=drawn == "drawn")
        few = argparse.Namespace(**{**vars(arguments), "positions": 32})
        Problem(512, few, drawn=drawn == "drawn").step(name)  # the libraries' own pages are no step's
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
        before = resident("VmRSS")
        problem.step(name)
        print(resident("VmHWM") - before)
        return
    print(
        f"N = {arguments.positions}, H = {arguments.width}, K = {arguments.kept}, one thread, {arguments.turns} turns"
    )
    print("| V | entries | losses | time / ce | memory / ce | memory / dense |")
    print("|---|---|---|---|---|---|")
    told: list[tuple[str, float, float | None]] = []
    for vocab in arguments.vocab:
        of_ce, of_dense = (peak(name, vocab, "exact", arguments) for name in ("ce_whole", "dense"))
        rows = [
            (name, drawn)
            for name in (*arguments.references, *arguments.losses)
            for drawn in (("exact", "drawn") if name == "kl" else ("exact",))
        ]
        for (name, drawn), ratio in zip(rows, timed(rows, vocab, arguments), strict=True):
            memory = peak(name, vocab, drawn, arguments)
            print(
                f"| {vocab} | {drawn} | {name} | {ratio:.2f} | {memory / of_ce:.2f} | {memory / of_dense:.2f} |",
                flush=True,
            )
            is_huge = vocab >= _HUGE and arguments.positions >= _MANY
            told += aimed(
                f"V={vocab}, {drawn}, {name}",
                vocab,
                ratio,
                memory / of_ce,
                memory / of_dense if is_huge else None,
            )
    for line in told:
        tell(*line)


def aimed(
    name: str, vocab: int, ratio: float, of_ce: float, of_dense: float | None
) -> list[tuple[str, float, float | None]]:
    """A row's figures with the aims for ours; references have none."""
    is_ours = not name.endswith((", dense", ", top_k"))
    found = [("time / cross entropy's", ratio, _TIME_OF_LARGE if vocab >= _LARGE else 1.0)]
    found = [] if math.isnan(ratio) else found
    found.append(("memory / cross entropy's", of_ce, 0.25))
    found += [] if of_dense is None else [("memory / dense KL's", of_dense, 1 / 8)]
    return [(f"{name}: {what}", value, aim if is_ours else None) for what, value, aim in found]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--vocab", type=int, nargs="+", default=[4096, 49152])
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--kept", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--losses", nargs="+", default=list(MIXES), help="each a mix of losses, of weight 1")
    parser.add_argument("--references", nargs="*", default=["dense", "top_k"], help="beside cross entropy")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def resident(name: str) -> int:
    """KiB, as Linux counts them."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])


def timed(rows: Sequence[tuple[str, str]], vocab: int, arguments: argparse.Namespace) -> list[float]:
    """Of each row the median ratio of a step's time to that of cross entropy in the same turn; the first turn warms
    up. NaN of no turn."""
    if not arguments.turns:
        return [math.nan] * len(rows)
    exact = Problem(vocab, arguments, drawn=False)
    problems = {"exact": exact, "drawn": exact.as_drawn()}
    ratios: list[list[float]] = [[] for _ in rows]
    for turn in range(arguments.turns + 1):
        of_ce = step_seconds(problems["exact"], "ce_whole")
        for place, (name, drawn) in enumerate(rows):
            ratio = step_seconds(problems[drawn], name) / of_ce
            ratios[place] += [ratio] if turn else []
    return [statistics.median(found) for found in ratios]


def step_seconds(problem: Problem, name: str) -> float:
    """Of the processor."""
    started = time.process_time()
    problem.step(name)
    return time.process_time() - started


def peak(name: str, vocab: int, drawn: str, arguments: argparse.Namespace) -> int:
    """KiB that a step takes beside its inputs."""
    words = [sys.executable, __file__, "--one", name, str(vocab), drawn]
    for flag in ("positions", "width", "kept"):
        words += [f"--{flag}", str(getattr(arguments, flag))]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


class Problem:
    """Hidden states, a head, and what a teacher says, all drawn."""

    def __init__(self, vocab: int, arguments: argparse.Namespace, *, drawn: bool) -> None:
        made = torch.Generator().manual_seed(0)
        number, kept = arguments.positions, arguments.kept
        self._hidden = torch.randn(number, arguments.width, generator=made)
        self._head = torch.randn(vocab, arguments.width, generator=made) * 0.02
        self._gold = torch.randint(vocab, (number,), generator=made)
        stride = vocab // kept
        ids = torch.randint(stride, (number, kept), generator=made) + torch.arange(kept) * stride
        probs = torch.rand(number, kept, generator=made).softmax(-1) * 0.9
        self._kept, self._vocab = kept, vocab
        self.targets = SparseTargets(
            kept_ids=ids.flatten(),
            counts=torch.full((number,), kept),
            weights=probs.flatten(),
            logprobs=probs.flatten().log(),
            logits=probs.flatten().log(),
            tail=torch.zeros(number) if drawn else 1 - probs.sum(-1),
            negentropy=torch.zeros(number),
            gold=self._gold,
            drawn=drawn,
            gold_logprobs=torch.full((number,), -3.0),
            gold_softened=torch.full((number,), -3.0),
            entropy=torch.ones(number),
        )

    def as_drawn(self) -> Problem:
        """The same, its entries taken for drawn ones."""
        found = copy.copy(self)
        found.targets = replace(self.targets, tail=torch.zeros_like(self.targets.tail), drawn=True)
        return found

    def step(self, name: str) -> None:
        """Forward and backward of one reference, or of ours with such losses."""
        hidden, head = (tensor.detach().requires_grad_() for tensor in (self._hidden, self._head))
        references: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "ce_whole": lambda h, w: F.cross_entropy(h @ w.t(), self._gold),
            "dense": self._dense,
            "top_k": self._top_k,
        }
        run = references.get(name) or (lambda h, w: self._ours(h, w, name.split()))
        run(hidden, head).backward()

    def _dense(self, hidden: Tensor, head: Tensor) -> Tensor:
        teacher = torch.zeros(len(hidden), self._vocab).log_softmax(-1)
        ours = (hidden @ head.t()).log_softmax(-1)
        return F.kl_div(ours, teacher, reduction="batchmean", log_target=True)

    def _top_k(self, hidden: Tensor, head: Tensor) -> Tensor:
        logits, total = hidden @ head.t(), torch.zeros(())
        ids, p = (part.view(-1, self._kept) for part in (self.targets.ids, self.targets.weights))
        for first in range(0, len(hidden), _CHUNK):
            part = slice(first, first + _CHUNK)
            log_q = logits[part].gather(-1, ids[part]) - logits[part].logsumexp(-1, keepdim=True)
            total = total + (p[part] * (p[part].log() - log_q)).sum()
        return total / len(hidden)

    def _ours(self, hidden: Tensor, head: Tensor, names: Sequence[str]) -> Tensor:
        assert all(name in LOSSES for name in names), names
        buffers = Buffers()

        def terms(logits: Tensor, first: int, last: int) -> Any:
            part = self.targets.chunk(first, last, slice(first * self._kept, last * self._kept))
            found = position_losses(names, logits, part, temperature=1.0, score="softmax", buffers=buffers)
            return found.sum(-1)

        whole = Head(weight=head, bias=None, transform=LogitTransform())
        weights = torch.full((len(names),), 1 / len(hidden))
        return fused_loss(hidden, whole, terms, weights, single=True).loss


if __name__ == "__main__":
    main()
