"""On a CUDA device: the same rows as on a CPU, and a bfloat16 head whose products are float32."""

import numpy as np
import pytest
import torch

from pipelines.keep.select import select
from pipelines.keep.top import top_k
from pipelines.scoring.rescore import RescoreConfig, rescore
from pipelines.teacher.heads import Head
from schemas import Cache
from schemas.policies import Sampled, Threshold, TopP
from tests.pipelines.helpers import read, run
from tests.pipelines.keep.test_sampler import bias, logits_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_head_gives_float32_products(dtype):
    torch.manual_seed(0)
    hidden, weight = torch.randn(128, 256).to(dtype), torch.randn(4096, 256).to(dtype)
    head = Head(weight.cuda(), None, 0.5, 30.0)
    logits = head.logits(hidden.cuda())
    exact = 30 * torch.tanh(0.5 * (hidden.double() @ weight.double().T) / 30)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.cpu(), exact, atol=1e-4)
    rounded = (hidden.cuda() @ weight.cuda().T).float().cpu()
    assert (rounded / 2 - logits.cpu()).abs().max() > 1e-2, "a rounded product would have been seen"


def test_ties_break_by_id_on_a_device_too():
    torch.manual_seed(0)
    logits = (torch.randn(64, 5000) * 2).round()
    _, ids = top_k(logits.cuda(), 64)
    expected = np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :64]
    assert ids.cpu().numpy().tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_from_a_device_is_the_cache_from_the_cpu(tmp_path, corpus, teacher, dtype):
    flags = {"dtype": dtype, "keep": TopP(p=0.9, k=32), "temperatures": (1.0, 2.0), "features": ("mean:-1",)}
    run(corpus, teacher, tmp_path / "cpu", device="cpu", **flags)
    summary = run(corpus, teacher, tmp_path / "cuda", device="cuda", **flags)
    assert summary.provenance["device"] == "cuda"
    ours, theirs = read(tmp_path / "cuda"), read(tmp_path / "cpu")
    assert ours.keys() == theirs.keys()
    tolerance = 2e-3 if dtype == "float32" else 0.2
    for key, row in ours.items():
        np.testing.assert_array_equal(row["input_ids"], theirs[key]["input_ids"])
        np.testing.assert_allclose(row["logsumexp"], theirs[key]["logsumexp"], atol=tolerance)
        for name in ("entropy", "label_logprob", "top_logprob"):
            np.testing.assert_allclose(row[name], theirs[key][name], atol=tolerance + 1 / 32)
        np.testing.assert_allclose(row["mean:2"], theirs[key]["mean:2"], atol=10 * tolerance)


def test_a_device_finds_its_own_budget_and_keeps_what_fits(tmp_path, corpus, teacher, whole):
    """Two workers on however many devices there are; no budget is given, so that each tries its own."""
    flags = {"device": "cuda", "batch_tokens": None, "unit_tokens": 300, "workers": 2}
    summary = run(corpus, teacher, tmp_path / "c", **flags)
    assert summary.workers == 2
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()


def test_a_teacher_is_spread_over_the_devices(tmp_path, corpus, teacher, whole):
    summary = run(corpus, teacher, tmp_path / "c", device="cuda", device_map="auto", features=("mean:-1",))
    assert summary.provenance["device_map"] == "auto"
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()


def test_a_compiled_teacher_says_the_same_on_a_device(tmp_path, corpus, teacher, whole):
    run(corpus, teacher, tmp_path / "c", device="cuda", compile=True)
    ours, theirs = read(tmp_path / "c"), read(whole[0])
    for key, row in ours.items():
        np.testing.assert_allclose(row["logsumexp"], theirs[key]["logsumexp"], atol=2e-3)


@pytest.mark.parametrize("kind", ["peaked", "middling", "flat", "tied"])
def test_the_sampler_is_unbiased_on_a_device_too(kind):
    for k, temperatures in ((0, (1.0,)), (1, (1.0, 2.0)), (8, (1.0,))):
        assert bias(logits_of(kind, 300).cuda(), 1 / 16, k, temperatures) < 1e-10


@pytest.mark.parametrize("policy", [Threshold(tau=1 / 16), Sampled(n=50)])
def test_a_device_draws_what_the_cpu_draws_from_the_same_logits(policy):
    """The last bit of a float64 sum may fall otherwise, and then another id: rarely."""
    torch.manual_seed(0)
    logits, labels = torch.randn(256, 49_152) * 2.5, torch.zeros(256, dtype=torch.int64)
    uniforms = torch.rand(256, 50, dtype=torch.float64)
    ours = select(logits.cuda(), labels.cuda(), policy, uniforms=uniforms.cuda())
    theirs = select(logits, labels, policy, uniforms=uniforms)
    assert (ours.sampled_ids.cpu() == theirs.sampled_ids).all(1).float().mean() > 0.99
    assert torch.equal(ours.counts.cpu(), theirs.counts)


@pytest.mark.parametrize("keep", [Threshold(tau=1 / 16), Sampled(n=13)])
def test_a_cache_that_draws_comes_from_a_device(tmp_path, corpus, teacher, keep):
    run(corpus, teacher, tmp_path / "c", device="cuda", keep=keep, own_logits=True)
    found = rescore(Cache.open(tmp_path / "c"), RescoreConfig(teacher=str(teacher), device="cpu"))
    assert 0 <= found.mean_kl_nats < 1e-3
