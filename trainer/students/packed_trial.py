"""Whether a student keeps apart texts that stand in one row, and what it must be told for it: found by trying it.

No list of classes is whole: recurrent models carry their state over, convolutions look back, ALiBi and some tables of
positions count rows. So a few texts are read apart and packed, in float32, by the student itself; what answers them
otherwise is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.errors import StudentError
from schemas.task import Task
from trainer.batches.packing import Layout, PackedMask, Packing
from trainer.models.heads import Head, Run
from trainer.models.shrink import plain_ids
from trainer.students.trial import differ

_TEXTS, _LONG = (5, 17, 3, 9, 2), 1
_ROWS = ((0, 1), (2, 3, 4))
"""Five texts in two rows: one long one behind another, and three with padding behind them."""
_AWAKE = 0.02
"""Weights that begin at zero, as gates and outputs of some models do, would hide what a text hears of its neighbour."""
_HEARD = 2**-18
"""Largest difference that another neighbour makes: float32 rounds to 2^-24."""
_WINDOW = re.compile(r"window|chunk|block_size|local_attention")
_MOST_WINDOW = 2**11
"""Longest window that a text is tried beyond: eager attention holds its square for each head."""


@torch.no_grad()
def find_packing(model: Any, *, task: Task, run: Run, max_length: int) -> Packing:
    """How this student is told of several texts in a row.

    Args:
        model: the student, in float32.
        task: what it is to learn, a task that predicts tokens.
        run: how the task runs it.
        max_length: tokens of the longest text that it must take, and of the longest row if it can be.

    Raises:
        StudentError: naming its class and attention, if it keeps no texts apart in any way that is known.
    """
    training = model.training
    model.eval()
    try:
        with _awake(model):
            return _found(_Asked(model, run), _candidates(model, task, max_length))
    finally:
        model.train(training)


def check_packs(task: Task) -> None:
    """Whether a task's students can be packed.

    Raises:
        StudentError: it asks for one answer a row, or for what the trial does not look at.
    """
    if not task.has_vocabulary or task.has_source:
        why = "are no language models" if task.predicts_tokens else "give one answer a row"
        why = "read two texts" if task.has_source else why
        raise StudentError(
            f"--batching pack is not for {task.name}: its students {why}",
            do="Leave it at bucket",
        )


class _Asked(NamedTuple):
    """A student that texts are given to."""

    model: Any
    run: Run

    def alone(self, text: Tensor) -> Tensor:
        """The logits of one text, `[S, V]`."""
        return self._logits(self._states({"input_ids": text, "attention_mask": torch.ones_like(text)}))[0]

    def packed(self, packing: Packing, texts: list[Tensor]) -> list[Tensor] | None:
        """Each text's logits when they stand in two rows; None where the class does not take such inputs."""
        layout = Layout.of_rows(np.array([text.shape[1] for text in texts]), _ROWS)
        values = torch.cat(texts, 1)[0].cpu().numpy()
        packed = packing.packed(layout, values)
        try:
            states = self._states({"input_ids": layout.filled(values, packing.filler), **packed.model_inputs})
        except Exception:  # noqa: BLE001  (whatever a model's code raises of inputs that it does not know)
            return None
        logits = packed.apart(self._logits(states))
        return [each[: text.shape[1]] for each, text in zip(logits, texts, strict=True)]

    def _states(self, inputs: dict[str, Tensor]) -> Tensor:
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        states = self.run(self.model, inputs, (), -1).head_inputs
        assert states is not None
        return states

    def _logits(self, states: Tensor) -> Tensor:
        found = Head.of(self.model).logits(states.flatten(0, 1)).float().cpu()
        return found.view(*states.shape[:2], -1)


def _found(student: _Asked, candidates: list[Packing]) -> Packing:
    texts = _texts(student.model, candidates[0].max_length)
    alone = [student.alone(text) for text in texts]
    if not _listens(student, texts[_LONG], alone[_LONG]):
        why = "its answers depend on no other token, so it cannot be known to keep texts apart"
        raise _refused(student.model, why)
    for packing in candidates:
        together = student.packed(packing, texts)
        if together is None or any(map(differ, together, alone)):
            continue
        if not any(_hears(student, packing, texts, together, changed=changed) for changed in (0, 1)):
            return packing
    raise _refused(student.model, "it answers a text otherwise when another stands in its row")


def _candidates(model: Any, task: Task, max_length: int) -> list[Packing]:
    """The ways to tell it, the fastest first."""
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    masks: list[tuple[PackedMask, int | None]] = [("own", None), ("boolean", None), ("additive", None)]
    if padding is not None:
        masks += [("boolean", padding), ("additive", padding)]
    if any(_MOST_WINDOW < window < max_length for window in _windows(model)):
        masks = masks[:1]  # a mask that is made here knows no window
    whole = Packing(max_length=max_length, is_causal=task.implies_places, filler=1 if padding == 0 else 0)
    return [replace(whole, mask=mask, uncounted=uncounted) for mask, uncounted in masks]


def _windows(model: Any) -> list[int]:
    config = model.config.get_text_config().to_dict()
    return [value for name, value in config.items() if _WINDOW.search(name) and type(value) is int]


def _texts(model: Any, max_length: int) -> list[Tensor]:
    """Texts that begin and go on in different ways; the long one goes beyond the windows that the config names."""
    longest = max(_TEXTS[_LONG], *(window + 8 for window in _windows(model) if window <= _MOST_WINDOW), 0)
    lengths = [min(longest if place == _LONG else length, max_length) for place, length in enumerate(_TEXTS)]
    ids = plain_ids(model, sum(lengths))
    return list(torch.split(ids, lengths, dim=1))


def _listens(student: _Asked, text: Tensor, alone: Tensor) -> bool:
    """Whether answers depend on other tokens than their own: every second one is another here."""
    other = text.clone()
    other[:, ::2] = text.flip(1)[:, : other[:, ::2].shape[1]]
    return differ(student.alone(other)[1::2], alone[1::2])


def _hears(
    student: _Asked, packing: Packing, texts: list[Tensor], before: list[Tensor], *, changed: int
) -> bool:
    """Whether texts answer otherwise when every second one is another.

    Fresh weights may make so little of a neighbour that it looks like rounding, and training makes much of it. Here the
    shapes are the same, so hardly anything is rounded otherwise.
    """
    others = [text.roll(1, 1) if place % 2 == changed else text for place, text in enumerate(texts)]
    found = student.packed(packing, others)
    assert found is not None
    pairs = list(zip(found, before, strict=True))
    return any(differ(ours, alone, _HEARD) for ours, alone in pairs[1 - changed :: 2])


@contextmanager
def _awake(model: Any) -> Iterator[None]:
    """Gives small numbers to weights that are all zero, and takes them back."""
    asleep = [weight for weight in model.parameters() if not weight.any()]
    before = [weight.clone() for weight in asleep]
    numbers = torch.Generator().manual_seed(0)
    for weight in asleep:
        weight.copy_(torch.randn(weight.shape, generator=numbers) * _AWAKE)
    try:
        yield
    finally:
        for weight, zeros in zip(asleep, before, strict=True):
            weight.copy_(zeros)


def _refused(model: Any, why: str) -> StudentError:
    return StudentError(
        f"{type(model).__name__} cannot be trained with --batching pack: {why}",
        got=f"attention {model.config._attn_implementation}",
        do="Leave --batching at bucket",
    )
