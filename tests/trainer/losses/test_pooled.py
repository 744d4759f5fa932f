"""Laws of every loss on pooled states, over the registry; and each as its paper writes it, pair by pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from schemas.cache import Cache
from tests.trainer.tiny import VOCAB, llama_config
from trainer.batches.collate import Collation
from trainer.losses.contrast import Bottleneck
from trainer.losses.loss import Pooled
from trainer.losses.objective import Objective
from trainer.losses.registry import LOSSES
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.distiller import Distiller

POOLED = [name for name, loss in LOSSES.items() if loss.pooled is not None]
LEARNED = [name for name in POOLED if LOSSES[name].module is not None]
B, H, D, V = 6, 4, 7, 5


def states(seed: int, width: int = D, rows: int = B) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooled_of(name: str, rows: int = B) -> Pooled:
    torch.manual_seed(0)
    make = LOSSES[name].module
    return Pooled(
        projected=[states(1, rows=rows), states(2, rows=rows)],
        ours=[states(3, H, rows), states(4, H, rows)],
        theirs=[states(5, rows=rows), states(6, rows=rows)],
        module=None if make is None else make([H, H], [D, D], V).double().eval(),
        outputs=states(7, V, rows).softmax(-1),
    )


def found_of(name: str, pooled: Pooled) -> Tensor:
    compute = LOSSES[name].pooled
    assert compute is not None
    return compute(pooled, LOSSES[name].defaults)


def pairwise(of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Pooled], Tensor]:
    """The mean over features and examples."""

    def dense(pooled: Pooled) -> Tensor:
        both = [list(zip(a, b, strict=True)) for a, b in zip(pooled.projected, pooled.theirs, strict=True)]
        return torch.stack([of(h, t) for pairs in both for h, t in pairs]).mean()

    return dense


def related(of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Pooled], Tensor]:
    def dense(pooled: Pooled) -> Tensor:
        return torch.stack([of(h, t) for h, t in zip(pooled.ours, pooled.theirs, strict=True)]).mean()

    return dense


def rkd_distance(h: Tensor, t: Tensor) -> Tensor:
    both = []
    for x in (h, t):
        d = torch.cdist(x, x)
        both.append(d / d[d > 0].mean())
    return F.smooth_l1_loss(both[0], both[1])


def rkd_angle(h: Tensor, t: Tensor) -> Tensor:
    found = []
    for i, j, k in itertools.product(range(len(h)), repeat=3):
        pair = [F.normalize(x[j] - x[i], dim=0) @ F.normalize(x[k] - x[i], dim=0) for x in (h, t)]
        found.append(F.smooth_l1_loss(pair[0], pair[1]))
    return torch.stack(found).mean()


def similarity(h: Tensor, t: Tensor) -> Tensor:
    g = [(x @ x.t()) / (x @ x.t()).norm(dim=1, keepdim=True) for x in (h, t)]
    return (g[0] - g[1]).square().sum() / len(h) ** 2


def cka(h: Tensor, t: Tensor) -> Tensor:
    x, y = h - h.mean(0), t - t.mean(0)
    return 1 - (y.t() @ x).norm() ** 2 / ((x.t() @ x).norm() * (y.t() @ y).norm())


def correlation(h: Tensor, t: Tensor) -> Tensor:
    kernels = []
    for x in (h, t):
        dots = F.normalize(x) @ F.normalize(x).t()
        kernels.append(sum((0.8**p / math.factorial(p)) * dots**p for p in range(3)) * math.exp(-0.8))
    return (kernels[0] - kernels[1]).square().sum() / len(h) ** 2


def flow(pooled: Pooled) -> Tensor:
    found = []
    for i, j in itertools.product(range(len(pooled.ours[0])), repeat=2):
        change = [
            F.cosine_similarity(x[1][i], x[1][j], dim=0) - F.cosine_similarity(x[0][i], x[0][j], dim=0)
            for x in (pooled.ours, pooled.theirs)
        ]
        found.append((change[0] - change[1]).square())
    return torch.stack(found).mean()


def info_nce(pooled: Pooled) -> Tensor:
    found = []
    for h, t in zip(pooled.projected, pooled.theirs, strict=True):
        for i in range(len(h)):
            alike = torch.stack([F.cosine_similarity(h[i], t[j], dim=0) for j in range(len(t))]) / 0.07
            found.append(-(alike[i].exp() / alike.exp().sum()).log())
    return torch.stack(found).mean()


def vib(pooled: Pooled) -> Tensor:
    module: Any = pooled.module
    found = []
    for place, (h, t) in enumerate(zip(pooled.ours, pooled.theirs, strict=True)):
        mean, log_variance = module.inner[place](h).float().split(64, -1)
        told = module.outer[place](mean.double()).float()
        normal = torch.distributions.Normal
        kl = torch.distributions.kl_divergence(
            normal(mean, (log_variance / 2).exp()), normal(torch.zeros(()), torch.ones(()))
        )
        found.append((told - t).square().mean() + 0.001 * kl.mean())
    return torch.stack(found).mean()


def info_head(pooled: Pooled) -> Tensor:
    module: Any = pooled.module
    found = []
    for place, (h, t) in enumerate(zip(pooled.ours, pooled.theirs, strict=True)):
        said = module.joint[place](torch.cat([t, pooled.outputs], -1).float())
        code = torch.distributions.Categorical(logits=said)
        own = torch.distributions.Categorical(logits=module.alone[place](h))
        told = module.outer[place](code.probs.double())
        kl = torch.distributions.kl_divergence(code, own)
        found.append((told.float() - t).square().mean() + kl.mean())
    return torch.stack(found).mean()


TEXTBOOK: Mapping[str, Callable[[Pooled], Tensor]] = {
    "feature": pairwise(lambda h, t: (h - t).square().mean()),
    "feature_relative": pairwise(lambda h, t: (h - t).norm() ** 2 / t.norm() ** 2),
    "pkd": pairwise(lambda h, t: (h / h.norm() - t / t.norm()).square().sum()),
    "rkd_distance": related(rkd_distance),
    "rkd_angle": related(rkd_angle),
    "similarity": related(similarity),
    "cka": related(cka),
    "correlation": related(correlation),
    "flow": flow,
    "info_nce": info_nce,
    "vib": vib,
    "info_head": info_head,
}


def test_every_pooled_loss_has_its_textbook_form() -> None:
    assert set(TEXTBOOK) == set(POOLED)


@pytest.mark.parametrize("name", POOLED)
def test_it_is_the_textbook_form(name: str) -> None:
    pooled = pooled_of(name)
    if name in LEARNED:
        pooled = pooled._replace(module=pooled.module.float(), ours=[s.float() for s in pooled.ours])
        expected = TEXTBOOK[name](pooled._replace(module=_double_outer(pooled.module)))
    else:
        expected = TEXTBOOK[name](pooled)
    torch.testing.assert_close(
        found_of(name, pooled).mean().double(), expected.double(), atol=1e-6, rtol=1e-6
    )


def _double_outer(module: Any) -> Any:
    import copy

    copied = copy.deepcopy(module)
    copied.outer.double()
    return copied


@pytest.mark.parametrize("name", [name for name in POOLED if name not in (*LEARNED, "info_nce")])
def test_states_that_are_the_teachers_cost_nothing(name: str) -> None:
    theirs = pooled_of(name).theirs
    found = found_of(name, Pooled(projected=theirs, ours=theirs, theirs=theirs))
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", [name for name in POOLED if name not in LEARNED])
def test_gradcheck(name: str) -> None:
    pooled = pooled_of(name, rows=4)
    sources = [s.requires_grad_() for s in (*pooled.projected, *pooled.ours)]

    def loss(*given: Tensor) -> Tensor:
        return found_of(name, pooled._replace(projected=list(given[:2]), ours=list(given[2:])))

    assert torch.autograd.gradcheck(loss, sources)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", POOLED)
def test_few_examples_equal_examples_and_zero_states_give_no_nan(name: str, rows: int) -> None:
    """A batch of one has no relation; two equal examples, and states of 0, have no direction."""
    torch.manual_seed(0)
    make = LOSSES[name].module
    module = None if make is None else make([H, H], [D, D], V)
    for scale in (1.0, 0.0):
        one, own = torch.randn(1, D) * scale, torch.randn(1, H) * scale
        leaves = [x.repeat(rows, 1).requires_grad_() for x in (one, one, own, own)]
        theirs = [torch.randn(1, D).repeat(rows, 1) * scale for _ in range(2)]
        outputs = torch.full((rows, V), scale / V)
        found = found_of(name, Pooled(leaves[:2], leaves[2:], theirs, module=module, outputs=outputs))
        assert found.shape == (rows,)
        assert found.isfinite().all()
        found.sum().backward()
        assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)
        if rows == 1 and name in ("rkd_distance", "rkd_angle", "similarity", "cka", "correlation", "flow"):
            assert found.item() == 0


@pytest.mark.parametrize("name", POOLED)
def test_the_order_of_examples_does_not_matter(name: str) -> None:
    pooled, order = pooled_of(name), torch.tensor([3, 0, 5, 1, 4, 2])
    if name in LEARNED:
        pooled = pooled._replace(module=pooled.module.float(), ours=[s.float() for s in pooled.ours])
    moved = Pooled(
        **{key: [s[order] for s in getattr(pooled, key)] for key in ("projected", "ours", "theirs")},
        module=pooled.module,
        outputs=pooled.outputs[order],
    )
    torch.testing.assert_close(found_of(name, moved), found_of(name, pooled)[order])


def test_an_example_that_stands_twice_is_no_negative() -> None:
    pooled = pooled_of("info_nce", rows=3)
    theirs = [torch.cat([t, t[:1]]) for t in pooled.theirs]
    twice = pooled._replace(projected=[torch.cat([h, h[:1]]) for h in pooled.projected], theirs=theirs)
    found = found_of("info_nce", twice)
    torch.testing.assert_close(found[0], found_of("info_nce", pooled)[0])
    torch.testing.assert_close(found[3], found[0])


def test_a_bottleneck_draws_in_training_alone() -> None:
    torch.manual_seed(0)
    module, given = Bottleneck([H], [D]), torch.randn(B, H)
    told = [module(0, given)[0] for _ in range(2)]
    assert not torch.equal(*told)
    module.eval()
    assert torch.equal(module(0, given)[0], module(0, given)[0])


def test_all_of_them_train_a_student_together(causal_cache: Cache) -> None:
    """Through the student, its projections and what they learn; a weightless batch has no gradient."""
    torch.manual_seed(0)
    objective = Objective(weights=dict.fromkeys(POOLED, 1.0))
    objective.check(causal_cache.spec)
    student = LlamaForCausalLM(llama_config())
    features = causal_cache.spec.features
    model = Distiller(
        student,
        objective,
        score="softmax",
        features=features,
        teacher_layers=2,
        task=STUDENT_TASKS["causal-lm"],
        vocab_size=causal_cache.spec.vocab_size,
    )
    rows = causal_cache.read(causal_cache.row_groups[0]).take(np.arange(6))
    batch = Collation(student_vocab=VOCAB, pad_id=0, features=features).batch(rows)
    found = model(batch)
    terms = torch.stack([found[name] for name in POOLED])
    torch.testing.assert_close(found["loss"], terms.sum())
    found["loss"].backward()
    assert model.projections is not None
    for weight in (*model.projections.parameters(), student.model.layers[0].mlp.up_proj.weight):
        assert weight.grad.isfinite().all()
        assert weight.grad.any()
    assert any(name.startswith("heads.vib.") for name in model.projections.state_dict())
    model.zero_grad()
    model(batch.weightless(), num_items_in_batch=batch.counts)["loss"].backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
