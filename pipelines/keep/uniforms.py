"""The random numbers of a cache: a function of seed, example and token alone, so that any worker draws the same.

BLAKE2b of example id and seed gives each example a 64-bit key; splitmix64 (Steele, Lea, Flood: OOPSLA 2014) of the key
and a token's index gives that token's hash, whose upper 53 bits are the uniform. No generator has a state to carry.

Cost: one BLAKE2b an example (1 us), and eight numpy passes over the positions.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Float64, Int, UInt8, UInt64

from schemas.rows.ragged import Array

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def uniforms(
    example_ids: UInt8[np.ndarray, "R 16"],
    row: Int[np.ndarray, " N"],
    token: Int[np.ndarray, " N"],
    seed: int,
    purpose: str = "",
) -> Float64[np.ndarray, " N"]:
    """One number in [0, 1) for each position, which stands on `token` of the example `example_ids[row]`.

    Another `purpose` gives independent numbers.
    """
    return _unit_interval(_hashes(example_ids, row, token, seed, purpose))


def streams(
    example_ids: UInt8[np.ndarray, "R 16"],
    row: Int[np.ndarray, " N"],
    token: Int[np.ndarray, " N"],
    seed: int,
    *,
    count: int,
    purpose: str = "",
) -> Float64[np.ndarray, "N count"]:
    """`count` independent numbers in [0, 1) for each position: splitmix64 from the position's own hash on."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return _unit_interval(_mixed(_hashes(example_ids, row, token, seed, purpose)[:, None] + steps))


def _hashes(
    example_ids: Array, row: Array, token: Array, seed: int, purpose: str
) -> UInt64[np.ndarray, " N"]:
    tail = seed.to_bytes(8, "little", signed=True) + purpose.encode()
    digests = [
        hashlib.blake2b(example.tobytes() + tail, digest_size=8, person=b"uniform").digest()
        for example in example_ids
    ]
    keys = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
    hashes: Array = _mixed(keys[row] + (token.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return hashes


def _mixed(state: Array) -> Array:
    """splitmix64's output function, modulo 2^64."""
    state = (state ^ (state >> np.uint64(30))) * _FACTORS[0]
    state = (state ^ (state >> np.uint64(27))) * _FACTORS[1]
    mixed: Array = state ^ (state >> np.uint64(31))
    return mixed


def _unit_interval(hashes: Array) -> Array:
    found: Array = (hashes >> np.uint64(11)).astype(np.float64)
    found *= 2.0**-53
    return found
