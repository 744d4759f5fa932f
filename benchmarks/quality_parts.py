"""What `quality.py` trains on and measures by: part of the documents, a teacher at every step, the held-out text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor

from schemas import Cache
from schemas.identity import document_hash, is_held_out
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.evaluation.held_out import HeldOut
from trainer.losses.fused import CHUNK_ELEMENTS, chunks, fused_loss
from trainer.models.heads import Head
from trainer.stream.side import Side, held_out
from trainer.students.student import Student

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples/corpus.jsonl.zst"
HELD_OUT = 0.05
"""The share of documents that neither the teacher nor a student has seen."""
CONFIDENCE_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Part(Side):
    """Of the documents that are not held out, those whose hash is below a bound."""

    high: float

    def _chosen(self, rows: Rows) -> Array:
        hashes = rows.array("document_hash")
        chosen: Array = held_out(hashes, self.high) & ~held_out(hashes, self.eval_fraction)
        return chosen

    @property
    def num_documents(self) -> int:
        groups = range(len(self.cache.row_groups))
        return len({h.tobytes() for g in groups for h in self.read(g).array("document_hash")})


class Online:
    """KL from the whole distribution of a teacher that is asked at every step; in chunks, as from a cache."""

    def __init__(self, student: Student, teacher: Student) -> None:
        self._student, self._teacher = student.model, teacher.model

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            theirs = positions_of(self._teacher, batch)
        head = Head.of(self._teacher)

        def terms(logits: Tensor, first: int, last: int) -> Tensor:
            with torch.no_grad():
                teacher = head.logits(theirs[first:last]).log_softmax(-1)
            kl = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="sum", log_target=True)
            return kl[None]

        ours = positions_of(self._student, batch)
        return {"loss": fused_loss(ours, Head.of(self._student), terms, torch.ones(1)).loss / len(ours)}


class Test:
    """The held-out documents, with what the teacher says of them."""

    def __init__(self, cache: Cache, teacher: Student) -> None:
        held = HeldOut(cache=cache, eval_fraction=HELD_OUT, batch_size=16)
        collation = Collation(student_vocab=teacher.vocab_size, pad_id=teacher.pad_id)
        self._head = Head.of(teacher.model)
        with torch.no_grad():
            self._batches = [(b, positions_of(teacher.model, b)) for b in held.batches(collation)]
        self.positions = sum(len(states) for _, states in self._batches)
        self.teacher_loss = self.measure(teacher)["loss_nats"]

    @torch.no_grad()
    def measure(self, student: Student) -> dict[str, float]:
        """Cross entropy and KL in nats, agreement of first ids, and the expected calibration error."""
        student.model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        bins = torch.zeros(3, CONFIDENCE_BINS, dtype=torch.float64)
        for logits, teacher, gold in self._logprobs(student):
            confidence, best = logits.exp().max(-1)
            sums[0] -= logits.gather(-1, gold[:, None]).double().sum()
            sums[1] += (teacher.exp() * (teacher - logits)).double().sum()
            sums[2] += (best == teacher.argmax(-1)).sum()
            place = (confidence * CONFIDENCE_BINS).long().clamp_max(CONFIDENCE_BINS - 1)
            for number, values in enumerate((torch.ones(len(gold)), confidence, (best == gold).double())):
                bins[number].index_add_(0, place, values.double())
        loss, kl, agreement = (sums / self.positions).tolist()
        error = (bins[1] - bins[2]).abs().sum().item() / self.positions
        return {"loss_nats": loss, "kl_nats": kl, "agreement": agreement, "calibration_error": error}

    def _logprobs(self, student: Student) -> Iterator[Sequence[Tensor]]:
        head = Head.of(student.model)
        for batch, theirs in self._batches:
            ours = positions_of(student.model, batch)
            for first, last in chunks(len(ours), len(head.weight), CHUNK_ELEMENTS):
                logits = head.logits(ours[first:last]).log_softmax(-1)
                teacher = self._head.logits(theirs[first:last]).log_softmax(-1)
                yield logits, teacher, batch.targets.gold[first:last]


def positions_of(model: Any, batch: Batch) -> Tensor:
    """The last hidden state at each position, `[N, H]`."""
    hidden = model.base_model(**batch.model_inputs, use_cache=False).last_hidden_state
    return hidden[batch.row, batch.token]


def documents_below(bound: float) -> Iterator[str]:
    """The lines of the corpus that a run sees in training or in the end."""
    with zstandard.open(CORPUS, "rt", encoding="utf-8") as lines:
        for line in lines:
            if is_held_out(document_hash({"text": json.loads(line)["text"]}), bound):
                yield line
