"""Does an image's answer depend on who shares the batch? Asked at load, of every teacher of images.

The truth is plain transformers: the model called with one image, as anybody calls it. Against it stand our answers of
several images at once; where these differ, each is asked for alone, and a model that differs even then, or does not say
the same of an image twice, is refused by name. Cost: some eight forwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipelines.keep.select import num_uniforms
from pipelines.tasks.image_classification import IMAGE_TOKEN
from pipelines.tasks.object_detection import answers
from pipelines.tasks.tasks import TEACHER_TASKS
from pipelines.teacher.batch_independence import apart
from pipelines.teacher.calls import MODEL_ERRORS, told
from pipelines.teacher.model import Batch, Batching, Teacher, pool
from pipelines.teacher.plain_calls import Said
from schemas.errors import TeacherError, one_line

_IMAGES = 3
_WAYS: tuple[Batching, ...] = ("padded batches", "one text a batch")


def settled_images(teacher: Teacher) -> Teacher:
    """The teacher with the largest batches that leave every answer what it is alone.

    Raises:
        TeacherError: the model cannot be run, has other features than the spec, does not say the same twice, or says
            something else than when it is called plainly.
    """
    assert teacher.pictures is not None
    noise = np.random.default_rng(0).normal(size=(_IMAGES, *teacher.pictures.shape)).astype(np.float32)
    images = torch.from_numpy(noise)
    with told(f"cannot be asked for an image of shape {teacher.pictures.shape}", teacher.model):
        teacher = replace(teacher, num_layers=_layers(teacher, images[:1]))
        truths = [plain_image(teacher, images[index : index + 1]) for index in range(_IMAGES)]
        again = plain_image(teacher, images[:1])
    name = type(teacher.model).__name__
    if not all(part.isfinite().all() for scores, features in truths for part in (scores, *features)):
        do = "Its weights are damaged, or --dtype is too narrow"
        raise TeacherError(f"{name} says what is not finite", do=do)
    if found := apart(again, truths[0], teacher.model.dtype):
        raise TeacherError(f"{name} does not say the same of an image twice", got=found)
    why = ""
    for batching in _WAYS:
        tried = replace(teacher, batching=batching)
        if not (why := _difference(tried, images, truths)):
            return tried
    raise TeacherError(
        f"{name} says something else here than when it is called plainly",
        got=why,
        do="Report the model class, and use another --teacher",
    )


@torch.inference_mode()
def _layers(teacher: Teacher, pixels: torch.Tensor) -> int:
    """The last index into its `hidden_states`, for which its last states stand; 0 where they do not."""
    if not teacher.gives_last_states:
        return 0
    output = teacher.model(
        pixel_values=pixels.to(teacher.entry, teacher.model.dtype), output_hidden_states=True
    )
    return max(0, len(getattr(output, "hidden_states", None) or ()) - 1)


@torch.inference_mode()
def plain_image(teacher: Teacher, pixels: torch.Tensor) -> Said:
    """What the model says of one image when it is called as anybody calls it.

    Raises:
        TeacherError: it gives no scores of the spec's width, or not the features that the spec declares.
    """
    spec, model = teacher.spec, teacher.model
    given = pixels.to(teacher.entry, model.dtype)
    output = model(pixel_values=given, output_hidden_states=bool(spec.features))
    states = tuple(getattr(output, "hidden_states", None) or ()) if spec.features else ()
    if teacher.gives_last_states:
        states = (*states[:-1], output.last_hidden_state)
    return _scores(teacher, output), tuple(_features(teacher, states, pixels))


def _scores(teacher: Teacher, output: Any) -> torch.Tensor:
    if not teacher.spec.kind.has_positions:
        return torch.zeros(0, 0)
    if teacher.spec.kind.has_boxes:
        return _boxed(teacher, output)
    logits, expected = getattr(output, "logits", None), (1, teacher.spec.vocab_size)
    if not isinstance(logits, torch.Tensor) or logits.shape != expected:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(output).__name__
        name = type(teacher.model).__name__
        raise TeacherError(f"{name} gives no scores of classes", expected=expected, got=got)
    return logits.float().clone()


def _boxed(teacher: Teacher, output: Any) -> torch.Tensor:
    """Scores and box of each query."""
    queries, width = teacher.spec.kind.text_positions, teacher.spec.vocab_size
    expected = ((1, queries, width), (1, queries, 4))
    found = tuple(getattr(output, name, None) for name in ("logits", "pred_boxes"))
    got = tuple(tuple(one.shape) if isinstance(one, torch.Tensor) else None for one in found)
    if got != expected:
        raise TeacherError(
            f"{type(teacher.model).__name__} gives other scores and boxes than its type has",
            expected=expected,
            got=got,
            do="Say --score sigmoid for a head without a class for no object, --score softmax for one with it",
        )
    return answers(output)[0].clone()


def _features(
    teacher: Teacher, states: tuple[torch.Tensor, ...], pixels: torch.Tensor
) -> Iterator[torch.Tensor]:
    batch, finished = image_batch(teacher, pixels), TEACHER_TASKS[teacher.spec.task].finished
    for feature in teacher.spec.features:
        shape = tuple(states[feature.layer].shape) if feature.layer < len(states) else ()
        is_map, width = len(shape) == 4, 0
        if is_map or len(shape) == 3:
            width = finished(torch.zeros(1, shape[1 if is_map else 2]), teacher.spec).shape[-1]
        if width != feature.width:
            raise TeacherError(
                f"{type(teacher.model).__name__} has no states {feature.width} wide at stage {feature.layer}",
                got=shape or f"{len(states)} stages",
                do=f"Ask for another stage than {feature.name}, or leave --features out",
            )
        if is_map and feature.pooling != "mean":
            raise TeacherError(
                f"{type(teacher.model).__name__} has a map at stage {feature.layer}, and no {feature.pooling} token",
                do=f"Say --features mean:{feature.layer}",
            )
        found = pool(states[feature.layer], batch, feature.pooling)
        yield finished(found, teacher.spec).to(teacher.device)


def _difference(teacher: Teacher, images: torch.Tensor, truths: list[Said]) -> str:
    """How the teacher's answers differ from the truth in its way of batching; empty where they do not."""
    size = 1 if teacher.batching == "one text a batch" else len(images)
    for start in range(0, len(images), size):
        try:
            logits, features = teacher.said(image_batch(teacher, images[start : start + size]))
        except MODEL_ERRORS as error:
            return f"{type(error).__name__}: {one_line(error)}"
        each = len(logits) // size
        for row in range(size):
            own = logits[row * each : (row + 1) * each]
            ours = (own, tuple(feature[row : row + 1] for feature in features))
            if found := apart(ours, truths[start + row], teacher.model.dtype):
                return f"{found}, of an image among {size}"
    return ""


def image_batch(teacher: Teacher, images: torch.Tensor) -> Batch:
    """A batch of images, without labels."""
    each = teacher.spec.kind.text_positions if teacher.spec.kind.has_positions else 0
    rows = torch.arange(len(images)).repeat_interleave(each)
    ids = torch.full((len(images), 1), IMAGE_TOKEN)
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        token_type_ids=None,
        position_rows=rows,
        position_tokens=torch.arange(each).repeat(len(images)),
        labels=torch.full_like(rows, -1),
        uniforms=torch.zeros(len(rows), num_uniforms(teacher.spec.keep), dtype=torch.float64),
        pixel_values=images,
    )
