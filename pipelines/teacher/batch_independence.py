"""Does an answer depend on who shares the batch? Asked at load, of every teacher, before anything is scored.

The truth is plain transformers: the model called with one text, without padding, fresh as it was loaded. Against it
stand our answers, in the ways that a run would ask: a long text before short ones in one padded batch, two texts of one
length, one text alone. The first of these ways that says the same is the run's; where even one text alone differs, the
model is refused by name. Texts are random ids; they are short, but as long as may matter: positions end, windows of
attention slide and rotary frequencies change where a config says so. Cost: some ten forwards of a few hundred tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch

from pipelines.keep.select import num_uniforms
from pipelines.teacher.batching import every_token, padded_width
from pipelines.teacher.calls import MODEL_ERRORS, told
from pipelines.teacher.carried_state import Carried, put_back, remember
from pipelines.teacher.config_shapes import text_config, usable_length
from pipelines.teacher.model import Batch, Batching, Teacher
from pipelines.teacher.plain_calls import (
    MIDDLE,
    PARTS,
    POSITIONS,
    SHORT,
    Asked,
    Said,
    Text,
    original_length,
    plain,
    random_texts,
)
from schemas.decoder_inputs import IGNORED
from schemas.errors import TeacherError, one_line
from schemas.spec import Spec

_DRAWS = 4
"""Draws of texts that may fail: a token whose embedding is not finite is no fault of the batch."""
_OFFSETS = 8
"""Rows of a table of positions that may not be a token's, for all that a config says."""
_ROUNDING = {torch.float32: 2**-11, torch.float16: 2**-6, torch.bfloat16: 2**-5}
"""Of the largest score: what two orders of the same sums may differ by."""


def settled(teacher: Teacher, tokenizer: Any) -> Teacher:
    """The teacher with the largest batches that leave every answer what it is alone.

    Raises:
        TeacherError: the model cannot be run, has other features than the spec, does not say the same twice, sees what
            it is to predict, or says something else than when it is called plainly.
    """
    _refuse_too_long(teacher)
    teacher, texts = _told(teacher, tokenizer)
    _refuse_unsettled(teacher, texts)
    _refuse_clairvoyant(teacher, texts)
    _refuse_blind(teacher, texts)
    return _batched(teacher, texts)


def _batched(teacher: Teacher, texts: list[Text]) -> Teacher:
    """The first way of batching that says the truth.

    Classifiers that need a padding id to find a text's last token, and have none, get one that no text has: in a batch
    of one length the last token is then the last one.
    """
    config = text_config(teacher.model.config)
    kind = teacher.spec.kind
    one_each = kind.has_positions and not (kind.predicts_tokens or kind.classes_are_tokens)
    lacks = one_each and getattr(config, "pad_token_id", 0) is None
    why = ""
    for batching in get_args(Batching):
        if teacher.spec.kind.has_source and batching == "batches of one length":
            continue  # lengths are of source and target together
        if lacks:
            config.pad_token_id = None if batching == "one text a batch" else -1
        tried = replace(teacher, batching=batching)
        if not (why := _difference(tried, texts)):
            return tried
    raise TeacherError(
        f"{type(teacher.model).__name__} says something else here than when it is called plainly",
        got=why,
        do="Report the model class, and use another --teacher",
    )


def _difference(teacher: Teacher, texts: list[Text]) -> str:
    """How the teacher's answers differ from the truth in its way of batching; empty where they do not."""
    for members in _batches(teacher.batching, texts):
        batch = _batch([text.asked for text in members], teacher)
        try:
            logits, features = teacher.said(batch)
        except MODEL_ERRORS as error:
            return f"{type(error).__name__}: {one_line(error)}"
        parts = torch.split(logits, [len(text.truth[0]) for text in members])
        for row, (text, part) in enumerate(zip(members, parts, strict=True)):
            scored = text.truth[0].shape[1]  # of V, where that is the longest text's number of tokens
            ours = (part[:, :scored], tuple(feature[row : row + 1] for feature in features))
            if found := apart(ours, text.truth, teacher.model.dtype):
                return f"{found}, of {len(text.ids)} tokens among {len(members)} texts"
    return ""


def _batches(batching: Batching, texts: list[Text]) -> Iterator[list[Text]]:
    """Batches of a kind as a run makes them, longest first: all long texts and a short one, where texts are padded;
    the others; a text beside itself; and a short one, a long one and a short one alone."""
    ordered = sorted(texts, key=lambda text: -len(text.ids))
    alone = [*ordered, ordered[0], ordered[-1]]
    if batching == "padded batches":
        long, short = ordered[: len(PARTS)], ordered[len(PARTS) - 1 :]
        yield [*long, short[-1]]
        yield short
        yield [short[0]] * 3
        alone = [short[-1], long[0], short[-1]]
    elif batching == "batches of one length":
        yield [ordered[0]] * 2
        yield from ([text, *same] for text, same in _alike(ordered))
    yield from ([text] for text in alone)


def _alike(texts: Sequence[Text]) -> Iterator[tuple[Text, list[Text]]]:
    """Each text with the others of its length."""
    for place, text in enumerate(texts):
        yield text, [other for other in texts[place + 1 :] if len(other.ids) == len(text.ids)]


def apart(ours: Said, truth: Said, dtype: torch.dtype) -> str:
    """What differs by more than rounding. In half precision one flip of a router is no fault: the median counts."""
    pairs = [
        *([("scores", ours[0], truth[0])] if truth[0].numel() else []),
        *(("a feature", a, b) for a, b in zip(ours[1], truth[1], strict=True)),
    ]
    for what, a, b in pairs:
        if a.shape != b.shape:
            return f"{what} of shape {tuple(a.shape)}, not {tuple(b.shape)}"
        rows = (a - b.to(a.device)).abs().amax(1)
        largest = (rows.amax() if dtype == torch.float32 else rows.median()).item()
        bound = _ROUNDING.get(dtype, 2**-5) * max(1.0, b.abs().max().item())
        if not largest <= bound:
            return f"{what} that differ by {largest:.3g}, more than {bound:.2g}"
    return ""


def _told(teacher: Teacher, tokenizer: Any) -> tuple[Teacher, list[Text]]:
    """Texts with what the model says of each, fresh; and the teacher with what its model carries on."""
    for draw in range(_DRAWS):
        fresh = remember(teacher.model)
        texts, carried = [], list[Carried]()
        for asked in random_texts(teacher, tokenizer, seed=draw):
            with told(f"cannot be asked for a text of {len(asked.ids)} tokens", teacher.model):
                truth, layers = plain(teacher, asked)
            changed = [one for one in fresh if one.has_changed()]
            carried += [one for one in changed if one not in carried]
            put_back(changed)
            texts.append(Text(asked, truth))
            teacher = replace(teacher, num_layers=layers)
        finite = all(part.isfinite().all() for text in texts for part in (text.truth[0], *text.truth[1]))
        if finite:
            return replace(teacher, carried=tuple(carried)), texts
    name, half = type(teacher.model).__name__, teacher.model.dtype == torch.float16
    raise TeacherError(
        f"{name} overflows in float16" if half else f"{name} says what is not finite",
        got="scores or features that are infinite or no number",
        do="Say --dtype bfloat16 or float32" if half else "Its weights are damaged, or --dtype is too narrow",
    )


def _refuse_unsettled(teacher: Teacher, texts: list[Text]) -> None:
    """A model that draws random numbers, or keeps what was not put back, says something else the second time."""
    for text in (texts[0], texts[-1]):
        put_back(teacher.carried)
        again, _ = plain(teacher, text.asked)
        if found := apart(again, text.truth, teacher.model.dtype):
            raise TeacherError(
                f"{type(teacher.model).__name__} does not say the same of a text twice",
                got=found,
                do="Use another --teacher: what it says is of chance, or of what it was asked before",
            )
    put_back(teacher.carried)


def _refuse_clairvoyant(teacher: Teacher, texts: list[Text]) -> None:
    """What predicts the next token may not see it: encoders have a head of that name too."""
    if not teacher.spec.kind.precedes_tokens:
        return
    by_ids = {tuple(text.asked.begun): text for text in texts}
    for text in texts:
        before = by_ids.get(tuple(text.asked.begun[: -MIDDLE + SHORT[-1]]))
        if before is None or len(text.ids) > (original_length(teacher.model.config) or math.inf):
            continue
        known = len(before.truth[0])
        if found := apart((text.truth[0][:known], ()), (before.truth[0], ()), teacher.model.dtype):
            raise TeacherError(
                f"{type(teacher.model).__name__} sees the tokens that it is to predict",
                got=f"{found} when more text follows",
                do="It is an encoder (or its config lacks is_decoder): use a causal language model",
            )


def _refuse_blind(teacher: Teacher, texts: list[Text]) -> None:
    """A token's scores are of its text: MRA's attention without its kernels is nothing, and says no word of that."""
    text = min(texts, key=lambda one: abs(len(one.ids) - SHORT[-1]))
    place = ((text.asked.source or len(text.ids)) - 1) // 2
    other = next((i for one in texts for i in one.ids if i != text.ids[place]), None)
    kind = teacher.spec.kind
    by_token = kind.predicts_tokens or kind.classes_are_tokens
    if not by_token or len(text.ids) < 2 or other is None:
        return
    put_back(teacher.carried)
    changed = text.asked._replace(ids=[*text.ids[:place], other, *text.ids[place + 1 :]])
    (scores, _), _ = plain(teacher, changed)
    put_back(teacher.carried)
    moved = (scores != text.truth[0]).any(1 if kind.predicts_tokens else 0)
    if not text.asked.source:
        moved[place - len(text.ids)] = False
    if not moved.any():
        raise TeacherError(
            f"{type(teacher.model).__name__} sees nothing of a "
            + ("source" if text.asked.source else "text but the token itself"),
            got="the same scores beside another token",
            do="Its attention may need a package or a device that is not here: use another --teacher",
        )


def _refuse_too_long(teacher: Teacher) -> None:
    """The longest text that the run may bring, where the model's positions could end before."""
    longest, usable = teacher.spec.max_length, usable_length(teacher.model.config)
    if usable is None or longest <= usable - _OFFSETS:
        return
    fresh = remember(teacher.model)
    some = [i for i in range(min(teacher.embedded, 64)) if i != teacher.pad_id]
    try:
        spec = replace(teacher.spec, features=()) if teacher.spec.kind.has_positions else teacher.spec
        ids = (some * longest)[:longest]
        asked = Asked(ids * 2, longest) if spec.kind.has_source else Asked(ids)
        plain(replace(teacher, spec=spec), asked)
        put_back(one for one in fresh if one.has_changed())
    except MODEL_ERRORS as error:
        raise TeacherError(
            f"{type(teacher.model).__name__} cannot be asked for a text of {longest} tokens",
            got=f"{type(error).__name__}: {one_line(error)}",
            do=f"Say --max_length {min(usable, longest - 1)} or less",
        ) from error


def _padded(rows: list[list[int]], fill: int, *, on_device: bool) -> torch.Tensor:
    width = padded_width(max(map(len, rows)), on_device=on_device)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _batch(texts: list[Asked], teacher: Teacher) -> Batch:
    """A batch as a run collates it, with the positions that are compared."""
    spec: Spec = teacher.spec
    padded = teacher.batching == "padded batches" and teacher.device.type != "cpu"
    rows = [text.ids[: text.source] or text.ids for text in texts]
    ids = _padded(rows, teacher.pad_id, on_device=padded)
    by_token, said = spec.kind.predicts_tokens, [text.said for text in texts]
    whole = range(spec.kind.text_positions if spec.kind.has_positions else 0)
    places = [range(max(0, len(r) - POSITIONS), len(r)) if by_token else whole for r in said]
    return Batch(
        input_ids=ids,
        attention_mask=_padded([[1] * len(row) for row in rows], 0, on_device=padded),
        token_type_ids=torch.zeros_like(ids) if spec.has_token_type_ids else None,
        position_rows=torch.tensor(
            [row for row, found in enumerate(places) for _ in found], dtype=torch.int64
        ),
        position_tokens=torch.tensor([token for found in places for token in found], dtype=torch.int64),
        labels=torch.full((sum(map(len, places)),), -1),
        uniforms=torch.zeros(sum(map(len, places)), num_uniforms(spec.keep), dtype=torch.float64),
        classes=every_token([*map(len, rows)], spec),
        target_ids=_padded(said, IGNORED, on_device=padded) if spec.kind.has_source else None,
    )
