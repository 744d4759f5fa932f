"""What a teacher of another tokenizer says of a student's M predicted tokens: of C chunks, each of whole tokens of
both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from schemas.rows.ragged import Array
from trainer.losses.targets import SparseTargets

NO_CHUNK = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class HostChunks:
    """Where chunks and their entries begin, on the CPU: for cutting without waiting for a GPU."""

    begins: Array
    """`[C]`: the first of the M tokens in each."""
    ends: Array
    entries: Array
    """`[C + 1]`: each chunk's first entry."""
    pairs: Array
    """`[E + 1]`: each entry's first pair."""

    def cuts(self, num_tokens: int) -> Array:
        """The tokens, and the end, at which no chunk is cut."""
        inside = np.zeros(num_tokens + 2, np.int64)
        np.add.at(inside, self.begins + 1, 1)
        np.add.at(inside, self.ends, -1)
        found: Array = np.flatnonzero(np.cumsum(inside)[: num_tokens + 1] == 0)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignedTargets:
    """A student's own next tokens, and the teacher's chunks of them."""

    gold: Int64[Tensor, " M"]
    chunk: Int64[Tensor, " M"]
    """Which chunk each token is of, ascending; `NO_CHUNK` of none."""
    begins: Int64[Tensor, " C"]
    """Which of the M is each chunk's first: what is predicted there begins where the teacher's `starts` do."""
    teacher: Float[Tensor, " C"]
    """The teacher's log-probability of each chunk in nats, a sum over its own tokens; NaN where no loss asks."""
    num_bytes: Int64[Tensor, " C"]
    ends: Int64[Tensor, " C"]
    """Which of the M comes behind each chunk."""
    word_start: Float[Tensor, " C"]
    """The teacher's log-probability in nats that behind each chunk a token comes which begins a word; NaN where no
    loss asks, the cache does not say it, or not both predict a token there."""
    words: Int64[Tensor, " W"]
    """The student's ids that begin a word; none where no loss asks."""
    starts: SparseTargets
    """The teacher's own distribution at each chunk's begin; without entries where no loss asks."""
    pair_entry: Int64[Tensor, " P"]
    """Pairs of an entry and a student's id that agrees with it: the entry,"""
    pair_id: Int64[Tensor, " P"]
    """and the id."""
    host: HostChunks

    def part(self, first: int, last: int) -> AlignedTargets:
        """Of the tokens `first` to `last`, between which whole chunks lie."""
        host = self.host
        low, high = (int(place) for place in np.searchsorted(host.begins, [first, last]))
        entries = slice(int(host.entries[low]), int(host.entries[high]))
        pairs = slice(int(host.pairs[entries.start]), int(host.pairs[entries.stop]))
        chunk = self.chunk[first:last]
        return AlignedTargets(
            gold=self.gold[first:last],
            chunk=torch.where(chunk == NO_CHUNK, NO_CHUNK, chunk - low),
            begins=self.begins[low:high] - first,
            teacher=self.teacher[low:high],
            num_bytes=self.num_bytes[low:high],
            ends=self.ends[low:high] - first,
            word_start=self.word_start[low:high],
            words=self.words,
            starts=self.starts.chunk(low, high, entries),
            pair_entry=self.pair_entry[pairs] - entries.start,
            pair_id=self.pair_id[pairs],
            host=HostChunks(
                begins=host.begins[low:high] - first,
                ends=host.ends[low:high] - first,
                entries=host.entries[low : high + 1] - entries.start,
                pairs=host.pairs[entries.start : entries.stop + 1] - pairs.start,
            ),
        )


class AlignedScores:
    """A student's logits `[M, V]` of its own tokens, of which all terms of a part take theirs."""

    def __init__(self, logits: Float[Tensor, "M1 V"], targets: AlignedTargets) -> None:
        """`logits`: of the M tokens, and of the one behind them where a chunk's `word_start` is asked for there."""
        self._seen, self.targets = logits, targets
        self.logits = logits = logits[: len(targets.gold)]
        self.logsumexp = logits.logsumexp(-1)
        self.gold = logits.gather(-1, targets.gold[:, None])[:, 0] - self.logsumexp
        """Log-probability of each token in nats, `[M]`."""

    @property
    def chunks(self) -> Float[Tensor, " C"]:
        """Of each chunk: the sum over its tokens."""
        number = len(self.targets.begins)
        slot = torch.where(self.targets.chunk == NO_CHUNK, number, self.targets.chunk)
        return self.gold.new_zeros(number + 1).index_add(0, slot, self.gold)[:number]

    def word_starts(self, chunks: Bool[Tensor, " C"]) -> Float[Tensor, " c"]:
        """The student's log-probability that behind each of some chunks a token comes which begins a word."""
        logits = self._seen[self.targets.ends[chunks]]
        return logits.index_select(1, self.targets.words).logsumexp(-1) - logits.logsumexp(-1)
