"""Queries are matched as DETR matches them, and losses on matched queries are those of the pairs alone."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
import torchvision

from trainer.batches.batch import Batch
from trainer.batches.detections import Detections, placed
from trainer.losses.boxes import LOSSES
from trainer.losses.divergences import binary_kl_divergence, kl_divergence
from trainer.losses.matching import Boxes, corners, costs, matched, overlap, paired
from trainer.losses.targets import NO_LABEL, DenseTargets, SparseTargets

IMAGES, CLASSES = 3, 4
OF_TEACHER, OF_CORPUS = LOSSES


def boxes_of(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, 4, generator=generator) * 0.8 + 0.1


def detr_cost(share, box, probs, theirs):
    """One pair's, in the words of the paper."""
    own, other = (torchvision.ops.box_convert(one[None], "cxcywh", "xyxy") for one in (box, theirs))
    giou = torchvision.ops.generalized_box_iou(own, other)[0, 0]
    return -(share * probs).sum() + 5 * (box - theirs).abs().sum() - 2 * giou


def test_overlaps_are_torchvisions():
    ours, theirs = boxes_of(7), boxes_of(5, seed=1)
    iou, giou = paired(ours, theirs)
    torch.testing.assert_close(iou, torchvision.ops.box_iou(corners(ours), corners(theirs)))
    torch.testing.assert_close(giou, torchvision.ops.generalized_box_iou(corners(ours), corners(theirs)))
    same = overlap(ours, ours)
    torch.testing.assert_close(torch.stack(same), torch.ones(2, 7))
    assert all(part.isfinite().all() for part in overlap(torch.zeros(1, 4), torch.zeros(1, 4)))


def test_the_cheapest_of_all_ways_is_found():
    for seed in range(20):
        shares = torch.rand(4, CLASSES, generator=torch.Generator().manual_seed(seed)).softmax(-1)
        probs = torch.rand(5, CLASSES, generator=torch.Generator().manual_seed(99 + seed)).softmax(-1)
        ours, theirs = boxes_of(4, seed=seed), boxes_of(5, seed=50 + seed)
        weights = torch.rand(4, generator=torch.Generator().manual_seed(seed + 7))
        cost = costs(shares, ours, probs, theirs)
        each = [[detr_cost(shares[i], ours[i], probs[j], theirs[j]) for j in range(5)] for i in range(4)]
        torch.testing.assert_close(cost, torch.tensor(each))
        rows, columns = matched(cost, weights)
        assert rows.tolist() == [0, 1, 2, 3]
        total = (weights * cost[rows, columns]).sum().item()
        least = min((weights * cost[range(4), way]).sum().item() for way in permutations(range(5), 4))
        assert total == pytest.approx(least, abs=1e-4)


def test_where_there_are_fewer_queries_the_surest_objects_are_matched():
    weights = torch.tensor([0.1, 0.9, 0.2, 0.8])
    cost = costs(torch.ones(4, 1), boxes_of(4), torch.ones(2, 1), boxes_of(2, seed=3))
    assert sorted(matched(cost, weights)[0].tolist()) == [1, 3]


def sparse(logits):
    """Whole distributions, likeliest first, as a cache has them."""
    logprobs, ids = logits.log_softmax(-1).sort(-1, descending=True)
    number, width = logits.shape
    return SparseTargets(
        kept_ids=ids.flatten().int(),
        counts=torch.full((number,), width),
        weights=logprobs.exp().flatten(),
        logprobs=logprobs.flatten(),
        logits=None,
        tail=torch.zeros(number),
        negentropy=(logprobs.exp() * logprobs).sum(-1),
        gold=torch.full((number,), NO_LABEL),
    )


def batch_of(logits, boxes, *, softmax=True, objects=((0, 2, 0.2), (0, 1, 0.6), (2, 0, 0.4))):
    """A batch in which the first and the last image have objects, and of the second nothing is known."""
    images, queries, width = logits.shape
    number = images * queries
    row = torch.arange(images).repeat_interleave(queries)
    flat = logits.reshape(number, width)
    dense = DenseTargets(
        logits=flat, gold=torch.zeros_like(flat), labelled=torch.ones(number).bool(), row=row.clone()
    )
    rows, classes, places = zip(*objects, strict=True)
    told = Detections(
        boxes=boxes,
        known=torch.tensor([1, 0, 1]),
        object_row=torch.tensor(rows),
        object_class=torch.tensor(classes),
        object_box=torch.tensor([[place, place, 0.2, 0.2] for place in places]),
    )
    return Batch(
        input_ids=torch.zeros(images, 1, dtype=torch.int64),
        attention_mask=torch.ones(images, 1, dtype=torch.int64),
        token_type_ids=None,
        row=row,
        token=torch.arange(queries).repeat(images),
        targets=sparse(flat) if softmax else dense,
        features=(),
        example_keys=torch.arange(images),
        counts=torch.tensor([number, 2 * queries, images]),
        entry_offsets=torch.arange(0, number * width + 1, width).numpy(),
        beyond=None,
        detections=told,
    )


def answers(queries, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(IMAGES, queries, CLASSES, generator=generator)
    return logits, boxes_of(IMAGES, queries, seed=seed + 1)


@pytest.mark.parametrize("softmax", [True, False])
def test_a_student_that_says_the_same_in_another_order_has_nothing_to_learn(softmax):
    logits, boxes = answers(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(5))
    batch = batch_of(logits, boxes, softmax=softmax)
    fields, found = placed(batch, logits[:, order], boxes[:, order])
    moved = replace(batch, **fields)
    own = moved.at_positions(logits[:, order])
    if softmax:
        # as far as a query is an object, it finds itself
        loss = kl_divergence(own, moved.targets, 1.0).view(IMAGES, 6) * found.weights
    else:
        loss = binary_kl_divergence(own, moved.targets.logits, 1.0).view(IMAGES, 6) * found.weights
    assert loss.abs().max() < 1e-4
    assert OF_TEACHER.boxes(found, OF_TEACHER.defaults).abs().max() < 1e-5


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("queries", [4, 6, 9])
def test_each_query_has_the_targets_of_its_pair(queries, softmax):
    """One after the other, in plain loops; with as many queries as the teacher, fewer, and more."""
    logits, boxes = answers(6)
    own, ours = answers(queries, seed=20)
    batch = batch_of(logits, boxes, softmax=softmax)
    fields, found = placed(batch, own, ours)
    moved = replace(batch, **fields)
    assert (len(moved.row), moved.row.tolist()[:: max(1, queries)]) == (IMAGES * queries, [0, 1, 2])
    p = logits.softmax(-1)[..., :-1] if softmax else logits.sigmoid()
    q = own.softmax(-1)[..., :-1] if softmax else own.sigmoid()
    w = p.sum(-1) if softmax else p.amax(-1)
    for image in range(IMAGES):
        pairs = costs(p[image] / p[image].sum(-1, keepdim=True), boxes[image], q[image], ours[image])
        rows, columns = matched(pairs, w[image])
        of = dict(zip(columns.tolist(), rows.tolist(), strict=True))
        for query in range(queries):
            teacher = of.get(query, int(w[image].argmin()))
            at, other = image * queries + query, image * 6 + teacher
            if softmax:
                part = moved.targets.part(slice(at, at + 1), slice(at * CLASSES, (at + 1) * CLASSES))
                whole = torch.zeros(CLASSES).index_put((part.ids,), part.weights)
                torch.testing.assert_close(whole, logits[image, teacher].softmax(-1))
                assert part.negentropy.item() == batch.targets.negentropy[other].item()
            else:
                assert torch.equal(moved.targets.logits[at], logits[image, teacher])
            assert torch.equal(found.theirs[image, query], boxes[image, teacher])
            assert found.weights[image, query].item() == pytest.approx(
                w[image, teacher].item() if query in of else 0.0
            )
    every = moved.at_positions(own)
    assert torch.equal(every.view(IMAGES, queries, CLASSES), own)


@pytest.mark.parametrize("softmax", [True, False])
def test_objects_are_gold_where_they_are_known(softmax):
    logits, boxes = answers(6)
    own, ours = answers(5, seed=30)
    fields, found = placed(batch_of(logits, boxes, softmax=softmax), own, ours)
    targets = fields["targets"]
    assert found.is_gold.sum(1).tolist() == [2, 0, 1]
    q = own.softmax(-1)[..., :-1] if softmax else own.sigmoid()
    hot = torch.zeros(2, q.shape[-1])
    hot[0, 2] = hot[1, 1] = 1
    places = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.6, 0.6, 0.2, 0.2]])
    _, columns = matched(costs(hot, places, q[0], ours[0]), torch.ones(2))
    for place, (column, label) in enumerate(zip(columns.tolist(), (2, 1), strict=True)):
        assert torch.equal(found.gold[0, column], places[place])
        if softmax:
            assert targets.gold[column] == label
        else:
            assert targets.gold[column].tolist() == [float(n == label) for n in range(CLASSES)]
    if softmax:
        gold = targets.gold.view(IMAGES, 5)
        assert (gold[1] == NO_LABEL).all()
        assert (gold[[0, 2]][~found.is_gold[[0, 2]]] == CLASSES - 1).all(), "no object"
    else:
        assert targets.labelled.view(IMAGES, 5).all(1).tolist() == [True, False, True]
        assert targets.gold.view(IMAGES, 5, CLASSES)[1].sum() == 0


def test_box_losses_are_what_their_formulas_say():
    ours, theirs = boxes_of(2, 3), boxes_of(2, 3, seed=9)
    weights = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.1, 0.0]])
    is_gold = torch.tensor([[True, False, True], [False, False, False]])
    found = Boxes(ours.requires_grad_(), theirs, weights, theirs.flip(1), is_gold)
    for loss, target, own in ((OF_TEACHER, theirs, weights), (OF_CORPUS, theirs.flip(1), is_gold.float())):
        value = loss.boxes(found, {"l1": 3.0, "giou": 4.0})
        for image in range(2):
            giou = torch.diag(
                torchvision.ops.generalized_box_iou(corners(ours[image]), corners(target[image]))
            )
            each = 3 * (ours[image] - target[image]).abs().sum(-1) + 4 * (1 - giou)
            expected = (own[image] * each).sum() / max(1.0, own[image].sum().item())
            torch.testing.assert_close(value[image], expected)
        (gradient,) = torch.autograd.grad(value.sum(), ours)
        assert gradient.isfinite().all()
        assert (gradient.abs().sum(-1) > 0).equal(own > 0)
