"""What a detector and the corpus say of a batch's images, and how a student's queries come to stand for it.

A batch is made with a position for each of the teacher's queries. Once the student has answered, each of *its* queries
is matched with one of the teacher's, and with an object, and becomes a position with that one's targets. So losses on
scores see pairs, as everywhere, and none of them knows of sets. A query of the student's that is left over is given
what the teacher says of the query that it takes least for an object; where the student has fewer, those go that are
the least objects.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from schemas.rows.columns import BOXES, OBJECT_BOXES, OBJECT_CLASSES
from schemas.rows.ragged import Array, offsets_of
from schemas.rows.rows import Rows
from trainer.losses.matching import Boxes, costs, matched
from trainer.losses.targets import NO_LABEL, DenseTargets, SparseTargets


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Of R images with Q queries of the teacher's each, and G objects in all."""

    boxes: Float[Tensor, "R Q 4"]
    known: Int64[Tensor, " R"]
    """1 where the corpus says what is there, if it is nothing; else 0."""
    object_row: Int64[Tensor, " G"]
    object_class: Int64[Tensor, " G"]
    object_box: Float[Tensor, "G 4"]


def detections_of(rows: Rows, sizes: Sequence[int]) -> Iterator[Detections | None]:
    """Of each batch of so many of the rows."""
    if not rows.spec.kind.has_boxes:
        yield from (None for _ in sizes)
        return
    edges = offsets_of(np.array(sizes, np.int64))
    for first, last in itertools.pairwise(edges.tolist()):
        part = rows.take(np.arange(first, last), (BOXES, OBJECT_CLASSES, OBJECT_BOXES))
        classes, objects = part.ragged(OBJECT_CLASSES), part.ragged(OBJECT_BOXES)
        yield Detections(
            boxes=_tensor(part.ragged(BOXES).values).view(last - first, -1, 4),
            known=_tensor(classes.validity.astype(np.int64)),
            object_row=_tensor(np.repeat(np.arange(last - first), classes.lengths)),
            object_class=_tensor(classes.values.astype(np.int64)),
            object_box=_tensor(objects.values).view(-1, 4),
        )


def object_probs(probs: Float[Tensor, "*N V"], *, softmax: bool) -> Float[Tensor, "*N C"]:
    """Of the classes that are objects."""
    return probs[..., :-1] if softmax else probs


def objectness(probs: Float[Tensor, "*N C"], *, softmax: bool) -> Float[Tensor, "*N"]:
    """How much a query is an object: all its mass on objects, or its likeliest class."""
    return probs.sum(-1).clamp(0, 1) if softmax else probs.amax(-1)


def teacher_probs(targets: SparseTargets | DenseTargets, width: int) -> Float[Tensor, "N V"]:
    """What the teacher says of each class at temperature 1; 0 of what is not kept."""
    if isinstance(targets, DenseTargets):
        return targets.logits.sigmoid()
    found = targets.logprobs.new_zeros(len(targets.counts), width)
    return found.index_put((targets.position, targets.ids), targets.logprobs.exp())


def student_probs(logits: Float[Tensor, "*N V"], *, softmax: bool) -> Float[Tensor, "*N V"]:
    """Of a student's own scores, without gradient."""
    values = logits.detach().float()
    return values.softmax(-1) if softmax else values.sigmoid()


def placed(
    batch: Any, logits: Float[Tensor, "R Q V"], boxes: Float[Tensor, "R Q 4"]
) -> tuple[dict[str, Any], Boxes]:
    """A batch's fields with a position for each of the student's queries, and what box losses are of."""
    told: Detections = batch.detections
    targets, softmax = batch.targets, isinstance(batch.targets, SparseTargets)
    images, queries, width = logits.shape
    asked = told.boxes.shape[1]
    theirs = object_probs(teacher_probs(targets, width), softmax=softmax).view(images, asked, -1)
    weights = objectness(theirs, softmax=softmax)
    shares = theirs / theirs.sum(-1, keepdim=True).clamp_min(1e-6)
    own = object_probs(student_probs(logits, softmax=softmax), softmax=softmax)
    ours, device = boxes.detach().float(), logits.device
    of_teacher = weights.argmin(-1, keepdim=True).repeat(1, queries)
    is_matched = torch.zeros(images, queries, dtype=torch.bool, device=device)
    cost, heavy = costs(shares, told.boxes, own, ours).cpu(), weights.cpu()
    for image in range(images):
        rows, columns = (one.to(device) for one in matched(cost[image], heavy[image]))
        of_teacher[image, columns] = rows
        is_matched[image, columns] = True
    gold, of_objects = _objects(told, own, ours)
    labels = told.known[:, None].bool() & torch.ones_like(is_matched)
    flat = (torch.arange(images, device=device)[:, None] * asked + of_teacher).flatten()
    every = torch.arange(images * queries, device=device)
    fields = {
        "targets": _targets(targets, flat, gold.flatten(), labels.flatten(), width),
        "row": every // queries,
        "token": every % queries,
    }
    taken = of_teacher[..., None].expand(-1, -1, 4)
    found = Boxes(
        ours=boxes.float(),
        theirs=told.boxes.gather(1, taken),
        weights=weights.gather(1, of_teacher) * is_matched,
        gold=of_objects,
        is_gold=gold >= 0,
    )
    return fields, found


def _objects(
    told: Detections, own: Float[Tensor, "R Q C"], boxes: Float[Tensor, "R Q 4"]
) -> tuple[Int64[Tensor, "R Q"], Float[Tensor, "R Q 4"]]:
    """Class and box of the object that each of the student's queries is matched with; -1 where with none."""
    gold = torch.full(own.shape[:2], -1, dtype=torch.int64, device=own.device)
    found = torch.zeros_like(boxes)
    hot = torch.nn.functional.one_hot(told.object_class, own.shape[-1]).to(own.dtype)
    of_images = own[told.object_row], boxes[told.object_row]
    cost = costs(hot[:, None], told.object_box[:, None], *of_images)[:, 0].cpu()
    images = told.object_row.cpu()
    for image in sorted(set(images.tolist())):
        mine = (images == image).nonzero()[:, 0]
        rows, columns = matched(cost[mine], torch.ones(len(mine)))
        objects, queries = mine[rows].to(own.device), columns.to(own.device)
        gold[image, queries], found[image, queries] = told.object_class[objects], told.object_box[objects]
    return gold, found


def _targets(
    targets: SparseTargets | DenseTargets,
    flat: Int64[Tensor, " M"],
    gold: Int64[Tensor, " M"],
    labelled: Tensor,
    width: int,
) -> SparseTargets | DenseTargets:
    """Those of the teacher's positions, one for each of the student's, with what the corpus says of each."""
    if isinstance(targets, DenseTargets):
        hot = torch.nn.functional.one_hot(gold.clamp_min(0), width) * (gold >= 0)[:, None]
        return DenseTargets(
            logits=targets.logits[flat],
            gold=hot.to(targets.gold.dtype),
            labelled=labelled,
            row=targets.row[flat],
        )
    begins = targets.counts.cumsum(0) - targets.counts
    counts = targets.counts[flat]
    ends = counts.cumsum(0)
    within = torch.arange(int(ends[-1]), device=flat.device) - torch.repeat_interleave(ends - counts, counts)
    part = targets.part(flat, torch.repeat_interleave(begins[flat], counts) + within)
    classes = torch.where(labelled, torch.where(gold >= 0, gold, width - 1), NO_LABEL)
    return replace(part, gold=classes)


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values).copy())
