"""A batch of one image, of which some students cannot learn: found before the first step, not in the middle of a run.

A student with batch norm whose last map is 1 x 1 has one value a channel of one image, and nothing to normalise by:
torch raises in the step. Only an epoch's last step has such a batch, if the batch's size is above 1. Joined with the
batch before it would make a step of other rows than the order says, and left out it would be lost; so it is refused
with a size that leaves none.
"""

from __future__ import annotations

from dataclasses import replace

from schemas.errors import StudentError
from trainer.stream.order import Order
from trainer.stream.replay import Replay, Share
from trainer.students.image_students import fails_alone
from trainer.students.student import Student


def check_lone_images(student: Student, training: Replay, steps: int) -> None:
    """`steps` is how many optimizer steps are taken in all.

    Raises:
        StudentError: a batch will hold one image, and the student cannot be trained on one.
    """
    order, share = training.order, training.share
    if student.pictures is None or not _has_lone(order, share, steps):
        return
    got = fails_alone(student.model, student.pictures)
    if got is None:
        return
    each = share.batches_a_step(order)
    do = "Name another --per_device_train_batch_size"
    for size in (*range(share.batch_size - 1, 1, -1), *range(share.batch_size + 1, 2 * share.batch_size + 8)):
        other, smaller = (
            replace(order, batch_size=size * each * share.world_size),
            replace(share, batch_size=size),
        )
        if not _has_lone(other, smaller, other.num_steps):
            do = f"Say --per_device_train_batch_size {size}, which leaves no such batch"
            break
    raise StudentError(
        f"{type(student.model).__name__} cannot be trained on one image, and a batch will hold one",
        where=f"{order.num_rows} images an epoch in batches of {share.batch_size}",
        got=got,
        do=do,
    )


def _has_lone(order: Order, share: Share, steps: int) -> bool:
    """Whether a batch of any rank holds one image; a step's last batch may have fewer than the others."""
    if share.batch_size == 1:
        return True
    last = order.num_steps - 1
    if steps < order.num_steps:
        return False
    rows = order.step_rows(last)
    ranks = (range(rank, order.lanes, share.world_size) for rank in range(share.world_size))
    held = (sum(len(order.lane_rows(rows, lane)) for lane in lanes) for lanes in ranks)
    return any(number % share.batch_size == 1 for number in held)
