"""Lower bounds of what is stored, and other ways to code ids, over the same real entries."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.rows.columns import ZSTD_LEVEL
from schemas.rows.ragged import Array
from schemas.rows.ranks import Ranking, to_gaps
from schemas.rows.rows import Rows


def entropy_bits(values: Array) -> float:
    """Of order 0, in bits a value. The frequencies themselves are not charged."""
    p = np.unique(values, return_counts=True)[1] / max(1, len(values))
    return float(-(p * np.log2(p)).sum())


def earlier(keys: Array) -> Array:
    """How often each value stood before in the array."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = (
        np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        if len(keys)
        else np.zeros(0, int)
    )
    sizes = np.diff(np.append(first, len(keys)))
    found = np.empty(len(keys), np.int64)
    found[order] = np.arange(len(keys)) - np.repeat(first, sizes)
    return found


def bigram_bits(ids: Array, inputs: Array, weight: float = 16.0) -> float:
    """Bits an id of a model that learns as it goes: p(id | input) = (seen together + weight x p(id)) / (seen + weight).

    The plug-in entropy would be far too low: most pairs are seen once.
    """
    p = np.bincount(ids) / len(ids)
    together = earlier(inputs.astype(np.int64) << 32 | ids)
    return float(-np.log2((together + weight * p[ids]) / (earlier(inputs) + weight)).mean())


def order_bits(counts: Array) -> float:
    """What the order of each position's drawn ids would tell, which means nothing: log2 n!, summed over positions."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, counts.max(initial=0) + 1)))])
    return float(factorials[counts].sum())


def bounds(rows: Rows, inputs: Array) -> dict[str, float]:
    """Bytes a position."""
    positions = rows.num_positions
    kept = rows.kept_ids
    drawn = rows.ragged("sampled_ids").values if rows.spec.is_sampling else np.zeros(0, np.int32)
    ids = np.concatenate([kept, drawn])
    tokens = np.concatenate([np.repeat(inputs, rows.kept_counts), np.repeat(inputs, rows.sampled_counts)])
    free = order_bits(rows.sampled_counts)
    ranking = Ranking.of([kept, drawn], rows.spec.vocab_size)
    gaps, _ = to_gaps(drawn, rows.sampled_counts, ranking)
    found = {
        "ids unigram": entropy_bits(ids) * len(ids),
        "ids unigram, no order": entropy_bits(ids) * len(ids) - free,
        "ids bigram, no order": bigram_bits(ids, tokens) * len(ids) - free,
        "kept + gaps": entropy_bits(kept) * len(kept) + entropy_bits(gaps) * len(gaps),
        "codes": entropy_bits(rows.ragged("kept_codes").values) * len(kept),
        "counts": (entropy_bits(rows.kept_counts) + entropy_bits(rows.sampled_counts)) * positions,
    }
    return {name: bits / 8 / positions for name, bits in found.items()}


def id_codings(rows: Rows, inputs: Array) -> dict[str, float]:
    """Bytes a position of the ids alone, written by Parquet with zstd as our columns are."""
    kept, kept_counts = rows.kept_ids, rows.kept_counts
    sampling = rows.spec.is_sampling
    drawn = rows.ragged("sampled_ids").values if sampling else np.zeros(0, np.int32)
    drawn_counts = rows.sampled_counts
    size = rows.spec.vocab_size
    ranking = Ranking.of([kept, drawn], size)
    same = Ranking(listed=np.zeros(0, np.int32), vocab_size=size)
    halves = [Ranking.of([part[: len(part) // 2] for part in (kept, drawn)], size)]

    def gaps(by: Ranking) -> Array:
        return to_gaps(drawn, drawn_counts, by)[0]

    per_input = bigram_ranks(
        np.concatenate([kept, drawn]),
        np.concatenate([np.repeat(inputs, kept_counts), np.repeat(inputs, drawn_counts)]),
    )
    split = "BYTE_STREAM_SPLIT"
    ways: Mapping[str, tuple[Array, Array, str]] = {
        "plain": (kept, drawn, "PLAIN"),
        "byte-stream split": (kept, drawn, split),
        "ascending, differences": (kept, gaps(same), split),
        "ranked by frequency, differences (the format)": (ranking.rank_by_id[kept], gaps(ranking), split),
        "ranked by the first half's frequencies": (halves[0].rank_by_id[kept], gaps(halves[0]), split),
        "ranked by a bigram of the input, table free": (
            per_input[: len(kept)],
            per_input[len(kept) :],
            split,
        ),
    }
    if not sampling:  # nothing to put in order
        ways = {name: way for name, way in ways.items() if not name.startswith("ascending")}
    return {name: written(way[:2], way[2]) / rows.num_positions for name, way in ways.items()}


def bigram_ranks(ids: Array, inputs: Array) -> Array:
    """Each id's place among those that stand beside the same input token, the most frequent first."""
    pairs, inverse, counts = np.unique(
        inputs.astype(np.int64) << 32 | ids, return_inverse=True, return_counts=True
    )
    order = np.lexsort((pairs, -counts, pairs >> 32))
    first = np.concatenate([[True], np.diff(pairs[order] >> 32) != 0])
    starts = np.flatnonzero(first)
    ranks = np.empty(len(pairs), np.int32)
    ranks[order] = np.arange(len(pairs)) - np.repeat(starts, np.diff(np.append(starts, len(pairs))))
    found: Array = ranks[inverse]
    return found


def written(parts: tuple[Array, ...], encoding: str, level: int = ZSTD_LEVEL) -> int:
    """Compressed bytes of the values, each part a column of one list."""
    total = 0
    for part in (part for part in parts if len(part)):
        values = pa.array(part.astype(np.int32))
        table = pa.table({"x": pa.ListArray.from_arrays(pa.array([0, len(part)], pa.int32()), values)})
        sink = io.BytesIO()
        pq.write_table(
            table,
            sink,
            compression="zstd",
            compression_level=level,
            use_dictionary=False,
            column_encoding={"x.list.element": encoding},
            write_statistics=False,
        )
        total += pq.read_metadata(sink).row_group(0).column(0).total_compressed_size
    return total
