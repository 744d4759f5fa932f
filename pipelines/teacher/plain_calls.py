"""The truth about a teacher: texts of random ids, and what the model says of one when anybody calls it.

A text is alone, not padded, and of a length that may matter: positions end, windows of attention slide and rotary
frequencies change where a config says so.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines.tasks.tasks import TEACHER_TASKS
from pipelines.teacher.calls import accepted, named
from pipelines.teacher.config_shapes import text_config
from pipelines.teacher.model import Teacher, pooled
from schemas.errors import TeacherError

SHORT, MIDDLE = (1, 2, 9), 12
_LONG, _NAMED = 251, 1021
"""Tokens of texts; the longest is as long as `_NAMED` where the config names a length that it could pass. No block or
chunk is so long: a model that pads by itself does."""
PARTS = (7, 2, 1)
"""Texts as long as these parts of the longest: some blocks of it, where an attention goes by blocks."""
POSITIONS = 64
"""The last positions of a text that are compared."""
_POOL = 24
"""Distinct ids of one draw of texts."""
_LENGTHS = ("window", "block", "chunk", "original_max_position")
"""Words in the names of lengths that change what a model does with longer texts."""

Said = tuple[torch.Tensor, tuple[torch.Tensor, ...]]


class Asked(NamedTuple):
    """One text; or a source with its target behind, which ends in a token that all targets end in."""

    ids: list[int]
    source: int = 0
    """How many of these are the source's, where the task has sources."""

    @property
    def said(self) -> list[int]:
        """What scores are of."""
        return self.ids[self.source :]

    @property
    def begun(self) -> list[int]:
        """All that may go on: mBART's decoder begins with its target's last token."""
        return self.ids[:-1] if self.source else self.ids


class Text(NamedTuple):
    """One text, and what the model says of it alone, fresh: `[n, V]` of its last positions, and its features."""

    asked: Asked
    truth: Said

    @property
    def ids(self) -> list[int]:
        return self.asked.ids


@torch.inference_mode()
def plain(teacher: Teacher, asked: Asked) -> tuple[Said, int]:
    """What the model says of one text when it is called as anybody calls it; and the last index of its states.

    Raises:
        TeacherError: it gives no scores of the spec's width, or not the features that the spec declares.
    """
    spec, model, ids = teacher.spec, teacher.model, asked.said
    given = {"input_ids": torch.tensor([asked.ids[: asked.source] or ids], device=teacher.entry)}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    if spec.kind.has_source:
        given["labels"] = torch.tensor([ids], device=teacher.entry)
    options: dict[str, Any] = {"output_hidden_states": True} if spec.features else {}
    if spec.has_token_type_ids:
        given["token_type_ids"] = torch.zeros_like(given["input_ids"])
    by_token = spec.kind.predicts_tokens
    if len(ids) > POSITIONS and teacher.head is not None:
        options |= named(model.forward, logits_to_keep=POSITIONS)
    output = model(**accepted(model.forward, **given, **options))
    if not spec.kind.has_positions:
        features, layers = _features(teacher, output, len(ids))
        return (torch.zeros(0, 0, device=teacher.device), features), layers
    logits = None
    with contextlib.suppress(AttributeError, TypeError):
        logits = TEACHER_TASKS[spec.task].scores(output)
    shape = (1, -1, spec.vocab_size) if by_token else (1, spec.vocab_size)
    if spec.kind.classes_are_tokens:
        shape = (1, spec.kind.text_positions, len(ids))
    if not isinstance(logits, torch.Tensor) or not _fits(logits, shape):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(output).__name__
        raise TeacherError(
            f"{type(model).__name__} gives no scores as wide as its config says", expected=shape, got=got
        )
    scores = logits[0, -POSITIONS:] if by_token else logits.flatten(0, -2)
    features, layers = _features(teacher, output, len(ids))
    return (scores.float().to(teacher.device).clone(), features), layers


def _features(teacher: Teacher, output: Any, length: int) -> tuple[tuple[torch.Tensor, ...], int]:
    spec, name = teacher.spec, type(teacher.model).__name__
    if not spec.features:
        return (), 0
    states = getattr(output, "hidden_states", None)
    if states is None:
        raise TeacherError(f"{name} gives no hidden states", do="Leave --features out")
    last = getattr(output, "last_hidden_state", None)
    states = states if last is None else (*states[:-1], last)  # some models' list ends before their last norm
    mask, task = torch.ones(1, length, dtype=torch.int64), TEACHER_TASKS[spec.task]
    for feature in spec.features:
        got = tuple(states[feature.layer].shape) if feature.layer < len(states) else f"{len(states)} layers"
        width = task.finished(torch.zeros(1, got[-1]), spec).shape[-1] if isinstance(got[-1], int) else 0
        if (*got[:-1], width) != (1, length, feature.width):
            raise TeacherError(
                f"{name} has no states of every token at layer {feature.layer}",
                expected=(1, length, feature.width),
                got=got,
                do=f"Ask for another layer than {feature.name}, or leave --features out",
            )
    found = (task.finished(pooled(states[f.layer], mask, f.pooling), spec) for f in spec.features)
    return tuple(feature.to(teacher.device) for feature in found), len(states) - 1


def _fits(logits: torch.Tensor, shape: tuple[int, ...]) -> bool:
    return logits.ndim == len(shape) and all(w in (-1, n) for n, w in zip(logits.shape, shape, strict=True))


def random_texts(teacher: Teacher, tokenizer: Any, *, seed: int) -> list[Asked]:
    """Texts of a few lengths between a tokenizer's special tokens, some of one length that batches share, one of which
    holds the padding as if it were text; the last is short."""
    spec, random = teacher.spec, np.random.default_rng(seed)
    before, after = special_tokens(tokenizer, pair=spec.kind.needs_pairs)
    known = sorted(set(range(min(teacher.embedded, len(tokenizer)))) - set(tokenizer.all_special_ids))
    pool = random.permutation(known or range(teacher.embedded))[:_POOL]
    room = max(1, spec.max_length - len(before) - len(after) - spec.kind.has_source)
    long = min(room, _longest(teacher))
    middle = random.choice(pool, min(room, MIDDLE)).tolist()
    lengths = (*SHORT, *(long // part for part in PARTS))
    bodies = [random.choice(pool, max(1, min(room, length))).tolist() for length in lengths]
    bodies += [middle, middle[: SHORT[-1]]]
    padded = random.choice(pool, min(room, SHORT[-1])).tolist()
    padded[len(padded) // 2] = teacher.pad_id
    bodies.append(padded)
    if spec.kind.has_source:
        return _with_sources(bodies, before, after, end=(after or pool.tolist())[-1])
    behind = [] if spec.kind.precedes_tokens else after  # later tokens change nothing of the earlier ones
    return [Asked([*before, *body, *behind]) for body in bodies]


def _with_sources(bodies: list[list[int]], before: list[int], after: list[int], end: int) -> list[Asked]:
    """The bodies as targets, of sources that are bodies too: long ones of short targets and short ones of long; the
    same of that which goes on where another ends; and of that with the padding itself."""
    short, long, (middle, _, padded) = bodies[:3], bodies[3:6], bodies[6:]
    sources = [*long, *short, middle, middle, padded]
    asked = zip(([*before, *source, *after] for source in sources), bodies, strict=True)
    return [Asked([*source, *body, end], len(source)) for source, body in asked]


def special_tokens(tokenizer: Any, *, pair: bool = False) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and after a text; or before and after a pair's second one, the first with it."""
    encoded = tokenizer("a", "a" if pair else None, return_special_tokens_mask=True, verbose=False)
    ids, mask = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    own = [text == 1 for text in encoded.sequence_ids()] if pair else [not special for special in mask]
    inner = [place for place, is_own in enumerate(own) if is_own] or [len(ids)]
    return ids[: inner[0]], ids[inner[-1] + 1 :]


def _longest(teacher: Teacher) -> int:
    """How long a text must be for what changes with length to show."""
    config = text_config(teacher.model.config)
    original = original_length(config)
    if original is not None and original < teacher.spec.max_length:
        return 2 * original + 1
    named = [value for name, value in config.to_dict().items() if any(word in name for word in _LENGTHS)]
    lengths = [n for value in named for n in (value if isinstance(value, list) else [value])]
    return _NAMED if any(isinstance(n, int) and 0 < n < teacher.spec.max_length for n in lengths) else _LONG


def original_length(config: Any) -> int | None:
    """The length beyond which a model's rotary frequencies change with the text's own; None: they never do."""
    text = text_config(config)
    ropes = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    found = []
    for rope in (ropes, *(part for part in ropes.values() if isinstance(part, dict))):
        kind = rope.get("rope_type", rope.get("type"))
        if kind in ("dynamic", "longrope"):
            own = rope.get("original_max_position_embeddings")
            length = own or getattr(text, "original_max_position_embeddings", None)
            length = length or getattr(text, "max_position_embeddings", None)
            found += [length] if length else []
    return min(found, default=None)
