"""The codec's laws: half a step for every entry, clamps counted, no drift, no silent nonsense."""

import numpy as np
import pytest

from schemas.rows.codec import (
    CODE_MAX,
    LEVEL_MAX,
    decode_levels,
    decode_logprobs,
    decode_scalars,
    dequantise,
    encode_levels,
    encode_logprobs,
    encode_scalars,
    quantise,
)

STEP, TOP_STEP = 1 / 16, 1 / 64


def round_trip(logprobs, counts, step=STEP, top=None):
    """Of entries whose top is stored exactly, or as `top` says."""
    logprobs, counts = np.asarray(logprobs, np.float32), np.asarray(counts, np.int64)
    top = logprobs[(np.cumsum(counts) - counts)[counts > 0]] if top is None else np.asarray(top, np.float32)
    codes, clamped = encode_logprobs(logprobs, counts, top, step)
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


def as_stored(top):
    """Top log-probabilities as a reader decodes them."""
    return -decode_scalars(encode_scalars(-top, TOP_STEP).codes, TOP_STEP)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_error_of_the_stored_top_is_no_other_entrys(rng, scale):
    """Levels are counted from the top as it is stored: every entry but the first is within half a code step."""
    counts = rng.integers(1, 60, 400)
    logprobs = descending(rng, counts, scale)
    starts = np.cumsum(counts) - counts
    top = as_stored(logprobs[starts])
    decoded, codes, clamped = round_trip(logprobs, counts, top=top)
    assert clamped == 0
    assert codes.min() >= 0
    others = np.ones(len(logprobs), bool)
    others[starts] = False
    error = np.abs(decoded - logprobs)
    ahead = (
        top.repeat(counts) < logprobs - STEP / 2
    )  # an entry above the stored top by rounding stays at the top
    assert not ahead.any()
    assert (error[others] <= half_a_step(logprobs[others])).all()
    assert (error[starts] <= half_a_step(logprobs[starts], TOP_STEP)).all()


def test_an_entry_above_the_stored_top_is_the_stored_top():
    logprobs = np.array([-0.09, -0.09, -0.3], np.float32)
    top = as_stored(logprobs[:1])
    assert top[0] < logprobs[1]
    decoded, codes, _ = round_trip(logprobs, [3], top=top)
    assert codes.tolist() == [0, 0, 3]
    assert decoded[:2].tolist() == [top[0]] * 2


def test_positions_without_entries_stand_between_others(rng):
    counts = np.array([0, 3, 0, 0, 2, 0])
    logprobs = np.array([-0.5, -1, -2, -0.25, -4], np.float32)
    top = np.array([-9, -0.5, -9, -9, -0.25, -9], np.float32)
    decoded, *_ = round_trip(logprobs, counts, top=top)
    assert decoded.tolist() == logprobs.tolist()
    codes, _ = encode_levels(logprobs, counts, top, STEP)
    assert decode_levels(codes, counts, top, STEP).tolist() == logprobs.tolist()


@pytest.mark.parametrize("step", [1 / 16, 1 / 7])
def test_levels_keep_entries_in_any_order(rng, step):
    counts = rng.integers(0, 30, 300)
    logprobs = (-rng.exponential(5, counts.sum())).astype(np.float32)
    top = np.zeros(300, np.float32)
    codes, clamped = encode_levels(logprobs, counts, top, step)
    assert (codes.dtype, clamped) == (np.int16, 0)
    assert (np.abs(decode_levels(codes, counts, top, step) - logprobs) <= half_a_step(logprobs, step)).all()


@pytest.mark.parametrize("far", [CODE_MAX * STEP + 1, 1e30, np.inf])
def test_a_level_too_large_is_clamped_counted_and_touches_no_other(far):
    logprobs = np.array([-1, -far, -2], np.float32)
    codes, clamped = encode_levels(logprobs, np.array([3]), np.zeros(1, np.float32), STEP)
    assert (codes.tolist(), clamped) == ([16, CODE_MAX, 32], 1)


def test_levels_reach_further_than_32_nats():
    assert CODE_MAX * STEP > 2_000


@pytest.mark.parametrize("bad", [np.nan, -np.nan])
def test_levels_must_be_numbers(bad):
    with pytest.raises(ValueError, match="entries must be numbers"):
        encode_levels(np.array([bad], np.float32), np.array([1]), np.zeros(1, np.float32), STEP)


@pytest.mark.parametrize("step", [1 / 32, 1 / 64, 0.1])
def test_scalars_are_within_half_a_step(rng, step):
    nats = np.concatenate([[0], rng.exponential(3, 5_000), rng.uniform(0, CODE_MAX * step, 100)])
    nats = nats.astype(np.float32)
    codes, clamped = encode_scalars(nats, step)
    assert (codes.dtype, clamped) == (np.int16, 0)
    assert (np.abs(decode_scalars(codes, step) - nats) <= half_a_step(nats, step)).all()
    assert (encode_scalars(decode_scalars(codes, step), step).codes == codes).all()


def test_scalars_that_do_not_fit_are_clamped_and_counted():
    nats = np.array([np.inf, 1e30, CODE_MAX * STEP + 1, CODE_MAX * STEP, -1e-7, -0.0], np.float32)
    codes, clamped = encode_scalars(nats, STEP)
    assert (codes.tolist(), clamped) == ([CODE_MAX] * 4 + [0, 0], 3)


def test_a_scalar_must_be_a_number():
    with pytest.raises(ValueError, match="NaN"):
        encode_scalars(np.array([1.0, np.nan], np.float32), STEP)


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
