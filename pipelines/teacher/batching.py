"""Batches of one unit: sorted by length, filled to a budget of padded tokens.

Sorted by length, padding stays within a few percent whatever the lengths; a budget of tokens, not of examples, keeps
every batch the same work. Longest first, so that a batch too large for the memory fails at once.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64

from pipelines.corpus.examples import Example
from pipelines.keep.select import num_uniforms
from pipelines.keep.uniforms import streams, uniforms
from pipelines.teacher.model import Batch, Batching
from schemas.decoder_inputs import IGNORED
from schemas.images import Pictures
from schemas.policies import Sampled
from schemas.rows.classes import class_mask
from schemas.rows.ragged import Array, Ragged, offsets_of, spans
from schemas.spec import Spec
from schemas.tasks import SOURCE_TOKENS, VIEW_INDEX

_PADDING, _BUSY_TOKENS = 0.04, 4096
"""Share of a batch that may be padding; a batch smaller than that may have more."""


def plan_batches(lengths: Sequence[int], batch_tokens: int, *, on_device: bool = False) -> list[list[int]]:
    """Indices of each batch. No batch has more than `batch_tokens` padded tokens, unless one example has."""
    return list(each_batch(lengths, lambda: batch_tokens, on_device=on_device))


def each_batch(
    lengths: Sequence[int],
    batch_tokens: Callable[[], int],
    *,
    on_device: bool,
    batching: Batching = "padded batches",
) -> Iterator[list[int]]:
    """The same one by one, each to the budget that stands when it is asked for, of texts that may share a batch.

    A batch ends before its budget where the next example would bring its padding above `_PADDING`: short texts in large
    batches would be padded by half. What it has then is enough for a device to be busy.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        budget, width = batch_tokens(), padded_width(lengths[order[start]], on_device=on_device)
        end, tokens, most = start + 1, lengths[order[start]], _most(lengths, order, start, batching)
        while end < most and (padded := width * (end + 1 - start)) <= budget:
            tokens += lengths[order[end]]
            if padded * (1 - _PADDING) > tokens and padded > min(budget // 4, _BUSY_TOKENS):
                break
            end += 1
        yield order[start:end]
        start = end


def _most(lengths: Sequence[int], order: Sequence[int], start: int, batching: Batching) -> int:
    """Where a batch that begins at `start` must end, for what its texts would do to each other."""
    if batching == "one text a batch":
        return start + 1
    if batching == "batches of one length":
        return bisect.bisect(order, -lengths[order[start]], lo=start, key=lambda place: -lengths[place])
    return len(order)


def padded_width(longest: int, *, on_device: bool) -> int:
    """Tokens that a batch's rows are padded to. An accelerator's kernels like multiples of 8; of a short row that would
    be a large part, so it gets a smaller multiple: it is never more than a row's 32nd part."""
    multiple = 8 if on_device else 1
    while multiple > 1 and longest < 32 * multiple:
        multiple //= 2
    return -(-longest // multiple) * multiple


def collate(
    examples: Sequence[Example],
    spec: Spec,
    *,
    pad_id: int,
    on_device: bool = False,
    pictures: Pictures | None = None,
) -> Batch:
    """Pads examples on the right to one width, or sources and targets each to its own, and lists their positions, with
    the random numbers of their draws."""
    ids = int_lists([example.input_ids for example in examples])
    counts, tokens = positions_of(examples)
    rows = np.repeat(np.arange(len(examples)), counts)
    types = int_lists([e.token_type_ids or b"" for e in examples]) if spec.has_token_type_ids else None
    labels, uniforms_ = _labels(examples, ids, rows, tokens, spec), _uniforms(examples, rows, tokens, spec)
    owners, target_ids = None, None
    if spec.kind.holds_texts:
        ends = np.append(ids.offsets[rows] + tokens, ids.offsets[-1])
        ids = replace(ids, offsets=ends)
        types = None if types is None else replace(types, offsets=ends)
        owners, rows, tokens = torch.from_numpy(rows), np.arange(len(rows)), np.zeros_like(tokens)
    if spec.kind.has_source:
        ids, targets = ids.split(sources_of(examples, spec))
        target_ids = _padded(targets, padded_width(int(targets.lengths.max()), on_device=on_device), IGNORED)
        tokens = tokens + 1 - ids.lengths[rows]
    width = padded_width(int(ids.lengths.max()), on_device=on_device)
    is_token = np.arange(width) < ids.lengths[:, None]
    return Batch(
        input_ids=_padded(ids, width, pad_id),
        attention_mask=torch.from_numpy(is_token.astype(np.int64)),
        token_type_ids=None if types is None else _padded(types, width, 0),
        position_rows=torch.from_numpy(rows),
        position_tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        uniforms=torch.from_numpy(uniforms_),
        owners=owners,
        classes=_classes(examples, spec),
        target_ids=target_ids,
        pixel_values=None if pictures is None else pixels_of(examples, spec, pictures),
    )


def pixels_of(examples: Sequence[Example], spec: Spec, pictures: Pictures) -> torch.Tensor:
    """Each example's image, float32 `[B, C, H, W]`."""
    views = _column(examples, spec, VIEW_INDEX.name).tolist()
    found = [pictures.pixels(e.image or b"", e.id, view) for e, view in zip(examples, views, strict=True)]
    return torch.from_numpy(np.stack(found))


def cost_of(example: Example, spec: Spec, pictures: Pictures | None = None) -> int:
    """Tokens of an example as a batch has them: of several texts in it, each padded to the longest; of an image, what
    it counts as."""
    if pictures is not None:
        return pictures.tokens
    if not spec.kind.holds_texts:
        return example.num_tokens
    return int(example.text_lengths.max()) * example.num_positions


def sources_of(examples: Sequence[Example], spec: Spec) -> Int64[np.ndarray, " B"]:
    """How many tokens of each example are its source's."""
    return _column(examples, spec, SOURCE_TOKENS)


def _column(examples: Sequence[Example], spec: Spec, name: str) -> Int64[np.ndarray, " B"]:
    place = spec.kind.column_index(name)
    return np.array([example.columns[place] for example in examples], np.int64)


def int_lists(parts: Sequence[bytes | None]) -> Ragged:
    """Lists of int32, one an example, from their bytes; null where there are none."""
    valid = np.array([part is not None for part in parts], np.bool_)
    given = [part or b"" for part in parts]
    lengths = np.array([len(part) for part in given], np.int64) // 4
    values = np.frombuffer(b"".join(given), np.int32)
    return Ragged(values=values, offsets=offsets_of(lengths), valid=None if valid.all() else valid)


def positions_of(examples: Sequence[Example]) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " N"]]:
    """How many positions each example has, and the tokens that they stand on."""
    given = int_lists([example.position_index for example in examples])
    if given.valid is None:
        return given.lengths, given.values.astype(np.int64)
    implied = np.maximum(np.array([example.num_tokens for example in examples]) - 1, 0)
    counts = np.where(given.valid, given.lengths, implied)
    tokens = spans(np.zeros_like(counts), counts, offsets_of(counts))
    tokens[np.repeat(given.valid, counts)] = given.values
    return counts, tokens


def _uniforms(examples: Sequence[Example], rows: Array, tokens: Array, spec: Spec) -> Array:
    """The random numbers of each position: a function of seed, example and token, in whatever batch it stands."""
    count = num_uniforms(spec.keep)
    if not count:
        return np.zeros((len(rows), 0))
    ids = np.frombuffer(b"".join(example.id for example in examples), np.uint8).reshape(len(examples), -1)
    if isinstance(spec.keep, Sampled):
        return streams(ids, rows, tokens, spec.sample_seed, count=count)
    return uniforms(ids, rows, tokens, spec.sample_seed)[:, None]


def _labels(examples: Sequence[Example], ids: Ragged, rows: Array, tokens: Array, spec: Spec) -> Array:
    """What is right at each position: the next token, the example's own gold id, the document's class, or -1."""
    if spec.kind.labels == "next_token":
        following: Array = ids.values[ids.offsets[rows] + tokens + 1]
        return following.astype(np.int64)
    if spec.kind.stores_gold:
        gold = np.full(len(rows), -1, np.int64)
        known = np.array([example.gold_ids is not None for example in examples])
        gold[known[rows]] = np.frombuffer(b"".join(example.gold_ids or b"" for example in examples), np.int32)
        return gold
    if spec.score != "softmax" or spec.kind.has_boxes:
        return np.full(len(rows), -1, np.int64)
    return np.array([e.label if isinstance(e.label, int) else -1 for e in examples], np.int64)


def every_token(lengths: Sequence[int], spec: Spec) -> torch.Tensor | None:
    """The classes of texts of which every token is one, where classes are a row's own tokens."""
    if not spec.kind.classes_are_tokens:
        return None
    return torch.from_numpy(class_mask(spec, np.zeros(len(lengths), np.int64), np.array(lengths, np.int64)))


def _classes(examples: Sequence[Example], spec: Spec) -> torch.Tensor | None:
    """Which ids are classes of each example, where these are its own tokens."""
    if spec.kind.class_columns is None:
        return None
    start, end = (_column(examples, spec, name) for name in spec.kind.class_columns)
    return torch.from_numpy(class_mask(spec, start, end))


def _padded(rows: Ragged, width: int, fill: int) -> torch.Tensor:
    out = np.full((len(rows), width), fill, np.int64)
    out[np.arange(width) < rows.lengths[:, None]] = rows.values
    return torch.from_numpy(out)
