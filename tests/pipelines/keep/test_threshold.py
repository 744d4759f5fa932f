"""The fast pass of `threshold` decides as the sampler does that the laws are proved of, to the last id."""

import numpy as np
import pytest
import torch

from pipelines.keep import threshold
from pipelines.keep.sampler import Scratch, draw_rare, survey
from pipelines.keep.select import top_k
from pipelines.keep.threshold import keep_threshold
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


def kept(logits, uniforms, tau):
    v = logits.shape[1]
    most = min(v, int(np.ceil(1 / tau)))
    return keep_threshold(logits, uniforms, tau=tau, most_exact=most, most_drawn=min(v, most + 1))


@pytest.mark.parametrize(
    ("v", "tau"), [(5, 0.3), (64, 1 / 64), (577, 1 / 40), (5000, 1 / 16), (4096, 1 / 32)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_and_draws_what_the_sampler_does(kind, v, tau):
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
def test_it_keeps_and_draws_what_the_definition_says(kind):
    logits, uniforms, tau = logits_of(kind, 12, 1000), uniforms_of(12), 1 / 32
    found = kept(logits, uniforms, tau)
    exact, drawn = ids_of(found.head, found.num_exact), ids_of(found.drawn, found.num_drawn)
    for row in range(12):
        known = truth(logits[row], tau, 1)
        assert sorted(exact[row]) == np.flatnonzero(known.is_exact).tolist()
        assert drawn[row] == drawn_by_definition(known, tau, uniforms[row].item())


@pytest.mark.parametrize("steps", [-3, -1, 0, 1, 3])
def test_the_cut_is_decided_unrounded(steps):
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


def test_neither_pieces_nor_tiles_change_anything(monkeypatch):
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


def test_what_is_given_is_left_as_it_was():
    logits = logits_of("middling", 6, 300)
    before = logits.clone()
    kept(logits, uniforms_of(6), 1 / 16)
    assert torch.equal(logits, before)
