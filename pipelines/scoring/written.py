"""Prompts become examples: the teacher writes the answers, and its scores of them are asked for as of any text.

The forward over the whole text that follows costs what one token of writing costs to read the weights, and gives the
scores and features that every other cache has. Prompts of one length are written to together, to the same budget of
tokens; what does not fit is halved, and a prompt that does not fit alone is rejected alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.corpus.examples import Example
from pipelines.scoring.row_checks import Reject
from pipelines.teacher.batching import each_batch
from pipelines.teacher.budget import Budget
from pipelines.teacher.calls import is_out_of_memory
from pipelines.teacher.generate import continuations
from pipelines.teacher.model import Batching, Teacher
from pipelines.tolerances import TOO_LARGE
from schemas.rows.ragged import Array
from schemas.spec import Spec
from schemas.tasks import SOURCE_TOKENS


@dataclass(frozen=True)
class Writer:
    """A teacher that writes, and how much of it fits: what a batch of scoring has, and no more than went before."""

    teacher: Teacher
    budget: Budget
    own: Budget

    def answered(self, prompts: Sequence[Example]) -> tuple[list[Example], list[Reject]]:
        """Each prompt with its answer, in the order of the prompts; and those too large."""
        found, rejects = dict[bytes, Example](), list[Reject]()
        for members in self._batches(prompts):
            for example, answer in self._written(members):
                if answer is None:
                    rejects.append((example, TOO_LARGE))
                else:
                    found[example.id] = with_answer(example, answer, self.teacher.spec)
        return [found[example.id] for example in prompts if example.id in found], rejects

    def _batches(self, prompts: Sequence[Example]) -> Iterator[list[Example]]:
        """Of one length each; a text takes its prompt's and its answer's tokens, once a beam."""
        alone: Batching = "one text a batch"
        batching: Batching = alone if self.teacher.batching == alone else "batches of one length"
        sizes = [self._size([prompt]) for prompt in prompts]
        for batch in each_batch(
            sizes, lambda: min(self.budget.tokens, self.own.tokens), on_device=False, batching=batching
        ):
            yield [prompts[index] for index in batch]

    def _size(self, members: Sequence[Example]) -> int:
        how = self.teacher.spec.generation
        assert how is not None
        return sum((prompt.num_tokens + how.max_new_tokens) * how.num_beams for prompt in members)

    def _written(self, members: Sequence[Example]) -> Iterator[tuple[Example, Array | None]]:
        """What is written behind each; halved where memory does not suffice, None for one that is too large."""
        ids = np.stack([np.frombuffer(example.input_ids, np.int32) for example in members]).astype(np.int64)
        try:
            source = source_tokens(members[0], self.teacher.spec)
            answers = continuations(self.teacher, torch.from_numpy(ids), [one.id for one in members], source)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            answers = None
        if answers is not None:
            yield from zip(members, answers, strict=True)
            return
        if self.teacher.device.type == "cuda":
            torch.cuda.empty_cache()
        self.own.failed(self._size(members))
        if len(members) == 1:
            yield members[0], None
            return
        middle = len(members) // 2
        for half in (members[:middle], members[middle:]):
            yield from self._written(half)


def source_tokens(prompt: Example, spec: Spec) -> int | None:
    """How many of its tokens an encoder reads; None where there is none."""
    return prompt.columns[spec.kind.column_index(SOURCE_TOKENS)] if spec.kind.has_source else None


def with_answer(prompt: Example, answer: Array, spec: Spec) -> Example:
    """The example of a prompt and its answer; positions stand before each token of the answer (of a target: of all of
    it, with what it was begun with), or on every token."""
    size = source_tokens(prompt, spec) or prompt.num_tokens
    places = np.arange(size - 1, prompt.num_tokens + len(answer) - 1, dtype=np.int32)
    every = spec.supervise == "all" and spec.kind.implies_places
    return prompt._replace(
        input_ids=prompt.input_ids + answer.astype(np.int32).tobytes(),
        token_type_ids=None
        if prompt.token_type_ids is None
        else prompt.token_type_ids + bytes(4 * len(answer)),
        position_index=None if every else places.tobytes(),
    )
