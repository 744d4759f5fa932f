"""Boxes of matched queries: to the teacher's, as much as it takes each for an object (arXiv:2211.10156), or to the
corpus's objects (arXiv:2005.12872). L1 distance of centre, width and height, and 1 - generalised IoU."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from schemas.errors import StudentError
from trainer.losses.loss import Asked, Kind, Loss, Parameter, Settings
from trainer.losses.matching import GIOU, L1, Boxes, overlap
from trainer.losses.worth import of_boxes


def _distance(
    ours: Float[Tensor, "B Q 4"],
    theirs: Float[Tensor, "B Q 4"],
    weights: Float[Tensor, "B Q"],
    settings: Settings,
) -> Float[Tensor, " B"]:
    """The mean over an image's weights; where these are less than one object in all, as if they were one."""
    l1, giou = (ours - theirs).abs().sum(-1), 1 - overlap(ours, theirs)[1]
    each = float(settings["l1"]) * l1 + float(settings["giou"]) * giou
    return (weights * each).sum(-1) / weights.sum(-1).clamp_min(1)


def _of_teacher(boxes: Boxes, settings: Settings) -> Float[Tensor, " B"]:
    return _distance(boxes.ours, boxes.theirs, boxes.weights, settings)


def _of_corpus(boxes: Boxes, settings: Settings) -> Float[Tensor, " B"]:
    return _distance(boxes.ours, boxes.gold, boxes.is_gold.to(boxes.ours.dtype), settings)


def _boxes(asked: Asked) -> StudentError | None:
    if asked.spec.kind.has_boxes:
        return None
    return asked.error(
        "has no meaning where a cache holds no boxes",
        expected="a cache of the task object-detection",
        got=asked.spec.task,
        do="Precompute a cache with --task object-detection, or use --losses kl=1.0",
    )


def _objects(asked: Asked) -> StudentError | None:
    if (error := _boxes(asked)) is not None or asked.spec.has_labels:
        return error
    return asked.error(
        "needs the corpus's objects, and the cache has none",
        do="Precompute a cache with --label_field, or use --losses boxes=1",
    )


_WEIGHTS = {"l1": Parameter.at_least_0(L1), "giou": Parameter.at_least_0(GIOU)}
_SERVED = "a cache of `object-detection`"
LOSSES = (
    Loss(
        name="boxes",
        formula="mean over queries, weighted by p of an object: l1 |b - t|_1 + giou (1 - GIoU(b, t))",
        paper="arXiv:2211.10156",
        kind=Kind(name="boxes", served_by=_SERVED, refusal=_boxes, worth=of_boxes, from_entries=False),
        parameters=_WEIGHTS,
        boxes=_of_teacher,
        per="examples",
    ),
    Loss(
        name="gold_boxes",
        formula="mean over objects: l1 |b - o|_1 + giou (1 - GIoU(b, o))",
        paper="arXiv:2005.12872",
        kind=Kind(
            name="objects",
            served_by=f"{_SERVED} with `--label_field`",
            refusal=_objects,
            worth=of_boxes,
            from_entries=False,
        ),
        parameters=_WEIGHTS,
        boxes=_of_corpus,
        per="examples",
    ),
)
