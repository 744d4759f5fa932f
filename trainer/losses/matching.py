"""Which query of a student answers which of its teacher, or which object: one to one, at the least cost.

A detector's answers are a set: query 3 of a student is not query 3 of its teacher. They are matched in each step, image
by image, by the Hungarian method (scipy's `linear_sum_assignment`), with the cost and the weights of DETR's own matcher
(arXiv:2005.12872): the probability of the class, 5 times the L1 distance of the boxes, 2 times the generalised IoU. A
teacher's query counts as much as it is an object (arXiv:2211.10156): so the surest find theirs first, also where a
student has fewer queries. Cost: `[Q, Q']` numbers an image go to the CPU, once a step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

CLASS, L1, GIOU = 1.0, 5.0, 2.0
"""Weights of a pair's cost."""
_MOST = 64.0
"""More than any pair costs."""
_SMALL = 1e-7


class Boxes(NamedTuple):
    """What box losses are of: the Q queries of a student on B images, with what each is to be."""

    ours: Float[Tensor, "B Q 4"]
    theirs: Float[Tensor, "B Q 4"]
    """The teacher's box of the query that a student's was matched with."""
    weights: Float[Tensor, "B Q"]
    """How much the teacher's is an object; 0 where it was matched with none."""
    gold: Float[Tensor, "B Q 4"]
    is_gold: Bool[Tensor, "B Q"]
    """Which queries were matched with an object of the corpus."""


def corners(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Left, upper, right and lower edge of boxes that are centre, width and height."""
    centre, half = boxes[..., :2], boxes[..., 2:].clamp_min(0) / 2
    return torch.cat([centre - half, centre + half], -1)


def overlap(
    ours: Float[Tensor, "*N 4"], theirs: Float[Tensor, "*N 4"]
) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
    """Intersection over union of pairs of boxes, and generalised (arXiv:1902.09630)."""
    a, b = corners(ours), corners(theirs)
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0)
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    common, hull = inner.prod(-1), outer.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    iou = common / union.clamp_min(_SMALL)
    return iou, iou - (hull - union) / hull.clamp_min(_SMALL)


def paired(
    ours: Float[Tensor, "*B N 4"], theirs: Float[Tensor, "*B M 4"]
) -> tuple[Float[Tensor, "*B N M"], Float[Tensor, "*B N M"]]:
    """The same of each of some boxes with each of others."""
    shape = (*ours.shape[:-1], *theirs.shape[-2:])
    return overlap(ours[..., :, None, :].expand(shape), theirs[..., None, :, :].expand(shape))


def costs(
    classes: Float[Tensor, "*B T C"],
    boxes: Float[Tensor, "*B T 4"],
    student_classes: Float[Tensor, "*B Q C"],
    student_boxes: Float[Tensor, "*B Q 4"],
) -> Float[Tensor, "*B T Q"]:
    """What each pair costs; `classes` are each target's shares of the classes that are objects."""
    of_class = -(classes @ student_classes.transpose(-1, -2))
    distance = (boxes[..., :, None, :] - student_boxes[..., None, :, :]).abs().sum(-1)
    return CLASS * of_class + L1 * distance - GIOU * paired(boxes, student_boxes)[1]


def matched(
    cost: Float[Tensor, "T Q"], weights: Float[Tensor, " T"]
) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]:
    """Targets and queries that go together, as many as the fewer are; of several ways, the one that costs least, each
    target's cost times its weight. Where there are fewer queries, heavy targets come first."""
    weighed = weights[:, None] * (cost - _MOST)
    rows, columns = linear_sum_assignment(weighed.double().nan_to_num(0.0).cpu().numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)
