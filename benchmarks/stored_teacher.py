"""A teacher whose answers arrive at once: a real one, opened and checked as ever, whose forward then gives stored
logits.

The stored logits fall as a power of their rank, another power at each position: the distribution is then as peaked, or
as flat, as a language model's (2.5 to 3 nats in the mean). They stand in a pool of a few hundred positions and are
copied out of it, for selection uses logits as working memory; the copy is charged to the forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from clock import Clock

from pipelines.keep.select import Selected, select
from pipelines.teacher.model import Answer, Batch, Teacher

_POOL_BYTES = 2**26
WIDTH = 8
"""Of the model that stands behind: its own checks at load are to take no time."""
FEATURES = 384


def make_teacher(folder: Path, tokenizer: str, *, vocab_size: int | None, classes: int | None) -> None:
    """A model folder with a real tokenizer: Llama's code for a vocabulary, BERT's for classes."""
    own = transformers.AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    if classes is None:
        config: Any = transformers.LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=512,
            eos_token_id=0,
            pad_token_id=1,
        )
        model: Any = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.BertConfig(
            vocab_size=len(own),
            hidden_size=FEATURES,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=512,
            num_labels=classes,
            pad_token_id=1,
        )
        model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(folder)
    own.save_pretrained(folder)


def pool_of(width: int, seed: int = 0) -> torch.Tensor:
    """Logits of a few hundred positions."""
    random = torch.Generator().manual_seed(seed)
    rows = max(16, min(512, _POOL_BYTES // (4 * width)))
    power = 1.2 + 1.3 * torch.rand(rows, 1, generator=random)
    falling = -power * torch.arange(1, width + 1).log()
    order = torch.rand(rows, width, generator=random).argsort(dim=1)
    return falling.gather(1, order) + 3 * torch.rand(rows, 1, generator=random)


class StoredHead:
    """Gives the pool's rows, one after the other and from the first again."""

    def __init__(self, clock: Clock, width: int) -> None:
        self._clock, self._pool, self._at = clock, pool_of(width), 0

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        with self._clock.part("forward"):
            found = torch.empty(len(hidden), self._pool.shape[1]) if out is None else out
            done = 0
            while done < len(found):
                size = min(len(found) - done, len(self._pool) - self._at)
                found[done : done + size] = self._pool[self._at : self._at + size]
                done, self._at = done + size, (self._at + size) % len(self._pool)
        return found


def with_stored_answers(teacher: Teacher, clock: Clock) -> Teacher:
    """The same teacher; its forward is stored."""
    if teacher.head is not None:
        states = torch.zeros(0, WIDTH)

        def body(input_ids: torch.Tensor, **_: Any) -> Any:
            nonlocal states
            if states.numel() < input_ids.numel() * WIDTH:
                states = torch.zeros(input_ids.numel(), WIDTH)
            rows, tokens = input_ids.shape
            return SimpleNamespace(last_hidden_state=states[: rows * tokens].view(rows, tokens, WIDTH))

        head: Any = StoredHead(clock, teacher.spec.vocab_size)
        return replace(teacher, head=head, body=clock.timed(body, "forward"), takes=body)
    pool = pool_of(teacher.spec.vocab_size)
    hidden = torch.randn(2**14, FEATURES)

    def classified(input_ids: torch.Tensor, **_: Any) -> Any:
        rows, tokens = input_ids.shape
        states = hidden[: rows * tokens].view(rows, tokens, FEATURES)
        logits = pool.repeat(-(-rows // len(pool)), 1)[:rows]
        return SimpleNamespace(logits=logits, hidden_states=[states] * (teacher.num_layers + 2))

    return replace(teacher, body=clock.timed(classified, "forward"), takes=classified)


class Accelerator:
    """A teacher that takes no core: its answers, what is kept of them among these, arrive at a given rate."""

    def __init__(self, tokens_per_second: int) -> None:
        self._rate, self._busy = tokens_per_second, 0.0
        self._first = self._last = 0.0

    def of(self, teacher: Teacher) -> Any:
        """The same teacher, asked in this way."""
        pool, spec = pool_of(teacher.spec.vocab_size), teacher.spec
        uniforms = torch.linspace(0, 1, len(pool) + 1, dtype=torch.float64)[:-1, None]
        kept = select(pool, torch.zeros(len(pool), dtype=torch.int64), spec.keep, spec.temperatures, uniforms)
        return _Paced(teacher, lambda batch: self._answer(batch, kept))

    @property
    def share(self) -> float:
        """How much of the time from the first batch to the last one's answer it was busy."""
        return self._busy / (self._last - self._first)

    def _answer(self, batch: Batch, kept: Selected) -> Answer:
        started = time.monotonic()
        self._first = self._first or started
        places = torch.arange(len(batch.position_rows)) % len(kept.ids)
        finite = torch.ones(len(batch.input_ids), dtype=torch.bool)
        answer = Answer(Selected(*(part[places] for part in kept)), None, (), finite)
        needs = int(batch.attention_mask.sum()) / self._rate
        time.sleep(max(0.0, started + needs - time.monotonic()))
        self._busy, self._last = self._busy + needs, time.monotonic()
        return answer


class _Paced:
    """A teacher but for its answers."""

    def __init__(self, teacher: Teacher, answer: Callable[[Batch], Answer]) -> None:
        self._teacher, self.answer = teacher, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)


def with_timed_forward(teacher: Teacher, clock: Clock) -> Teacher:
    """The same teacher; its own forward and its head's product are charged to the forward."""
    if teacher.head is not None:
        own = teacher.head

        class TimedHead:
            def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
                with clock.part("forward"):
                    return own.logits(hidden, out)

        teacher = replace(teacher, head=TimedHead())  # type: ignore[arg-type]
    return replace(teacher, body=clock.timed(teacher.body, "forward"))
