"""From a teacher's answer to rows: codes, ids and counts in flat arrays, ready for a shard.

Runs beside the teacher, in numpy, a batch at a time; what a unit holds in memory is its codes, not its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.corpus.examples import Example
from pipelines.keep.select import Selected
from pipelines.teacher.batching import int_lists
from pipelines.teacher.model import Answer
from schemas.policies import Sampled
from schemas.rows.arrow import ColumnData
from schemas.rows.codec import decode_scalars, encode_levels, encode_logprobs, encode_scalars, quantise
from schemas.rows.columns import BOXES, IMAGE, OBJECT_BOXES, OBJECT_CLASSES
from schemas.rows.ragged import Array, Ragged, offsets_of
from schemas.rows.rows import Rows
from schemas.shards.seal import Totals
from schemas.spec import Spec


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One batch: its rows, and what only the teacher's pass knows of them."""

    rows: Rows
    totals: Totals
    """`kept_mass_sum`, `entropy_sum_nats` and `clamped_codes` alone; counts are taken from the rows."""


def encode(examples: Sequence[Example], answer: Answer, spec: Spec) -> Encoded:
    """Encodes all examples of a batch; those that are not finite must have been taken out before."""
    counts = np.array([example.num_positions for example in examples], np.int64)
    data = example_columns(examples, spec)
    totals = Totals()
    if answer.selected is not None:
        kept, totals = _entries(answer.selected, counts, spec)
        data |= kept
        if not (spec.kind.stores_gold or spec.kind.has_boxes):
            data["labels"] = _labels(examples, spec)
    elif spec.kind.has_positions:
        assert answer.logits is not None
        data["logits"] = _lists(answer.logits.numpy().reshape(-1), counts * spec.vocab_size)
        data["labels"] = Ragged.of([_values(e.label) for e in examples], np.float32)
    if answer.boxes is not None:
        data[BOXES] = _lists(answer.boxes.numpy().reshape(-1), 4 * counts)
        data["labels"] = Ragged.of([None] * len(counts), np.int32 if spec.score == "softmax" else np.float32)
    data |= _features(answer, spec)
    return Encoded(rows=Rows(spec=spec, data=data), totals=totals)


def without(answer: Answer, keep: Array, positions_per_example: Array) -> Answer:
    """The answer for those examples of a batch that `keep` says; the others' positions leave."""
    places = np.repeat(keep, positions_per_example)
    selected = None
    if answer.selected is not None:
        selected = Selected(*(part[places] for part in answer.selected))
    return Answer(
        selected=selected,
        logits=None if answer.logits is None else answer.logits[places],
        features=tuple(feature[keep] for feature in answer.features),
        finite=answer.finite[keep],
        boxes=None if answer.boxes is None else answer.boxes[places],
    )


def example_columns(examples: Sequence[Example], spec: Spec) -> dict[str, Any]:
    """What is known of examples before the teacher is asked."""
    data: dict[str, Any] = {
        "example_id": _hashes([example.id for example in examples]),
        "document_hash": _hashes([example.document_hash for example in examples]),
        "window_index": np.array([example.window_index for example in examples], np.int32),
        "window_count": np.array([example.window_count for example in examples], np.int32),
        "input_ids": int_lists([example.input_ids for example in examples]),
        "position_index": int_lists([example.position_index for example in examples]),
    }
    texts = {"document_id": spec.has_document_id, "text": spec.has_text, "text_pair": spec.has_text_pair}
    for name in (name for name, wanted in texts.items() if wanted):
        data[name] = np.array([getattr(example, name) for example in examples], object)
    if spec.has_token_type_ids:
        types = int_lists([example.token_type_ids or b"" for example in examples])
        data["token_type_ids"] = replace(types, values=types.values.astype(np.int8))
    if spec.kind.reads_images:
        data[IMAGE] = np.array([example.image for example in examples], object)
    for place, column in enumerate(spec.kind.columns):
        data[column.name] = np.array([example.columns[place] for example in examples], np.int32)
    if spec.kind.has_boxes:
        known = [_values(example.label) for example in examples]
        objects = [None if own is None else own.reshape(-1, 5) for own in known]
        data[OBJECT_CLASSES] = Ragged.of([None if own is None else own[:, 0] for own in objects], np.int32)
        data[OBJECT_BOXES] = Ragged.of([None if o is None else o[:, 1:].ravel() for o in objects], np.float32)
    if spec.kind.stores_gold:
        data["labels"] = int_lists([example.gold_ids for example in examples])
    return data


def _entries(selected: Selected, counts: Array, spec: Spec) -> tuple[dict[str, ColumnData], Totals]:
    """The columns per position and entry, from `[N, K]` arrays of which only `counts` a position are kept."""
    num_kept = selected.counts.numpy()
    kept = np.arange(selected.ids.shape[1]) < num_kept[:, None]
    logprobs = selected.logprobs.numpy()
    top = encode_scalars(-selected.top_logprob.numpy(), spec.top_step_nats)
    decoded = -decode_scalars(top.codes, spec.top_step_nats)
    codes = encode_logprobs(logprobs[kept], num_kept, decoded, spec.code_step_nats)
    drawn, clamped_drawn = _drawn(selected, counts, decoded, spec)
    scalars, clamped = _scalars(selected, counts, spec)
    stored = _lists(num_kept.astype(np.int32), counts)
    per_row = stored.sums()
    columns: dict[str, ColumnData] = {
        "num_kept": stored,
        "kept_ids": _lists(selected.ids.numpy()[kept].astype(np.int32), per_row),
        "kept_codes": _lists(codes.codes, per_row),
        "top_codes": _lists(top.codes, counts),
        **drawn,
        **scalars,
    }
    totals = Totals(
        clamped_codes=codes.num_clamped + top.num_clamped + clamped + clamped_drawn,
        kept_mass_sum=float(selected.kept_mass.sum(dtype=None)),
        entropy_sum_nats=float(selected.entropy.sum()),
    )
    return columns, totals


def _drawn(selected: Selected, counts: Array, top: Array, spec: Spec) -> tuple[dict[str, ColumnData], int]:
    """The columns of drawn entries, and how many of their log-probabilities did not fit; `top` is the decoded one."""
    if not spec.is_sampling:
        return {}, 0
    number = selected.num_sampled.numpy()
    taken = np.arange(selected.sampled_ids.shape[1]) < number[:, None]
    stored = _lists(number.astype(np.int32), counts)
    per_row = stored.sums()
    columns: dict[str, ColumnData] = {
        "num_sampled": stored,
        "sampled_ids": _lists(selected.sampled_ids.numpy()[taken].astype(np.int32), per_row),
    }
    if isinstance(spec.keep, Sampled):
        columns["sampled_counts"] = _lists(selected.draws.numpy()[taken].astype(np.int32), per_row)
    if not spec.own_logits:
        return columns, 0
    levels = encode_levels(selected.sampled_logprobs.numpy()[taken], number, top, spec.code_step_nats)
    columns["sampled_codes"] = _lists(levels.codes, per_row)
    return columns, levels.num_clamped


def _scalars(selected: Selected, counts: Array, spec: Spec) -> tuple[dict[str, ColumnData], int]:
    """The columns of what the spec stores beside the entries, and how many values did not fit."""
    columns: dict[str, ColumnData] = {}
    clamped = 0
    if "entropy" in spec.scalars:
        entropy = encode_scalars(selected.entropy.numpy(), spec.scalar_step_nats)
        columns["entropy_codes"] = _lists(entropy.codes, counts)
        clamped += entropy.num_clamped
    if "gold" in spec.scalars:
        known = _unless_nan(selected.label_logprob.numpy(), counts)
        gold = encode_scalars(-known.values, spec.scalar_step_nats)
        columns["gold_codes"] = replace(known, values=gold.codes)
        clamped += gold.num_clamped
    if "logsumexp" in spec.scalars:
        per_row = counts * len(spec.temperatures)
        columns["logsumexp"] = _lists(selected.logsumexp.numpy().reshape(-1), per_row)
    if "word_start" in spec.scalars:
        words = encode_scalars(-selected.word_start_logprob.numpy()[:, 0], spec.scalar_step_nats)
        columns["word_start_codes"] = _lists(words.codes, counts)
        clamped += words.num_clamped
    return columns, clamped


def _unless_nan(gold: Array, counts: Array) -> Ragged:
    """A list a row, null where the row's positions have no gold label."""
    offsets = offsets_of(counts)
    valid = ~np.isnan(gold[offsets[:-1]])
    if valid.all():
        return Ragged(values=gold, offsets=offsets)
    kept = np.repeat(valid, counts)
    return Ragged(values=gold[kept], offsets=offsets_of(np.where(valid, counts, 0)), valid=valid)


def _labels(examples: Sequence[Example], spec: Spec) -> Ragged:
    """Classes that the corpus gave; none where the labels are the next tokens, which are not stored again."""
    labels = [None if spec.kind.labels == "next_token" else example.label for example in examples]
    valid = np.array([label is not None for label in labels], np.bool_)
    values = np.array([label for label in labels if label is not None], np.int32)
    return Ragged(values=values, offsets=offsets_of(valid), valid=None if valid.all() else valid)


def _features(answer: Answer, spec: Spec) -> dict[str, ColumnData]:
    columns: dict[str, ColumnData] = {}
    for feature, values in zip(spec.features, answer.features, strict=True):
        array = values.numpy()
        widths = np.full(len(array), feature.width, np.int64)
        if feature.dtype == "int8":
            codes, scale = quantise(array)
            columns[feature.column] = _lists(codes.reshape(-1), widths)
            columns[feature.scale_column] = scale
        else:
            columns[feature.column] = _lists(array.reshape(-1), widths)
    return columns


def _lists(values: Array, lengths: Array) -> Ragged:
    return Ragged(values=values, offsets=offsets_of(lengths))


def _hashes(hashes: Sequence[bytes]) -> Array:
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)


def _values(label: Any) -> Array | None:
    return None if label is None else np.asarray(label, np.float32)
