"""The uniforms behind a cache's draws: uniform, independent, and decided by seed, example and token alone."""

import hashlib

import numpy as np
import pytest

from pipelines.keep.uniforms import streams, uniforms

EXAMPLES, TOKENS = 2000, 500
PINNED = [0.2341645472629168, 0.5835077531683164, 0.8216942684380383]
PINNED_SECOND = [0.8868361494563045, 0.8481215231222449, 0.8459340601992648]


@pytest.fixture(scope="module")
def million():
    """One number for each of 10^6 pairs of example and token, `[2000, 500]`."""
    return uniforms(*pairs(EXAMPLES, TOKENS), seed=0).reshape(EXAMPLES, TOKENS)


def pairs(examples, tokens):
    digests = [hashlib.md5(f"{i}".encode()).digest() for i in range(examples)]
    ids = np.frombuffer(b"".join(digests), np.uint8).reshape(examples, 16)
    return ids, np.repeat(np.arange(examples), tokens), np.tile(np.arange(tokens), examples)


def kolmogorov(values):
    """sqrt(n) times the largest distance between the empirical distribution and the uniform one."""
    values, n = np.sort(values), len(values)
    above = (np.arange(1, n + 1) / n - values).max()
    below = (values - np.arange(n) / n).max()
    return np.sqrt(n) * max(above, below)


def lag_1(values):
    """Correlation of neighbours, in standard errors."""
    return np.corrcoef(values[:-1], values[1:])[0, 1] * np.sqrt(len(values) - 1)


def test_a_million_pairs_are_uniform_along_tokens_and_along_examples(million):
    """1.95 is passed by one uniform sample in a thousand; the numbers are fixed, so the test is too."""
    assert million.min() >= 0
    assert million.max() < 1
    assert kolmogorov(million.ravel()) < 1.95
    for along in (million.ravel(), million.T.ravel()):
        assert abs(lag_1(along)) < 3.3
        assert kolmogorov(np.mod(np.diff(along), 1)) < 1.95


def test_the_statistics_see_a_weak_hash(million):
    weak = np.mod(np.repeat(million[:, 0], TOKENS) + np.tile(np.arange(TOKENS), EXAMPLES) * 1e-3, 1)
    assert abs(lag_1(weak)) > 100
    assert kolmogorov(million.ravel() ** 1.01) > 1.95


@pytest.mark.parametrize(("seed", "purpose"), [(1, ""), (-1, ""), (2**63 - 1, ""), (0, "thin")])
def test_another_seed_or_purpose_gives_independent_numbers(million, seed, purpose):
    other = uniforms(*pairs(EXAMPLES, TOKENS), seed=seed, purpose=purpose)
    assert abs(np.corrcoef(million.ravel(), other)[0, 1]) < 3.3e-3


def test_a_position_has_its_number_in_any_company(million):
    ids, _, _ = pairs(EXAMPLES, TOKENS)
    rows, tokens = np.array([7, 3, 7]), np.array([499, 0, 12], np.int32)
    found = uniforms(ids[[3, 7]], np.array([1, 0, 1]), tokens, seed=0)
    assert found.tolist() == million[rows, tokens].tolist()


def test_numbers_are_those_of_the_first_release():
    """Caches outlive releases: another number would draw other ids for a document that comes back."""
    ids = np.arange(32, dtype=np.uint8).reshape(2, 16)
    rows, tokens = np.array([0, 1, 1]), np.array([0, 0, 1])
    assert uniforms(ids, rows, tokens, seed=5).tolist() == PINNED
    assert streams(ids, rows, tokens, seed=5, count=2)[:, 1].tolist() == PINNED_SECOND


def test_streams_are_uniform_and_independent(million):
    found = streams(*pairs(200, 100), seed=0, count=50)
    assert kolmogorov(found.ravel()) < 1.95
    assert abs(lag_1(found.ravel())) < 3.3
    assert abs(lag_1(found.T.ravel())) < 3.3
    first = million[:200, :100].ravel()
    assert np.abs([np.corrcoef(first, column)[0, 1] for column in found.T]).max() < 4 / np.sqrt(len(first))
