"""What a batch of drawn entries carries, what it can serve, what is refused, and what each loss says of itself."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import StudentError
from schemas.policies import KeepPolicy, Sampled, Threshold, TopK
from tests.trainer.caches import causal_spec, write_cache
from tests.trainer.draws import (
    SMALL,
    enumerated,
    every_draw,
    log_softmax,
    rows_of_draws,
    sampling_spec,
    shaped,
    some_rows,
)
from tests.trainer.tiny import VOCAB, make_llama
from trainer.batches.collate import Collation
from trainer.evaluation.evaluation import EvaluateConfig, evaluate
from trainer.losses.objective import Objective, position_losses
from trainer.losses.targets import SparseTargets, first_ids
from trainer.losses.unbiasedness import bias_lines


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
    (found,) = position_losses(["mse_logits"], z, targets, temperature=1.0, score="softmax")
    found.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    n = targets.position[known]
    difference = (z[n, targets.ids[known]] - targets.logits[known]).square()
    means = [difference[n == i].mean() for i in range(len(targets.tail))]
    torch.testing.assert_close(found, torch.stack(means))


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
        counts=torch.tensor([4]),
        weights=weights,
        logprobs=weights.log(),
        logits=None,
        tail=1 - weights.sum()[None],
        negentropy=torch.zeros(1),
        gold=torch.zeros(1, dtype=torch.int64),
    )
    share = weights / weights.sum()
    dense = (share * (share.log() - student.log_softmax(-1)[0, ids])).sum()
    (found,) = position_losses(["kl_kept"], student, targets, temperature=1.0, score="softmax")
    torch.testing.assert_close(found[0], dense)
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
    (line,) = bias_lines(Objective.parse([loss]), sampling_spec(keep, VOCAB, **changes), VOCAB)
    assert said in line


@pytest.mark.parametrize("own_logits", [False, True])
@pytest.mark.parametrize("keep", [Threshold(tau=1 / 8), Sampled(n=13)])
def test_what_is_said_of_a_student_that_lacks_ids_is_so(keep: KeepPolicy, own_logits: bool) -> None:
    """It learns without them; and the entropy that is stored is not that of the ids that it has."""
    rows, fewer = some_rows(keep, own_logits=own_logits), VOCAB // 2
    whole, line = (bias_lines(Objective.parse(["kl"]), rows.spec, v)[0] for v in (VOCAB, fewer))
    assert whole.endswith(": unbiased")
    all_ids, some = (Collation(student_vocab=v, pad_id=0).batch(rows).targets for v in (VOCAB, fewer))
    assert isinstance(all_ids, SparseTargets)
    assert isinstance(some, SparseTargets)
    assert all_ids.negentropy.abs().min() > 0
    assert "unbiased, over the 100 ids that the student has" in line
    has = all_ids.ids < fewer
    assert 0 < has.sum() < len(has)
    assert some.ids.tolist() == all_ids.ids[has].tolist()
    assert some.weights.tolist() == all_ids.weights[has].tolist()
    assert not some.tail.any()
    assert ("its value is a cross entropy" in line) is not bool(some.negentropy.any())


@pytest.mark.parametrize("keep", [Threshold(tau=1 / 8), Sampled(n=13)])
def test_a_student_learns_from_draws_and_is_measured(
    run: Callable[..., Path], tmp_path: Path, keep: KeepPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    """Through shards on disk; without the entropy what is measured has another name."""
    cache = write_cache(tmp_path / "cache", some_rows(keep, 60, scalars=("gold",)))
    with caplog.at_level(logging.INFO, logger="trainer"):
        student = run(cache=cache, eval_strategy="steps", eval_steps=11)
    assert [r.message for r in caplog.records if "unbiased" in r.message] == bias_lines(
        Objective.parse(["kl"]), cache.spec, VOCAB
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
