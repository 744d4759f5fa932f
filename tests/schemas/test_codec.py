"""The codec's laws: half a step for every entry, clamps counted, no drift, no silent nonsense."""

import numpy as np
import pytest

from schemas.codec import CODE_MAX, LEVEL_MAX, decode_logprobs, dequantise, encode_logprobs, quantise

STEP = 1 / 16


def round_trip(logprobs, counts, step=STEP):
    logprobs, counts = np.asarray(logprobs, np.float32), np.asarray(counts, np.int64)
    codes, clamped = encode_logprobs(logprobs, counts, step)
    top = logprobs[np.cumsum(counts) - counts]
    return decode_logprobs(codes, counts, top, step), codes, clamped


def descending(rng, counts, scale):
    lists = [-np.sort(rng.exponential(scale, count)) for count in counts]
    return np.concatenate(lists).astype(np.float32)


def half_a_step(logprobs, step=STEP):
    """Half a step, and the rounding of a float32 of that size."""
    return step / 2 + 2 * np.spacing(np.abs(logprobs))


@pytest.mark.parametrize("step", [1 / 16, 1 / 7, 1.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_every_entry_is_within_half_a_step(rng, scale, step):
    counts = rng.integers(1, 200, 300)
    logprobs = descending(rng, counts, scale)
    decoded, codes, clamped = round_trip(logprobs, counts, step)
    assert clamped == 0
    assert codes.dtype == np.int16
    assert (np.abs(decoded - logprobs) <= half_a_step(logprobs, step)).all()


def test_errors_do_not_add_up_over_a_long_position(rng):
    """Gaps of 0.49 steps would all round to nothing if differences were rounded."""
    logprobs = -np.arange(100_000, dtype=np.float64) * STEP * 0.49
    decoded, *_ = round_trip(logprobs, [100_000])
    assert np.abs(decoded - logprobs.astype(np.float32)).max() <= STEP / 2 + 1e-3


def test_top_entries_are_exact_and_order_is_kept(rng):
    counts = rng.integers(1, 9, 100)
    logprobs = descending(rng, counts, 1.0)
    decoded, codes, _ = round_trip(logprobs, counts)
    starts = np.cumsum(counts) - counts
    assert (decoded[starts] == logprobs[starts]).all()
    assert (codes[starts] == 0).all()
    assert (codes >= 0).all()


def test_decoding_is_idempotent(rng):
    counts = rng.integers(1, 9, 100)
    decoded, codes, _ = round_trip(descending(rng, counts, 1.0), counts)
    again, codes_again, _ = round_trip(decoded, counts)
    assert (codes_again == codes).all()
    assert np.allclose(again, decoded, atol=1e-6)


@pytest.mark.parametrize("gap", [CODE_MAX * STEP + 1, 1e30, np.inf])
def test_a_gap_too_large_is_clamped_counted_and_bounded(gap):
    logprobs = np.array([0, -gap, -gap, -1, -2], np.float32)
    decoded, codes, clamped = round_trip(logprobs, [3, 2])
    assert clamped == 1
    assert codes[1] == CODE_MAX
    assert (decoded[:3] >= logprobs[:3]).all()
    assert (decoded[1:3] == -CODE_MAX * STEP).all()
    assert (np.exp(decoded[1:3]) == 0).all()
    assert (decoded[3:] == logprobs[3:]).all()


def test_the_largest_gap_that_fits_is_not_clamped():
    decoded, _, clamped = round_trip([0, -CODE_MAX * STEP], [2])
    assert clamped == 0
    assert decoded[1] == -CODE_MAX * STEP


def test_running_sums_may_wrap_around():
    """Millions of large codes pass 2^31 together, though no position does."""
    counts = np.full(80_000, 2, np.int64)
    codes = np.tile(np.array([0, CODE_MAX], np.int16), len(counts))
    assert codes.sum(dtype=np.int64) > 2**31
    decoded = decode_logprobs(codes, counts, np.zeros(len(counts), np.float32), STEP)
    assert (decoded[1::2] == -CODE_MAX * STEP).all()


def test_one_position_never_spans_more_than_int32():
    logprobs = np.concatenate([[0], np.full(70_000, -np.inf)]).astype(np.float32)
    _, codes, _ = round_trip(logprobs, [len(logprobs)])
    assert codes.sum(dtype=np.int64) <= LEVEL_MAX


def test_nothing_at_all():
    decoded, codes, clamped = round_trip([], [])
    assert (len(decoded), len(codes), clamped) == (0, 0, 0)


@pytest.mark.parametrize("entries", [[-1, -0.5], [0, np.nan], [np.nan, 0], [-np.inf, -np.inf], [np.inf, 0]])
def test_nonsense_is_refused(entries):
    with pytest.raises(ValueError, match="entries must"):
        round_trip(entries, [2])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_features_are_within_half_a_scale(rng, scale):
    values = (rng.normal(size=(50, 33)) * scale).astype(np.float32)
    codes, scales = quantise(values)
    assert (np.abs(codes).max(axis=1) == 127).all()
    bound = scales[:, None] * 0.5001
    assert (np.abs(dequantise(codes, scales) - values) <= bound).all()


@pytest.mark.parametrize("tiny", [0.0, 1e-45, 200 * 1e-45, 1e-37])
def test_features_next_to_nothing_are_zero(tiny):
    codes, scale = quantise(np.full((1, 4), tiny, np.float32))
    assert (dequantise(codes, scale) == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_must_be_finite(bad):
    with pytest.raises(ValueError, match="finite"):
        quantise(np.array([[1.0, bad]], np.float32))
