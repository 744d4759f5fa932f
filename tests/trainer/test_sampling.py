"""A cache that draws its entries costs a student no bias: through collation and the fused loss, the expectation over
all draws is the dense gradient; and what would bias it (dividing by the sum, weighing otherwise) is seen here."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import StudentError
from schemas.policies import KeepPolicy, Sampled, Threshold, TopK
from schemas.rows import Rows
from schemas.spec import Spec
from tests.trainer.caches import causal_spec, write_cache
from tests.trainer.draws import (
    Position,
    drawn_by_sampling,
    drawn_by_threshold,
    every_draw,
    log_softmax,
    rows_of,
)
from tests.trainer.tiny import VOCAB, make_llama, random_examples
from trainer.batches import Batch, Collation
from trainer.bias import bias_lines
from trainer.evaluation import EvaluateConfig, evaluate
from trainer.fused import fused_loss
from trainer.heads import Head, LogitTransform
from trainer.losses import SparseTargets, kl_divergence, kl_of_kept, squared_error
from trainer.metrics import first_ids
from trainer.objective import Objective, position_losses

FINE = {"code_step_nats": 2**-11, "top_step_nats": 2**-13, "scalar_step_nats": 2**-13}
"""Steps so small that rounding is far below the bounds here."""

SMALL = 12


def sampling_spec(keep: KeepPolicy, vocab_size: int = SMALL, **changes: Any) -> Spec:
    values = {
        "vocab_size": vocab_size,
        "temperatures": (1.0,),
        "features": (),
        "scalars": ("entropy", "gold"),
    }
    return causal_spec(keep, **(values | FINE | changes))


def shaped(scale: float, vocab_size: int = SMALL) -> np.ndarray:
    """Flat at 0.3, middling at 1.5, peaked at 4."""
    return np.random.default_rng(5).normal(size=vocab_size) * scale


def rows_of_draws(logits: np.ndarray, draws: list[Position], spec: Spec) -> Rows:
    """One position a row: the first token is the draw's number, because rows stand in the order of their ids."""
    examples = [np.array([number, 3], np.int32) for number in range(len(draws))]
    return rows_of(examples, np.tile(logits, (len(draws), 1)), draws, spec)


def fused_gradient(batch: Batch, weights: Tensor, hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """The gradient in the head's weights of the weighted sum of the positions' KL, in chunks of three positions."""
    head = head.clone().requires_grad_()

    def terms(logits: Tensor, first: int, last: int) -> Tensor:
        entries = slice(int(batch.entry_offsets[first]), int(batch.entry_offsets[last]))
        assert isinstance(batch.targets, SparseTargets)
        part = batch.targets.chunk(first, last, entries)
        found = position_losses(["kl"], logits, part, temperature=temperature, score="softmax")
        return (found * weights[first:last]).sum(-1)

    states = hidden.expand(len(batch.row), -1)
    one = torch.ones(1, dtype=torch.float64)
    whole = Head(weight=head, bias=None, transform=LogitTransform())
    fused_loss(states, whole, terms, one, chunk_elements=3 * len(head)).loss.backward()
    assert head.grad is not None
    return head.grad


def dense_gradient(logits: np.ndarray, hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    head = head.clone().requires_grad_()
    teacher = (torch.from_numpy(logits) / temperature).log_softmax(-1)
    student = (hidden @ head.t() / temperature).log_softmax(-1)
    loss = (teacher.exp() * (teacher - student)).sum() * temperature**2
    (grad,) = torch.autograd.grad(loss, head)
    return grad


def student_of(vocab_size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((1, 4), (vocab_size, 4))
    hidden, head = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    return hidden, head


def expectation_of(rows: Rows, shares: np.ndarray, temperature: float, change: Any = lambda b: b) -> Tensor:
    batch = Collation(student_vocab=rows.spec.vocab_size, pad_id=0, temperature=temperature).batch(rows)
    weights = torch.from_numpy(shares[batch.input_ids[:, 0].numpy()])
    return fused_gradient(change(batch), weights, *student_of(rows.spec.vocab_size), temperature)


CASES = [
    (scale, tau, k, temperatures)
    for scale in (0.3, 1.5, 4.0)
    for tau, k in ((1 / 4, 1), (1 / 8, 1), (1 / 8, 5))
    for temperatures in ((1.0,), (1.0, 2.0))
]


def enumerated(scale: float, tau: float, k: int, temperatures: tuple[float, ...]) -> tuple[Rows, np.ndarray]:
    warm = len(temperatures) > 1
    scalars = ("entropy", "gold", "logsumexp") if warm else ("entropy", "gold")
    keep = Threshold(tau=tau, k=k)
    spec = sampling_spec(keep, temperatures=temperatures, own_logits=warm, scalars=scalars)
    draws, shares = every_draw(shaped(scale), spec)
    return rows_of_draws(shaped(scale), draws, spec), shares


@pytest.mark.parametrize(("scale", "tau", "k", "temperatures"), CASES)
def test_the_expected_gradient_of_threshold_is_the_dense_one(
    scale: float, tau: float, k: int, temperatures: tuple[float, ...]
) -> None:
    rows, shares = enumerated(scale, tau, k, temperatures)
    for temperature in temperatures:
        found = expectation_of(rows, shares, temperature)
        dense = dense_gradient(shaped(scale), *student_of(SMALL), temperature)
        torch.testing.assert_close(found, dense, atol=1e-3, rtol=0)


def test_dividing_by_the_sum_would_be_seen() -> None:
    rows, shares = enumerated(1.5, 1 / 4, 1, (1.0,))

    def divided(batch: Batch) -> Batch:
        targets = batch.targets
        assert isinstance(targets, SparseTargets)
        mass = torch.zeros(len(targets.tail)).index_add(0, targets.position, targets.weights)
        weights = targets.weights / mass[targets.position]
        return replace(batch, targets=replace(targets, weights=weights))

    dense = dense_gradient(shaped(1.5), *student_of(SMALL), 1.0)
    wrong = expectation_of(rows, shares, 1.0, divided)
    assert (wrong - dense).abs().max() > 1e-2


def test_the_expected_gradient_of_draws_is_the_dense_one() -> None:
    """All 5^3 sequences of 3 draws from 5 ids, each with its probability."""
    spec, logits = sampling_spec(Sampled(n=3), 5), shaped(1.0, 5)
    sequences = list(itertools.product(range(5), repeat=3))
    probs = np.exp(log_softmax(logits))
    shares = np.array([probs[list(s)].prod() for s in sequences])
    draws = [Position([], sorted(set(s)), [s.count(i) for i in sorted(set(s))]) for s in sequences]
    found = expectation_of(rows_of_draws(logits, draws, spec), shares, 1.0)
    torch.testing.assert_close(found, dense_gradient(logits, *student_of(5), 1.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "is_kl"),
    [
        ({}, True),
        ({"scalars": ("gold",), "own_logits": True}, True),
        ({"scalars": ("gold",)}, False),
    ],
)
def test_the_expected_value_is_the_kl_where_the_entropy_is_known(
    changes: dict[str, Any], is_kl: bool
) -> None:
    """It is the cross entropy where it is not."""
    logits, spec = shaped(1.5), sampling_spec(Threshold(tau=1 / 4), **changes)
    draws, shares = every_draw(logits, spec)
    batch = Collation(student_vocab=SMALL, pad_id=0).batch(rows_of_draws(logits, draws, spec))
    student = torch.from_numpy(shaped(1.0)[::-1].copy())
    assert isinstance(batch.targets, SparseTargets)
    each = kl_divergence(student.expand(len(draws), -1), batch.targets, 1.0)
    found = (each * torch.from_numpy(shares[batch.input_ids[:, 0].numpy()])).sum().item()
    teacher = torch.from_numpy(logits).log_softmax(-1)
    cross = -(teacher.exp() * student.log_softmax(-1)).sum().item()
    kl = cross + (teacher.exp() * teacher).sum().item()
    assert found == pytest.approx(kl if is_kl else cross, abs=1e-3)


def test_the_gradient_is_that_of_the_weights_as_they_are() -> None:
    """`W q - w`, whatever W is."""
    weights = torch.tensor([0.7, 0.25, 0.25, 0.125], dtype=torch.float64)
    targets = SparseTargets(
        ids=torch.tensor([4, 0, 2, 2]),
        position=torch.tensor([0, 0, 0, 1]),
        weights=weights,
        logprobs=weights.log(),
        logits=None,
        tail=torch.zeros(2),
        negentropy=torch.zeros(2),
        gold=torch.zeros(2, dtype=torch.int64),
    )
    z = torch.from_numpy(shaped(1.5).reshape(2, 6)).requires_grad_()
    kl_divergence(z, targets, 1.0).sum().backward()
    dense = torch.zeros(2, 6, dtype=torch.float64)
    dense[targets.position, targets.ids] = weights
    expected = dense.sum(1, keepdim=True) * z.detach().softmax(-1) - dense
    torch.testing.assert_close(z.grad, expected)
    assert torch.autograd.gradcheck(lambda y: kl_divergence(y, targets, 2.0), z)


def test_a_threshold_that_keeps_all_is_dense() -> None:
    logits, student = shaped(1.5), torch.from_numpy(shaped(1.0)[::-1].copy())[None]
    spec = sampling_spec(Threshold(tau=1 / 4, k=SMALL))
    draws, shares = every_draw(logits, spec)
    assert len(shares) == 1
    batch = Collation(student_vocab=SMALL, pad_id=0).batch(rows_of_draws(logits, draws, spec))
    assert isinstance(batch.targets, SparseTargets)
    teacher = torch.from_numpy(logits).log_softmax(-1)
    dense = (teacher.exp() * (teacher - student.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(kl_divergence(student, batch.targets, 1.0), dense, atol=1e-3, rtol=0)


def test_what_the_student_lacks_is_left_out_and_counted() -> None:
    rows, _ = enumerated(0.3, 1 / 8, 1, (1.0, 2.0))
    whole, cut = (Collation(student_vocab=v, pad_id=0).batch(rows) for v in (SMALL, 7))
    a, b = whole.targets, cut.targets
    assert isinstance(a, SparseTargets)
    assert isinstance(b, SparseTargets)
    torch.testing.assert_close(b.weights, a.weights[a.ids < 7])
    assert cut.beyond == pytest.approx(a.weights[a.ids >= 7].sum().item(), rel=1e-5)
    assert not b.tail.any()
    assert b.weights.isfinite().all()
    assert b.logprobs.isfinite().all()


def test_a_batch_carries_weights_and_own_logprobs() -> None:
    logits = shaped(1.5)
    for own in (False, True):
        spec = sampling_spec(Threshold(tau=1 / 4), own_logits=own)
        draws, _ = every_draw(logits, spec)
        rows = rows_of_draws(logits, draws, spec)
        targets = Collation(student_vocab=SMALL, pad_id=0).batch(rows).targets
        assert isinstance(targets, SparseTargets)
        is_drawn = targets.weights == 1 / 4
        assert is_drawn.sum() == sum(len(d.drawn) for d in draws)
        known = targets.logprobs[~is_drawn] if not own else targets.logprobs
        ids = targets.ids[~is_drawn] if not own else targets.ids
        expected = torch.from_numpy(log_softmax(logits)).float()[ids]
        torch.testing.assert_close(known, expected, atol=1e-3, rtol=0)
        assert own or targets.logprobs[is_drawn].isnan().all()


def some_rows(keep: KeepPolicy, examples: int = 6, **changes: Any) -> Rows:
    """Rows of several positions with V = 200."""
    spec, rng = sampling_spec(keep, VOCAB, **changes), np.random.default_rng(3)
    texts = random_examples(examples)
    logits = rng.normal(size=(sum(len(t) - 1 for t in texts), VOCAB)) * 3
    draws = [
        drawn_by_sampling(z, spec, rng)
        if isinstance(keep, Sampled)
        else drawn_by_threshold(z, spec, rng.random())
        for z in logits
    ]
    return rows_of(texts, logits, draws, spec)


def test_the_first_id_is_the_likeliest() -> None:
    """Of counts the largest; of a threshold cache the top one, also where a drawn entry weighs more."""
    rows = some_rows(Sampled(n=50))
    targets = Collation(student_vocab=VOCAB, pad_id=0).batch(rows).targets
    assert isinstance(targets, SparseTargets)
    best = torch.zeros(len(targets.tail)).scatter_reduce(0, targets.position, targets.weights, "amax")
    triples = zip(targets.position.tolist(), targets.ids.tolist(), targets.weights.tolist(), strict=True)
    weight_of = {(n, i): weight for n, i, weight in triples}
    assert [weight_of[n, i] for n, i in enumerate(first_ids(targets).tolist())] == best.tolist()
    flat, _ = enumerated(0.3, 1 / 4, 1, (1.0,))
    targets = Collation(student_vocab=SMALL, pad_id=0).batch(flat).targets
    assert isinstance(targets, SparseTargets)
    assert targets.weights.max() > targets.weights[0]
    assert set(first_ids(targets).tolist()) == {int(shaped(0.3).argmax())}


def test_squared_error_goes_over_the_logits_that_are_known() -> None:
    student = torch.randn(2, VOCAB, dtype=torch.float64, requires_grad=True)
    rows = some_rows(Threshold(tau=1 / 8), examples=1, scalars=("entropy", "gold", "logsumexp"))
    targets = Collation(student_vocab=VOCAB, pad_id=0).batch(rows).targets
    assert isinstance(targets, SparseTargets)
    assert targets.logits is not None
    known = ~targets.logits.isnan()
    assert 0 < known.sum() < len(known)
    z = student[:1].expand(len(targets.tail), -1)
    squared_error(z, targets).sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    n = targets.position[known]
    difference = (z[n, targets.ids[known]] - targets.logits[known]).square()
    means = [difference[n == i].mean() for i in range(len(targets.tail))]
    torch.testing.assert_close(squared_error(z, targets), torch.stack(means))


def test_an_undeclared_temperature_is_refused() -> None:
    spec = sampling_spec(Threshold(tau=1 / 8))
    for losses in (["kl"], ["ce"]):
        with pytest.raises(StudentError, match="--temperatures 1 2"):
            Objective.parse(losses, 2.0).check(spec)
    rows, _ = enumerated(1.5, 1 / 4, 1, (1.0,))
    with pytest.raises(ValueError, match="not 2"):
        Collation(student_vocab=SMALL, pad_id=0, temperature=2.0).batch(rows)


def test_what_draws_cannot_serve_is_refused() -> None:
    scalars = ("entropy", "gold", "logsumexp")
    draws, threshold = (sampling_spec(k, scalars=scalars) for k in (Sampled(n=5), Threshold(tau=1 / 8)))
    with pytest.raises(StudentError, match="--own_logits"):
        Objective.parse(["mse_logits"]).check(draws)
    Objective.parse(["mse_logits"]).check(threshold)
    Objective.parse(["mse_logits"]).check(sampling_spec(Sampled(n=5), scalars=scalars, own_logits=True))
    for spec in (draws, threshold):
        with pytest.raises(StudentError, match="needs no division"):
            Objective.parse(["kl_kept"]).check(spec)


def test_kl_of_kept_is_that_of_a_cut_teacher_to_the_whole_student() -> None:
    teacher, student = (torch.from_numpy(shaped(s)[None]) for s in (1.5, 1.0))
    ids = teacher.argsort(-1, descending=True)[0, :4]
    weights = teacher.softmax(-1)[0, ids]
    targets = SparseTargets(
        ids=ids,
        position=torch.zeros(4, dtype=torch.int64),
        weights=weights,
        logprobs=weights.log(),
        logits=None,
        tail=1 - weights.sum()[None],
        negentropy=torch.zeros(1),
        gold=torch.zeros(1, dtype=torch.int64),
    )
    share = weights / weights.sum()
    dense = (share * (share.log() - student.log_softmax(-1)[0, ids])).sum()
    torch.testing.assert_close(kl_of_kept(student, targets, 1.0)[0], dense)
    Objective.parse(["kl_kept"], 3.0).check(causal_spec(TopK(k=4)))


@pytest.mark.parametrize(
    ("keep", "changes", "loss", "said"),
    [
        (Threshold(tau=1 / 16), {}, "kl", "kl from threshold:0.0625,k=1: unbiased"),
        (Sampled(n=50), {}, "kl", "kl from sampled:50: unbiased"),
        (Sampled(n=50), {"scalars": ()}, "kl", "kl from sampled:50: unbiased; its value is a cross entropy"),
        (TopK(k=8), {}, "kl", "kl from top_k:8: biased by the tail's shape"),
        (TopK(k=8), {}, "kl_kept", "kl_kept from top_k:8: biased, as if"),
        (Threshold(tau=1 / 16), {}, "mse_logits", "over the exact entries alone"),
        (TopK(k=8), {}, "ce", "from the corpus's own labels"),
    ],
)
def test_each_loss_says_what_is_unbiased(
    keep: KeepPolicy, changes: dict[str, Any], loss: str, said: str
) -> None:
    (line,) = bias_lines(Objective.parse([loss]), sampling_spec(keep, VOCAB, **changes))
    assert said in line


@pytest.mark.parametrize("keep", [Threshold(tau=1 / 8), Sampled(n=13)])
def test_a_student_learns_from_draws_and_is_measured(
    run: Callable[..., Path], tmp_path: Path, keep: KeepPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    """Through shards on disk; without the entropy what is measured has another name."""
    cache = write_cache(tmp_path / "cache", some_rows(keep, 60, scalars=("gold",)))
    with caplog.at_level(logging.INFO, logger="trainer"):
        student = run(cache=cache, eval_strategy="steps", eval_steps=11)
    assert [r.message for r in caplog.records if "unbiased" in r.message] == bias_lines(
        Objective.parse(["kl"]), cache.spec
    )
    config = EvaluateConfig(
        cache=cache.storage.root, student=str(student), batch_size=8, speed_seconds=0.0, device="cpu"
    )
    metrics = evaluate(config).metrics
    assert "kl_nats" not in metrics
    assert metrics["cross_entropy_with_teacher_nats"] > 1
    whole = write_cache(tmp_path / "with-entropy", some_rows(keep, 60))
    found = evaluate(
        replace(config, cache=whole.storage.root, student=make_llama(tmp_path / "other"))
    ).metrics
    assert found["kl_nats"] > 0
