"""The fused head gives the values and gradients that plain autograd gives on whole logits."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from tests.trainer.losses.test_losses import sparse
from trainer.losses.buffers import Buffers, likeliest
from trainer.losses.fused import chunks, fused_loss, suited
from trainer.losses.objective import position_losses
from trainer.losses.targets import _OF_ENTRIES, _OF_POSITIONS, SparseTargets
from trainer.models.heads import Head, LogitTransform

N, H, V, K = 11, 5, 23, 4
NAMES = ("kl", "ce", "mse_logits")
WEIGHTS = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)

TRANSFORMS = {
    "plain": LogitTransform(),
    "multiplied": LogitTransform(multiplier=0.25),
    "capped": LogitTransform(softcap=3.0),
    "both": LogitTransform(multiplier=2.0, softcap=3.0),
}


def targets() -> SparseTargets:
    generator = torch.Generator().manual_seed(0)
    return sparse(torch.randn(N, V, generator=generator, dtype=torch.float64) * 2, K)


def tensors(*, bias: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(N, H), (V, H), *([(V,)] if bias else [])]
    return [torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def terms_of(whole: SparseTargets) -> Callable[[Tensor, int, int], Tensor]:
    def terms(logits: Tensor, first: int, last: int) -> Tensor:
        part = whole.chunk(first, last, slice(first * K, last * K))
        return position_losses(NAMES, logits, part, temperature=1.0, score="softmax").sum(-1)

    return terms


def fused(transform: LogitTransform, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    head = Head(weight=weight, bias=bias, transform=transform)
    return fused_loss(hidden, head, terms_of(targets()), WEIGHTS, chunk_elements=3 * V).loss


def plain(transform: LogitTransform, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    head = Head(weight=weight, bias=bias, transform=transform)
    return (WEIGHTS * terms_of(targets())(head.logits(hidden), 0, N)).sum()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_values_and_gradients_are_those_of_plain_autograd(name: str, bias: bool) -> None:
    ours, theirs = tensors(bias=bias), tensors(bias=bias)
    a, b = fused(TRANSFORMS[name], *ours), plain(TRANSFORMS[name], *theirs)
    torch.testing.assert_close(a, b)
    (3 * a).backward()
    (3 * b).backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradcheck(name: str) -> None:
    assert torch.autograd.gradcheck(
        lambda *inputs: fused(TRANSFORMS[name], *inputs), tensors(bias=True), atol=1e-5
    )


def test_tied_weights_gather_both_gradients() -> None:
    """The embedding and the head are one parameter: its gradient is the sum of both uses."""
    grads = []
    for loss in (fused, plain):
        weight = tensors(bias=False)[1].detach().requires_grad_()
        hidden = weight[torch.arange(N)] * 2
        loss(LogitTransform(), hidden, weight).backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads)


def test_a_frozen_head_takes_no_gradient() -> None:
    hidden, weight = tensors(bias=False)
    weight.requires_grad_(False)
    fused(LogitTransform(), hidden, weight).backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_without_gradient_nothing_is_stored() -> None:
    with torch.no_grad():
        loss = fused(LogitTransform(), *tensors(bias=False))
    assert not loss.requires_grad


def test_autocast_computes_products_in_bfloat16_and_losses_in_float32() -> None:
    hidden, weight = tensors(bias=False, dtype=torch.float32)
    exact = fused(LogitTransform(), hidden, weight)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused(LogitTransform(), hidden, weight)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)
    assert loss != exact


@pytest.mark.parametrize("number", [0, 1, 2, 6, 7, 100])
def test_chunks_cover_every_position_once(number: int) -> None:
    found = list(chunks(number, V, 3 * V))
    assert [i for first, last in found for i in range(first, last)] == list(range(number))
    assert all(last - first <= 3 for first, last in found)


def test_no_position_is_no_loss() -> None:
    hidden, weight = tensors(bias=False)
    empty = targets().chunk(0, 0, slice(0, 0))
    head = Head(weight=weight, bias=None, transform=LogitTransform())
    found = fused_loss(hidden[:0], head, terms_of(empty), WEIGHTS)
    found.loss.backward()
    assert found.loss == 0
    assert not weight.grad.any()


def test_in_float16_a_mean_over_many_positions_keeps_its_gradient() -> None:
    """A loss scaler multiplies what the forward has stored by then."""
    grads = []
    for cast in (False, True):
        generator = torch.Generator().manual_seed(2)
        hidden, weight = (torch.randn(*shape, generator=generator) for shape in ((N, 16), (V, 16)))
        hidden.requires_grad_()
        weight.mul_(0.2).requires_grad_()
        head = Head(weight=weight, bias=None, transform=LogitTransform())
        with torch.autocast("cpu", torch.float16, enabled=cast):
            found = fused_loss(hidden, head, terms_of(targets()), torch.tensor([1.0, 0.5, 0.1]) / 2**20)
        (found.loss * 2**16).backward()
        grads.append((hidden.grad, weight.grad))
    for exact, half in zip(*grads, strict=True):
        assert (half - exact).norm() < 2e-3 * exact.norm()


def test_in_float16_the_heads_gradient_is_summed_over_more_than_float16_has_room_for() -> None:
    """At a temperature's square, of positions that all pull alike, until the loss divides by their number."""
    number, whole, grads = 4096, targets().chunk(0, 1, slice(0, K)), []

    def terms(logits: Tensor, first: int, last: int) -> Tensor:
        every = position_losses(
            ("kl",), logits[:1].expand(1, -1), whole, temperature=4.0, score="softmax"
        ).sum(-1)
        return every * 16 + logits[:, 0].sum() * 16

    for cast in (False, True):
        hidden = torch.full((number, 16), 2.0)
        weight = torch.zeros(V, 16, requires_grad=True)
        head = Head(weight=weight, bias=None, transform=LogitTransform())
        with torch.autocast("cpu", torch.float16, enabled=cast):
            found = fused_loss(hidden, head, terms, torch.tensor([1.0]) / number)
        (found.loss * 2**4).backward()
        grads.append(weight.grad)
    assert grads[0].isfinite().all()
    torch.testing.assert_close(grads[1], grads[0], rtol=2e-3, atol=1e-2)


def test_of_a_single_backward_pass_what_is_held_becomes_the_gradient() -> None:
    """With another factor than 1; and a second pass is an error, never a wrong gradient."""
    grads = []
    for single in (False, True):
        hidden, weight = tensors(bias=False)
        head = Head(weight=weight, bias=None, transform=LogitTransform())
        found = fused_loss(
            hidden, head, terms_of(targets()), WEIGHTS, chunk_elements=3 * V, single=single
        ).loss
        (found * 3).backward(retain_graph=True)
        grads.append((hidden.grad.clone(), weight.grad.clone()))
    torch.testing.assert_close(*grads)
    with pytest.raises(RuntimeError, match="backward pass already"):
        found.backward()


def test_without_a_limit_a_chunk_suits_the_processor() -> None:
    """No larger than caches hold, where the vocabulary allows it, and never a few positions."""
    positions = [suited(v, torch.device("cpu")) // v for v in (257, 4096, 49152, 128256, 262144)]
    assert positions == [3315, 208, 256, 256, 128]
    assert suited(4096, torch.device("cuda")) == 2**24


@pytest.mark.parametrize("width", [5, 512, 700, 1024])
def test_the_likeliest_id_is_the_first_of_the_largest(width: int) -> None:
    values = torch.randint(9, (64, width), generator=torch.Generator().manual_seed(0)).float()
    values[0] = -torch.inf
    values[1, -1] = 20.0
    top, best = likeliest(values)
    assert torch.equal(best, values.argmax(-1, keepdim=True))
    assert torch.equal(top, values.amax(-1, keepdim=True))


def test_memory_that_is_taken_again_is_the_same_where_it_suffices() -> None:
    buffers, large = Buffers(), torch.empty(4, 6)
    first = buffers.like("a", large)
    assert buffers.like("a", large[:2]).data_ptr() == first.data_ptr()
    assert buffers.like("b", large).data_ptr() != first.data_ptr()
    assert buffers.like("a", large.double()).dtype == torch.float64
    assert buffers.of("a", (5, 6), large.double()).shape == (5, 6)


def test_a_part_of_targets_has_every_field_of_the_whole() -> None:
    """Also one that is added later: it is of entries or of positions, or the same for all."""
    known = {*_OF_ENTRIES, *_OF_POSITIONS, "drawn"}
    assert known == {field.name for field in fields(SparseTargets)}
