"""A student's detections beside the teacher's, and beside the corpus's objects: agreement, IoU, mAP (torchmetrics).

A detection is a query whose likeliest class has a probability above `THRESHOLD`. Two are the same where they have one
class and an IoU of `ENOUGH`; each is the same as one other at most. mAP is COCO's, over all queries, by torchmetrics
with pycocotools, an extra, `[detection]`: without them it is left out, and a warning says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from schemas.errors import StudentError
from trainer.batches.batch import Batch
from trainer.batches.detections import object_probs, student_probs, teacher_probs
from trainer.losses.matching import corners, paired
from trainer.losses.targets import SparseTargets
from trainer.metrics.tokens import Metrics
from trainer.models.heads import Run

THRESHOLD, ENOUGH = 0.5, 0.5
_PACKAGES = ("pycocotools", "torchmetrics")
_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What is found in one image, a query each."""

    scores: Float[Tensor, " Q"]
    labels: Int64[Tensor, " Q"]
    boxes: Float[Tensor, "Q 4"]

    @classmethod
    def of(cls, probs: Float[Tensor, "Q C"], boxes: Float[Tensor, "Q 4"]) -> Found:
        """The likeliest class of each."""
        scores, labels = probs.max(-1)
        return cls(scores.cpu(), labels.cpu(), boxes.float().cpu())

    @property
    def sure(self) -> Found:
        """Those above the threshold."""
        kept = self.scores > THRESHOLD
        return Found(*(part[kept] for part in self))


class Scene(NamedTuple):
    """One image: what a student finds, what its teacher does, and what the corpus says; None: nothing."""

    student: Found
    teacher: Found
    objects: Found | None


def detection_metrics(model: Any, run: Run, batches: Iterable[Batch], device: torch.device) -> Metrics:
    """`agreement`, the F1 of `teachers_found` (of the teacher's detections) and `found_by_teacher` (of the student's);
    `mean_iou` of pairs; with objects `map`, `map_50` and `teacher_map`.

    Raises:
        StudentError: its answers are not finite.
    """
    every = [scene for batch in batches for scene in scenes(model, run, batch, device)]
    same = [pairs_of(one.student.sure, one.teacher.sure) for one in every]
    ours = sum(len(one.student.sure.scores) for one in every)
    theirs = sum(len(one.teacher.sure.scores) for one in every)
    ious = torch.cat(same)
    found: Metrics = {
        "images": len(every),
        "detections": ours,
        "teacher_detections": theirs,
        "teachers_found": len(ious) / theirs if theirs else None,
        "found_by_teacher": len(ious) / ours if ours else None,
        "agreement": 2 * len(ious) / (ours + theirs) if ours + theirs else 1.0,
        "mean_iou": float(ious.mean()) if len(ious) else None,
    }
    known = [one for one in every if one.objects is not None]
    return found | {"labelled": len(known)} | (_map(known) if known else {})


@torch.no_grad()
def scenes(model: Any, run: Run, batch: Batch, device: torch.device) -> list[Scene]:
    """Each image of a batch."""
    moved = batch.to(device)
    ran, told = run(model, moved.model_inputs, (), -1), moved.detections
    assert ran.logits is not None
    assert ran.boxes is not None
    assert told is not None
    if not bool(torch.isfinite(ran.logits).all() & torch.isfinite(ran.boxes).all()):
        raise StudentError("the student gives answers that are not numbers", where=type(model).__name__)
    softmax, width = isinstance(moved.targets, SparseTargets), ran.logits.shape[-1]
    own = object_probs(student_probs(ran.logits, softmax=softmax), softmax=softmax)
    theirs = object_probs(teacher_probs(moved.targets, width), softmax=softmax)  # type: ignore[arg-type]
    theirs = theirs.view(len(own), -1, theirs.shape[-1])
    found = []
    for image in range(len(own)):
        mine, objects = told.object_row == image, None
        if told.known[image]:
            classes = told.object_class[mine].cpu()
            objects = Found(torch.ones(len(classes)), classes, told.object_box[mine].cpu())
        student, teacher = Found.of(own[image], ran.boxes[image]), Found.of(theirs[image], told.boxes[image])
        found.append(Scene(student, teacher, objects))
    return found


def pairs_of(ours: Found, theirs: Found) -> Float[Tensor, " M"]:
    """The IoU of each pair of detections that are the same, as many as can be."""
    ious = paired(ours.boxes, theirs.boxes)[0].masked_fill(ours.labels[:, None] != theirs.labels[None], 0)
    ious = ious.masked_fill(ious < ENOUGH, 0)
    rows, columns = linear_sum_assignment(-(ious + (ious > 0)).double().numpy())
    found = ious[torch.from_numpy(rows), torch.from_numpy(columns)]
    return found[found > 0]


def _map(known: list[Scene]) -> Metrics:
    """COCO's mean average precision of student and teacher."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        _log.warning(
            "mAP is left out: %s not installed (pip install 'teachonce[detection]')", " and ".join(missing)
        )
        return {}
    kind = importlib.import_module("torchmetrics.detection").MeanAveragePrecision
    found: Metrics = {}
    objects = [_plain(scene.objects) for scene in known if scene.objects is not None]
    for prefix, own in (("", [one.student for one in known]), ("teacher_", [one.teacher for one in known])):
        metric = kind(box_format="xyxy", iou_type="bbox", backend="pycocotools")
        metric.warn_on_many_detections = False
        metric.update([{**_plain(one), "scores": one.scores} for one in own], objects)
        told = metric.compute()
        found |= {f"{prefix}{name}": float(told[name]) for name in ("map", "map_50")}
    return found


def _plain(found: Found) -> dict[str, Tensor]:
    return {"boxes": corners(found.boxes), "labels": found.labels}
