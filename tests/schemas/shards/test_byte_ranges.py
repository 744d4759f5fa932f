"""Running sums that begin anew at each position, against the plain loop; columns that Arrow holds uncopied."""

import numpy as np
import pyarrow as pa
import pytest

from schemas.errors import CorruptionError
from schemas.rows.arrow import from_arrow
from schemas.rows.ragged import segment_starts, segmented_sums


def plainly(values, counts):
    parts = np.split(values.astype(np.int64), np.cumsum(counts)[:-1]) if len(counts) else []
    sums = [np.cumsum(part) for part in parts]
    return np.concatenate([*sums, np.zeros(0, np.int64)])


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize("seed", range(8))
def test_segmented_sums_are_the_loops(seed, dtype):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4 if seed % 2 else 90, rng.integers(1, 60)).astype(np.int32)
    values = rng.integers(-9 if dtype == np.int32 else 0, 32_768, counts.sum()).astype(dtype)
    before = values.copy()
    assert np.array_equal(segmented_sums(values, counts), plainly(values, counts))
    assert np.array_equal(values, before), "what was given is not worked upon"


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0], [0, 3, 0], [3, 0]])
def test_segments_without_values_change_nothing(counts):
    counts = np.array(counts, np.int32)
    values = np.arange(1, counts.sum() + 1, dtype=np.int16)
    assert segmented_sums(values, counts).tolist() == np.cumsum(values).tolist()
    assert len(segment_starts(counts)) == np.count_nonzero(counts)


def test_sums_over_all_segments_may_wrap_around():
    """Each segment spans less than 2^31, all of them far more."""
    counts = np.full(50, 3, np.int32)
    values = np.full(150, 2**29, np.int32)
    assert segmented_sums(values, counts).tolist() == [2**29, 2**30, 3 * 2**29] * 50


def test_a_column_of_one_chunk_is_not_copied():
    field = pa.field("input_ids", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False)
    array = pa.array([[1, 2], [], [3]], field.type)
    column = from_arrow(pa.chunked_array([array]), field, "here")
    assert column.values.ctypes.data == array.values.buffers()[1].address
    joined = from_arrow(pa.chunked_array([array, array.slice(2)]), field, "here")
    assert joined.values.tolist() == [1, 2, 3, 3]
    assert joined.offsets.tolist() == [0, 2, 2, 3, 4]


def test_a_null_element_is_an_error_also_where_the_file_allows_it():
    field = pa.field("input_ids", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False)
    array = pa.array([[1, None]], pa.list_(pa.int32()))
    with pytest.raises(CorruptionError, match="input_ids has a null"):
        from_arrow(pa.chunked_array([array]), field, "here")
