"""The fast pass of `threshold` decides as the sampler does that the laws are proved of, to the last id."""

import numpy as np
import pytest
import torch

from pipelines.keep import threshold
from pipelines.keep.sampler import Scratch, draw_rare, survey
from pipelines.keep.threshold import by_loops, by_torch
from pipelines.keep.top import top_k
from schemas.rows.kernels import IS_COMPILED
from tests.pipelines.sampling import drawn_by_definition, truth

EDGES = [0.0, 0.5, 1 - 2**-53, 2**-53, 0.123]


def logits_of(kind, n, v, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, v, generator=generator)
    return {
        "peaked": noise * 8,
        "middling": noise * 2.5,
        "flat": noise * 0.02,
        "tied": noise.mul(2).round(),
        "equal": torch.zeros(n, v),
        "signed zeros": torch.where(noise > 0, 0.0, -0.0),
        "one": torch.full((n, v), -1e4).scatter_(1, torch.arange(n)[:, None] % v, 0.0),
    }[kind]


KINDS = ["peaked", "middling", "flat", "tied", "equal", "signed zeros", "one"]


def uniforms_of(n):
    found = np.random.default_rng(0).random(n)
    found[: len(EDGES)] = EDGES[:n]
    return torch.from_numpy(found)


def ids_of(padded, counts):
    return [row[:count].tolist() for row, count in zip(padded, counts.tolist(), strict=True)]


@pytest.fixture(params=[by_torch, by_loops], ids=lambda form: form.__name__)
def kept(request):
    """Each form of the pass."""
    if request.param is by_loops and not IS_COMPILED:
        pytest.skip("numba is not installed")

    def keep(logits, uniforms, tau):
        v = logits.shape[1]
        most = min(v, int(np.ceil(1 / tau)))
        return request.param(logits, uniforms, tau=tau, most_exact=most, most_drawn=min(v, most + 1))

    return keep


@pytest.mark.parametrize(
    ("v", "tau"), [(5, 0.3), (64, 1 / 64), (577, 1 / 40), (5000, 1 / 16), (4096, 1 / 32)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_and_draws_what_the_sampler_does(kind, v, tau, kept):
    logits, uniforms = logits_of(kind, 40, v), uniforms_of(40)
    found = kept(logits, uniforms, tau)
    head = top_k(logits, found.head.shape[1])
    known = survey(logits, head, (1.0,), Scratch.of(40, logits), tau=tau, k=1)
    drawn = draw_rare(logits, known, (1.0,), uniforms, tau=tau, most=found.drawn.shape[1])
    assert torch.equal(found.num_exact, known.num_exact)
    assert ids_of(found.head, found.num_exact) == ids_of(known.head, known.num_exact)
    assert torch.equal(found.num_drawn, drawn.counts)
    assert torch.equal(found.drawn, drawn.ids)
    torch.testing.assert_close(found.logsumexp, known.logsumexp((1.0,))[:, 0], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found.entropy, known.entropy, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_and_draws_what_the_definition_says(kind, kept):
    logits, uniforms, tau = logits_of(kind, 12, 1000), uniforms_of(12), 1 / 32
    found = kept(logits, uniforms, tau)
    exact, drawn = ids_of(found.head, found.num_exact), ids_of(found.drawn, found.num_drawn)
    for row in range(12):
        known = truth(logits[row], tau, 1)
        assert sorted(exact[row]) == np.flatnonzero(known.is_exact).tolist()
        assert drawn[row] == drawn_by_definition(known, tau, uniforms[row].item())


@pytest.mark.parametrize("steps", [-3, -1, 0, 1, 3])
def test_the_cut_is_decided_unrounded(steps, kept):
    """Thirty-two equal ids at exactly `tau`, and one whose float32 logit lies a few steps from theirs."""
    logits = torch.full((1, 64 * 70), -1e4)
    logits[0, torch.arange(32) * 64 + 7] = 3.0
    other = np.float32(3.0)
    for _ in range(abs(steps)):
        other = np.nextafter(other, np.float32(np.inf * np.sign(steps)))
    logits[0, 7] = float(other)
    found = kept(logits, torch.tensor([0.5], dtype=torch.float64), 1 / 32)
    known = truth(logits[0], 1 / 32, 1)
    assert sorted(ids_of(found.head, found.num_exact)[0]) == np.flatnonzero(known.is_exact).tolist()


def test_neither_pieces_nor_tiles_change_anything(monkeypatch, kept):
    logits, uniforms = torch.cat([logits_of(kind, 9, 5000) for kind in KINDS]), uniforms_of(9 * len(KINDS))
    whole = kept(logits, uniforms, 1 / 32)
    monkeypatch.setattr(threshold, "_PIECE_BYTES", {"cpu": 8 * 5056 * 5})
    monkeypatch.setattr(threshold, "_TILE_BYTES", 8 * 1024 * 2)
    monkeypatch.setattr(threshold, "_TILE_COLUMNS", 1024)
    for one, other in zip(kept(logits, uniforms, 1 / 32), whole, strict=True):
        if one.dtype == torch.int64:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_position_that_is_not_finite_shows_it_and_the_others_stay(bad, kept):
    logits, uniforms = logits_of("middling", 12, 700), uniforms_of(12)
    whole = kept(logits, uniforms, 1 / 32)
    logits[[3, 7], [0, 699]] = float(bad)
    found = kept(logits, uniforms, 1 / 32)
    shown = ~(found.logsumexp.isfinite() & found.entropy.isfinite())
    assert shown.nonzero()[:, 0].tolist() == [3, 7]
    assert int(found.head.min()) >= 0
    assert int(found.head.max()) < 700
    for one, other in zip(found, whole, strict=True):
        assert torch.equal(one[~shown], other[~shown])


@pytest.mark.skipif(not IS_COMPILED, reason="numba is not installed")
def test_threads_share_the_loops_and_change_nothing(monkeypatch):
    logits, uniforms = logits_of("middling", 50, 5000), uniforms_of(50)
    alone = by_loops(logits, uniforms, tau=1 / 32, most_exact=32, most_drawn=33)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(threshold, "_TILE_BYTES", 8 * 5000 * 4)
    together = by_loops(logits, uniforms, tau=1 / 32, most_exact=32, most_drawn=33)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_what_is_given_is_left_as_it_was(kept):
    logits = logits_of("middling", 6, 300)
    before = logits.clone()
    kept(logits, uniforms_of(6), 1 / 16)
    assert torch.equal(logits, before)
