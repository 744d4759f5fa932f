"""Compiled loops give what the numpy forms give, and refuse what they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import CorruptionError
from schemas.rows import kernels
from schemas.rows.pages import _zeros_of, join_planes
from schemas.rows.ragged import Ragged, offsets_of
from schemas.rows.ranks import Ranking, ids_of_gaps_by_numpy, ids_of_ranks_by_numpy, to_gaps, unranked
from schemas.rows.rows import count_places, take_next
from tests.synthetic import SPECS, random_rows

pytestmark = pytest.mark.skipif(not kernels.IS_COMPILED, reason="numba is not installed")


def hybrid(levels: Any, rng: Any) -> bytes:
    """Levels of one bit as Parquet has them: runs, and eights of single bits, as the draw decides."""
    found, place = bytearray(), 0
    while place < len(levels):
        run = 1
        while place + run < len(levels) and levels[place + run] == levels[place]:
            run += 1
        if run >= 8 and rng.random() < 0.9:
            found += varint(run << 1) + bytes([levels[place]])
            place += run
        else:
            eights = int(rng.integers(1, 4))
            bits = np.zeros(8 * eights, np.uint8)
            own = levels[place : place + 8 * eights]
            bits[: len(own)] = own
            found += varint(eights << 1 | 1) + np.packbits(bits, bitorder="little").tobytes()
            place += 8 * eights
    return bytes(found)


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


@pytest.mark.parametrize("seed", range(20))
def test_where_lists_begin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = (rng.random(int(rng.integers(1, 3_000))) > rng.choice([0.01, 0.2, 0.9])).astype(np.uint8)
    data = hybrid(levels, rng)
    expected = np.flatnonzero(levels == 0)
    assert _zeros_of(data, len(levels)) == expected.tolist()
    starts = np.empty(len(expected) + 5, np.int32)
    found = kernels.find_starts(np.frombuffer(data, np.uint8), len(levels), 7, starts)
    assert found == len(expected)
    assert starts[:found].tolist() == (expected + 7).tolist()
    if len(expected):
        few = np.empty(len(expected) - 1, np.int32)
        assert kernels.find_starts(np.frombuffer(data, np.uint8), len(levels), 0, few) == -1


@pytest.mark.parametrize("seed", range(200))
def test_levels_that_mean_nothing_are_told_and_harm_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, int(rng.integers(0, 12)), np.uint8)
    guarded = np.full(40, -1, np.int32)
    found = kernels.find_starts(data, 100, 0, guarded[10:30])
    assert -1 <= found <= 20
    assert (guarded[:10] == -1).all()
    assert (guarded[30:] == -1).all()


def test_planes_are_joined() -> None:
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (4, 1_001), np.uint8)
    ours, theirs = np.empty(1_001, np.uint32), np.empty(1_001, np.uint32)
    kernels.join_planes(planes, ours)
    join_planes(planes, theirs)
    assert (ours == theirs).all()
    small = np.empty(1_001, np.uint16)
    assert not kernels.join_two_planes(planes, small)
    planes[2:] = 0
    assert kernels.join_two_planes(planes, small)
    assert (small == planes[0] + planes[1].astype(np.uint16) * 256).all()


def test_ids_of_ranks_and_gaps() -> None:
    rng = np.random.default_rng(0)
    ranking = Ranking(listed=rng.permutation(500)[:90].astype(np.int32), vocab_size=500)
    counts = rng.integers(0, 9, 300).astype(np.int32)
    ids = np.concatenate([rng.permutation(500)[:count] for count in counts]).astype(np.int32)
    gaps, order = to_gaps(ids, counts, ranking)
    for of_gaps in (kernels.ids_of_gaps, ids_of_gaps_by_numpy):
        found = np.empty(len(ids), np.int32)
        assert of_gaps(gaps, counts, ranking.id_by_rank, found)
        assert (found == ids[order]).all()
    for of_ranks in (kernels.ids_of_ranks, ids_of_ranks_by_numpy):
        found = np.empty(len(ids), np.int32)
        assert of_ranks(ranking.rank_by_id[ids], ranking.id_by_rank, found)
        assert (found == ids).all()


BAD_GAPS = {
    "beyond V": ([0, 10], [2]),
    "goes back": ([5, -1], [2]),
    "stands still": ([5, 0], [2]),
    "begins below 0": ([-1, 3], [2]),
    "wraps around": ([0, 2**31 - 1, 2**31 - 1, 2**31 - 1], [4]),
    "fewer than counted": ([1, 1], [3]),
    "more than counted": ([1, 1, 1], [2]),
    "counts below 0": ([1, 1], [-1, 3]),
}


@pytest.mark.parametrize("name", BAD_GAPS)
@pytest.mark.parametrize("is_compiled", [True, False])
def test_gaps_out_of_range_are_refused(name: str, is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "IS_COMPILED", is_compiled)
    gaps, counts = (np.array(part, np.int32) for part in BAD_GAPS[name])
    ranking = Ranking(listed=np.arange(3, dtype=np.int32), vocab_size=10)
    nothing = Ragged(values=np.empty(0, np.int32), offsets=np.zeros(2, np.int64))
    data = {
        "kept_ranks": nothing,
        "num_sampled": Ragged(values=counts, offsets=offsets_of(np.array([len(counts)]))),
        "sampled_gaps": Ragged(values=gaps, offsets=offsets_of(np.array([len(gaps)]))),
    }
    with pytest.raises(CorruptionError, match="sampled_gaps"):
        unranked(data, ranking, "here")


@pytest.mark.parametrize("rank", [-1, 10, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("of_ranks", [kernels.ids_of_ranks, ids_of_ranks_by_numpy])
def test_ranks_out_of_range_are_refused(rank: int, of_ranks: Any) -> None:
    ids = np.zeros(2, np.int32)
    assert not of_ranks(np.array([1, rank], np.int32), np.arange(10, dtype=np.int32), ids)


@pytest.mark.parametrize("name", SPECS)
def test_rows_are_taken_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(SPECS[name], 30).rows
    index = np.random.default_rng(0).integers(0, 30, 50)
    ours = rows.take(index)
    monkeypatch.setattr(kernels, "IS_COMPILED", False)
    theirs = rows.take(index)
    for key, column in ours.data.items():
        other = theirs.data[key]
        if isinstance(column, Ragged):
            assert column.values.dtype == other.values.dtype
            assert column.values.tobytes() == other.values.tobytes()
            assert (column.offsets == other.offsets).all()
        else:
            assert column.tolist() == other.tolist()


_SCRIPT = """
import numpy as np
from schemas.rows import kernels
ids = np.zeros(2, np.int32)
assert kernels.ids_of_ranks(np.array([1, 0], np.int32), np.arange(3, dtype=np.int32), ids)
assert ids.tolist() == [1, 0]
"""


@pytest.mark.parametrize("fault", ["cut", "garbage", "a folder that cannot be written"])
def test_what_is_kept_of_them_may_be_broken(tmp_path: Path, fault: str) -> None:
    """Then they are compiled anew: a cache is not called broken for it."""
    folder = tmp_path / "kept"
    environment = {"PATH": "/usr/bin:/bin", "NUMBA_CACHE_DIR": str(folder), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", _SCRIPT]
    root = Path(kernels.__file__).parents[2]
    if fault == "a folder that cannot be written":
        folder.write_text("a file")
    else:
        subprocess.run(command, env=environment, cwd=root, check=True)
        kept = [file for file in folder.rglob("*") if file.is_file()]
        assert kept
        for file in kept:
            file.write_bytes(file.read_bytes()[:40] if fault == "cut" else b"\x80garbage")
    subprocess.run(command, env=environment, cwd=root, check=True)


@pytest.mark.parametrize("seed", range(10))
def test_places_and_next_tokens(seed: int) -> None:
    """Of rows of any length, with and without places of their own."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, 30)
    valid, firsts = rng.random(30) < 0.5, offsets_of(lengths)
    each = [np.sort(rng.permutation(n - 1)[: rng.integers(0, n)]) if own else np.arange(n - 1)
            for n, own in zip(lengths, valid, strict=True)]  # fmt: skip
    offsets = offsets_of(np.array([*map(len, each)]))
    stored = np.concatenate([np.empty(0, np.int32), *(e for e, own in zip(each, valid, strict=True) if own)])
    values = rng.integers(0, 1_000, firsts[-1]).astype(np.int32)
    found = [np.empty(offsets[-1], np.int32) for _ in range(4)]
    kernels.count_places(offsets, valid, stored.astype(np.int32), found[0])
    count_places(offsets, valid, stored.astype(np.int32), found[1])
    assert found[0].tolist() == found[1].tolist() == np.concatenate(each).tolist()
    kernels.take_next(values, firsts[:-1], offsets, found[0], found[2])
    take_next(values, firsts[:-1], offsets, found[0], found[3])
    expected = [
        values[first : first + n][places + 1] for first, n, places in zip(firsts, lengths, each, strict=False)
    ]
    assert found[2].tolist() == found[3].tolist() == np.concatenate(expected).tolist()
