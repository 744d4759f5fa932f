"""What the values of rows must be: one set of rules for the writer, the reader and `verify`.

The writer rejects an example that breaks a rule before its shard is sealed; a reader refuses the shard, whoever sealed
it. So nothing is committed that its own reader refuses, and nothing is read that training would fall over.

Cost: least and largest values of flat arrays, about one hundredth of what a row group takes to decode. The rules behind
`deep` sort entries, or exponentiate them, which takes as long as decoding: `verify` and the writer ask for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas.errors import REPAIR, CorruptionError
from schemas.policies import KeepAll, Sampled
from schemas.rows.boxes import check_boxes
from schemas.rows.classes import check_bounds, check_classes, check_whole
from schemas.rows.codec import LEVEL_MAX, decode_logprobs, decode_scalars
from schemas.rows.columns import CODES, IMAGE
from schemas.rows.layout import expected_lengths, image_bytes, refuse_range
from schemas.rows.ragged import Array, Ragged, offsets_of
from schemas.spec import MAX_VOCAB, Spec
from schemas.tasks import SOURCE_TOKENS

MAX_ROW_VALUES = 2**30
"""Values of one list of one example: a row group's lists have offsets of 32 bits."""
_MAX_SCALE = np.finfo(np.float32).max / 128
Data = Mapping[str, Any]
"""Columns by name, as `Rows` holds them."""


def check_columns(spec: Spec, data: Data, where: str, *, deep: bool = False) -> None:
    """Asserts that the lists of each row fit together, and that every value is one that the format knows.

    Raises:
        CorruptionError: naming the first column that does not fit.
    """
    check_examples(spec, data, where)
    positions = np.diff(position_offsets(spec, data))
    for name, expected in expected_lengths(spec, data, positions).items():
        column = data[name]
        wrong = column.lengths != expected
        wrong = wrong if column.valid is None else wrong & column.valid
        _refuse_lengths(data, name, wrong, where, expected=expected, got=column.lengths)
    implied = data["input_ids"].lengths - 1
    wrong = (positions != implied) & ~data["position_index"].validity
    _refuse_lengths(data, "position_index (null)", wrong, where, expected=implied, got=positions)
    if spec.score == "softmax":
        check_entries(spec, data, where)
        _check_codes(spec, data, where)
        _check_gold(spec, data, where)
    elif spec.kind.has_positions:
        _refuse_infinite("logits", data["logits"].values, where)
        _refuse_infinite("labels", data["labels"].values, where)
    check_boxes(spec, data, where)
    _check_features(spec, data, where)
    if deep and spec.score == "softmax":
        _check_distinct(spec, data, where)
        _check_mass(spec, data, where)


def position_offsets(spec: Spec, data: Data) -> Array:
    """Offsets of each row's positions among all N."""
    if not spec.kind.has_positions:
        return np.zeros_like(data["input_ids"].offsets)
    if spec.score == "softmax":
        offsets: Array = data["num_kept"].offsets
    else:
        offsets = data["logits"].offsets // spec.vocab_size
    return offsets


def check_examples(spec: Spec, data: Data, where: str) -> None:
    """The rules for what a teacher is asked: tokens, places and windows. They hold before it is.

    Raises:
        CorruptionError: naming the first column that does not fit.
    """
    tokens, most = data["input_ids"], spec.kind.most_tokens(spec.max_length)
    refuse_range("input_ids (tokens of an example)", tokens.lengths, 1, most, where)
    refuse_range("input_ids", tokens.values, 0, MAX_VOCAB - 1, where)
    index, count = data["window_index"], data["window_count"]
    refuse_range("window_index", index, 0, 2**31 - 1, where)
    refuse_range("window_index (behind the last window)", index - count, -(2**31), -1, where)
    if spec.has_token_type_ids and "token_type_ids" in data:
        refuse_range("token_type_ids", data["token_type_ids"].values, 0, 127, where)
    for column in spec.kind.columns:
        refuse_range(column.name, data[column.name], column.low, column.high, where)
    if spec.kind.reads_images and IMAGE in data:
        refuse_range(f"{IMAGE} (bytes)", image_bytes(data[IMAGE]), 1, MAX_ROW_VALUES, where)
    check_bounds(spec, data, where)
    _check_places(spec, data, where)


def _check_places(spec: Spec, data: Data, where: str) -> None:
    """A `position_index` that is stored ascends inside its example; a whole text has as many as its task says."""
    places, tokens = data["position_index"], data["input_ids"]
    values, lengths = places.values, places.lengths
    if spec.score != "softmax" or isinstance(spec.keep, KeepAll):
        scores = np.where(places.validity, lengths, tokens.lengths - 1) * spec.vocab_size
        refuse_range("position_index (scores of an example)", scores, 0, MAX_ROW_VALUES, where)
    ends = spec.kind.num_places(tokens.lengths)
    outside = (values >= np.repeat(ends, lengths)) & (spec.kind.places != "whole_text")  # counted below
    if values.size and (outside.any() or values.min() < 0):
        raise CorruptionError("column position_index points outside its example", where=where, do=REPAIR)
    if not spec.kind.implies_places:
        whole = spec.kind.text_positions if spec.kind.has_positions else 0
        of_whole = spec.kind.places in ("whole_text", "none")
        few, most = (whole, whole) if of_whole else (1, MAX_ROW_VALUES)
        refuse_range("position_index (positions of a text)", lengths, few, most, where)
    if spec.kind.places in ("whole_text", "none"):
        refuse_range(
            "position_index (of a text)", values - np.arange(len(values)) % max(1, whole), 0, 0, where
        )
        return
    if spec.kind.has_source:
        _check_sources(spec, data, where)
    goes_back = np.diff(values, prepend=np.int32(-1)) <= 0
    goes_back[places.offsets[:-1][lengths > 0]] = False
    if goes_back.any():
        raise CorruptionError("column position_index does not ascend", where=where, do=REPAIR)
    if spec.kind.holds_texts:
        refuse_range("position_index (of a row's first text)", values[places.offsets[:-1]], 0, 0, where)
        sizes = np.diff(text_offsets(places, tokens))
        refuse_range("input_ids (tokens of a text)", sizes, 1, spec.max_length, where)


def text_offsets(places: Ragged, tokens: Ragged) -> Array:
    """Where each text begins among all rows' tokens, and the last one's end; a position begins a text."""
    begins = np.repeat(tokens.offsets[:-1], places.lengths) + places.values
    found: Array = np.concatenate([begins, tokens.offsets[-1:]]).astype(np.int64)
    return found


def _check_sources(spec: Spec, data: Data, where: str) -> None:
    """A source and its target have a token each, and as many as a model reads at most; no position stands before the
    last token of its source."""
    places, tokens, source = data["position_index"], data["input_ids"], data[SOURCE_TOKENS]
    refuse_range(f"{SOURCE_TOKENS} (of an example)", source, 1, spec.max_length, where)
    refuse_range(f"{SOURCE_TOKENS} (tokens behind)", tokens.lengths - source, 1, spec.max_length, where)
    behind = places.values - np.repeat(source, places.lengths)
    refuse_range(f"position_index (behind {SOURCE_TOKENS})", behind, -1, MAX_ROW_VALUES, where)


def check_targets(spec: Spec, data: Data, where: str) -> None:
    """Ids beyond the head may be read, and cannot be predicted. A rule for the writer: no reader falls over them.

    Raises:
        CorruptionError: such an id is right at a position.
    """
    places, tokens = data["position_index"], data["input_ids"]
    if spec.kind.stores_gold:
        refuse_range("labels", data["labels"].values, 0, spec.vocab_size - 1, where)
        check_classes(spec, data, "labels", data["labels"].lengths, where)
    following = spec.kind.labels == "next_token"
    if not following or not tokens.values.size or tokens.values.max() < spec.vocab_size:
        return
    predicted = np.ones(tokens.values.size, np.bool_)
    predicted[tokens.offsets[:-1]] = False
    predicted[np.repeat(places.validity, tokens.lengths)] = False
    predicted[np.repeat(tokens.offsets[:-1], places.lengths) + places.values + 1] = True
    found = tokens.values[predicted]
    refuse_range("input_ids (that a position predicts)", found, 0, spec.vocab_size - 1, where)


def check_entries(spec: Spec, data: Data, where: str) -> None:
    """Counts and ids are in range; an exact policy keeps at least one entry of each position, `all` keeps V.

    Raises:
        CorruptionError: naming the first column that does not fit.
    """
    kept, keeps_all = data["num_kept"].values, isinstance(spec.keep, KeepAll)
    least = spec.vocab_size if keeps_all else min(1, spec.max_kept)
    if keeps_all and spec.kind.classes_are_tokens:
        check_whole(spec, data, where)
        least = 1
    refuse_range("num_kept", kept, least, spec.max_kept, where)
    refuse_range("kept_ids", data["kept_ids"].values, 0, spec.vocab_size - 1, where)
    check_classes(spec, data, "kept_ids", data["num_kept"].sums(), where)
    if not spec.is_sampling:
        return
    drawn = data["num_sampled"].values
    refuse_range("num_sampled", drawn, 0, spec.max_sampled, where)
    refuse_range("num_sampled (with the exact ones)", kept + drawn, 1, spec.vocab_size, where)
    refuse_range("sampled_ids", data["sampled_ids"].values, 0, spec.vocab_size - 1, where)
    check_classes(spec, data, "sampled_ids", data["num_sampled"].sums(), where)
    if isinstance(spec.keep, Sampled):
        draws, offsets = data["sampled_counts"].values, offsets_of(drawn)
        refuse_range("sampled_counts", draws, 1, spec.keep.n, where)
        sums = np.diff(offsets_of(draws)[offsets])
        refuse_range("sampled_counts (of a position)", sums, spec.keep.n, spec.keep.n, where)


def _check_codes(spec: Spec, data: Data, where: str) -> None:
    """Codes are steps below the top: none is negative, and those of a position do not add up beyond 32 bits."""
    for name in (name for name in CODES if name in data):
        values = data[name].values
        if values.size and values.min() < 0:
            raise CorruptionError(f"column {name} has a negative code", where=where, do=REPAIR)
    codes, counts = data["kept_codes"].values, data["num_kept"].values
    if codes.size and int(codes.max()) * int(counts.max()) > LEVEL_MAX:
        levels = np.diff(offsets_of(codes)[offsets_of(counts)])
        refuse_range("kept_codes (of a position)", levels, 0, LEVEL_MAX, where)
    if "logsumexp" in data:
        _refuse_infinite("logsumexp", data["logsumexp"].values, where)


def _check_gold(spec: Spec, data: Data, where: str) -> None:
    """A gold log-probability stands wherever a label is known; labels that are the next tokens are not stored."""
    labels, kind = data["labels"], spec.kind.labels
    if kind == "next_token" and labels.validity.any():
        raise CorruptionError("column labels stands beside tokens that are labels", where=where, do=REPAIR)
    if kind == "position" and not labels.validity.all():
        raise CorruptionError("column labels is null where each position has one", where=where, do=REPAIR)
    refuse_range("labels", labels.values, 0, spec.vocab_size - 1, where)
    check_classes(spec, data, "labels", labels.lengths, where)
    known = labels.validity | (kind == "next_token")
    if "gold" in spec.scalars and (known != data["gold_codes"].validity).any():
        raise CorruptionError(
            "column gold_codes is null where a label is known, or not", where=where, do=REPAIR
        )


def _check_features(spec: Spec, data: Data, where: str) -> None:
    for feature in spec.features:
        if feature.dtype == "float32":
            _refuse_infinite(feature.column, data[feature.column].values, where)
            continue
        scale = data[feature.scale_column]
        if not ((scale >= 0) & (scale <= _MAX_SCALE)).all():
            raise CorruptionError(
                f"column {feature.scale_column} has a scale that is not finite, or negative",
                where=where,
                expected="finite numbers from 0",
                got=f"{scale[~((scale >= 0) & (scale <= _MAX_SCALE))][0]}",
                do=REPAIR,
            )


def _check_distinct(spec: Spec, data: Data, where: str) -> None:
    """No id stands twice at a position, be it exact or drawn."""
    parts = [("kept_ids", "num_kept")] + [("sampled_ids", "num_sampled")] * spec.is_sampling
    keys = [
        np.repeat(np.arange(len(data[count].values), dtype=np.int64), data[count].values) << 32
        | data[ids].values
        for ids, count in parts
    ]
    every = np.sort(np.concatenate(keys))
    if (every[1:] == every[:-1]).any():
        raise CorruptionError("column kept_ids has an id twice at one position", where=where, do=REPAIR)


def _check_mass(spec: Spec, data: Data, where: str) -> None:
    """What a position's exact entries weigh is no more than 1, but for the rounding."""
    top = -decode_scalars(data["top_codes"].values, spec.top_step_nats)
    counts = data["num_kept"].values
    logprobs = decode_logprobs(data["kept_codes"].values, counts, top, spec.code_step_nats)
    running = np.concatenate([[0.0], np.cumsum(np.exp(logprobs.astype(np.float64)))])
    mass = np.diff(running[offsets_of(counts)])
    rounding = np.exp(spec.code_step_nats / 2 + spec.top_step_nats / 2)
    if mass.size and mass.max() > 1.001 * rounding:
        raise CorruptionError(
            "column kept_codes gives a position more than its whole probability",
            where=where,
            expected=f"at most {1.001 * rounding:.3f}",
            got=f"{mass.max():.3f}",
            do=REPAIR,
        )


def _refuse_infinite(name: str, values: Array, where: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        raise CorruptionError(
            f"column {name} has a value that is not finite",
            where=where,
            expected="finite numbers",
            got=f"{values[~finite][0]}, in {int((~finite).sum())} of {values.size}",
            do=REPAIR,
        )


def _refuse_lengths(data: Data, name: str, wrong: Array, where: str, *, expected: Array, got: Array) -> None:
    if wrong.any():
        row = wrong.argmax()
        raise CorruptionError(
            f"column {name} has a list of the wrong length",
            where=f"{where}, example {data['example_id'][row].tobytes().hex()}",
            expected=int(np.broadcast_to(expected, wrong.shape)[row]),
            got=int(got[row]),
            do=REPAIR,
        )
