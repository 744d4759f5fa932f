"""How fast a row group becomes flat arrays, and a teacher's answer a shard: processor time of one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from answers import Answers
from shards_of import seal

from pipelines.corpus.examples import Example
from pipelines.keep.select import Selected
from pipelines.scoring.encode import encode
from pipelines.teacher.model import Answer
from schemas.rows.entries import Entries, entries_of
from schemas.rows.ragged import Array, offsets_of
from schemas.rows.rows import Rows
from schemas.shards.reader import fetch_group, open_footer, read_group
from schemas.spec import Spec
from schemas.storage.storage import Storage

_SLOW_POSITIONS = 4_000


def best(work: Callable[[], object], turns: int) -> float:
    """Least processor seconds of some turns: what else runs on the machine only ever adds."""
    seconds = []
    for _ in range(turns):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Positions a second of three ways to read the same entries, and the bytes a position of the naive one."""

    ours: float
    fetched: float
    """Row groups that are fetched and checked, which `ours` includes."""
    naive: float
    naive_bytes: float
    """Of ids, values and counts."""
    lists: float

    @property
    def decoded(self) -> float:
        """What `ours` makes of bytes that have been checked."""
        return 1 / (1 / self.ours - 1 / self.fetched)


def decoding(rows: Rows, folder: Path, turns: int = 12) -> Decoding:
    """From files in the page cache: fetched, checked and decoded, as the trainer does it; input_ids too."""
    sealed = seal(rows)
    storage = Storage.at(folder)
    storage.put(sealed.name, sealed.data)
    opened = open_footer(storage, sealed.name)  # once for a shard, of a million tokens

    def ours() -> None:
        for index in range(len(sealed.footer.row_groups)):
            flat_entries(read_group(storage, sealed.name, opened, index, rows.spec))

    def fetch() -> None:
        for index, group in enumerate(sealed.footer.row_groups):
            fetch_group(storage, sealed.name, group, index)

    entries = entries_of(rows)
    # with dictionaries, Arrow's default, and without: whichever is read faster is the peer
    files = [
        naive_file(rows, entries, folder / f"naive{plain}.parquet", dictionary=not plain) for plain in (0, 1)
    ]
    taken = [best(lambda file=file: read_naive(file), turns) for file in files]  # type: ignore[misc]
    naive = files[taken.index(min(taken))]
    lists, some = lists_file(rows, entries, folder / "lists.parquet")
    return Decoding(
        ours=rows.num_positions / best(ours, turns),
        fetched=rows.num_positions / best(fetch, turns),
        naive=rows.num_positions / min(taken),
        naive_bytes=entry_bytes(naive) / rows.num_positions,
        lists=some / best(lambda: read_lists(lists), 3),
    )


def flat_entries(rows: Rows) -> tuple[Array, ...]:
    """Ids, log-probabilities or weights, and offsets: what the trainer's targets are made of."""
    if rows.spec.is_sampling:
        found = entries_of(rows)
        return found.ids, found.weights, offsets_of(found.counts)
    return rows.kept_ids, rows.kept_logprobs(), rows.kept_offsets


def naive_file(rows: Rows, entries: Entries, file: Path, *, dictionary: bool) -> Path:
    """int32 ids and float32 weights, a list a row, as Parquet writes them with zstd."""
    per_row = offsets_of(entries.counts)[rows.position_offsets]
    table = pa.table(
        {
            "input_ids": nested(rows.input_ids.values, rows.input_ids.offsets),
            "counts": nested(entries.counts.astype(np.int32), rows.position_offsets),
            "ids": nested(entries.ids, per_row),
            "values": nested(entries.weights, per_row),
        }
    )
    pq.write_table(table, file, compression="zstd", use_dictionary=dictionary)
    return file


def entry_bytes(file: Path) -> int:
    """All but the tokens."""
    group = pq.read_metadata(file).row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    return sum(c.total_compressed_size for c in chunks if not c.path_in_schema.startswith("input_ids"))


def read_naive(file: Path) -> list[Array]:
    """Values as they lie in Arrow's own arrays, without a copy."""
    table = pq.ParquetFile(file).read(use_threads=False)
    chunks = (chunk for name in table.column_names for chunk in table[name].chunks)
    return [chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks]


def lists_file(rows: Rows, entries: Entries, file: Path) -> tuple[Path, int]:
    """A list a position inside a list a row, codes as uint8; of the first rows only, for it is slow."""
    few = max(1, int(np.searchsorted(rows.position_offsets, _SLOW_POSITIONS, side="right")) - 1)
    positions = int(rows.position_offsets[few])
    inner = offsets_of(entries.counts[:positions])
    outer = rows.position_offsets[: few + 1]
    codes = np.minimum(-16 * np.log(entries.weights[: inner[-1]]), 255).astype(np.uint8)
    columns = {"ids": entries.ids[: inner[-1]], "codes": codes}
    table = pa.table({name: nested(nested(values, inner), outer) for name, values in columns.items()})
    pq.write_table(table, file, compression="zstd")
    return file, positions


def nested(values: Array | pa.Array, offsets: Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def read_lists(file: Path) -> list[tuple[Array, Array]]:
    """As people read it: each position's lists become arrays."""
    table = pq.ParquetFile(file).read(use_threads=False)
    return [
        (np.array(ids), np.exp(np.array(codes) / -16.0))
        for row in zip(table["ids"].to_pylist(), table["codes"].to_pylist(), strict=True)
        for ids, codes in zip(*row, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Positions a second of the steps from a teacher's answer to a finished shard."""

    encode: float
    seal: float

    @property
    def both(self) -> float:
        return 1 / (1 / self.encode + 1 / self.seal)


def encoding(answers: Answers, spec: Spec, rows: Rows, turns: int = 5) -> Encoding:
    """Batch by batch as a unit does it; then rows in order, ranking, Parquet and hashes."""
    batches = list(batches_of(answers, spec, rows))
    parts = [encode(examples, answer, spec).rows for examples, answer in batches]
    positions = answers.num_positions
    return Encoding(
        encode=positions / best(lambda: [encode(*batch, spec) for batch in batches], turns),
        seal=positions / best(lambda: seal(Rows.concatenate(parts)), turns),
    )


def batches_of(
    answers: Answers, spec: Spec, rows: Rows, size: int = 16
) -> list[tuple[list[Example], Answer]]:
    """What the teacher gives for `size` examples at a time."""
    found = []
    offsets = rows.position_offsets
    for start in range(0, len(rows), size):
        end = min(len(rows), start + size)
        found.append(
            (
                [example_of(rows, row) for row in range(start, end)],
                Answer(
                    selected=selected_of(answers, spec, slice(offsets[start], offsets[end])),
                    logits=None,
                    features=(),
                    finite=torch.ones(end - start, dtype=torch.bool),
                ),
            )
        )
    return found


def selected_of(answers: Answers, spec: Spec, part: slice) -> Selected:
    """Exact entries alone: what is drawn is a dozen a position, and the exact ones 64."""
    logprobs = torch.from_numpy(answers.top_logprobs[part, : spec.max_kept])
    n = len(logprobs)
    none = torch.zeros(n, 0)
    values: dict[str, Any] = {
        "ids": torch.from_numpy(answers.top_ids[part, : spec.max_kept].astype(np.int64)),
        "logprobs": logprobs,
        "counts": torch.from_numpy(answers.exact_counts(spec.keep)[part].astype(np.int64)),
        "logsumexp": torch.zeros(n, 1),
        "entropy": torch.from_numpy(answers.entropy[part]),
        "kept_mass": logprobs.exp().sum(1),
        "label_logprob": torch.from_numpy(answers.gold_logprob[part]),
        "top_logprob": logprobs[:, 0],
        "sampled_ids": none.long(),
        "sampled_logprobs": none,
        "draws": none.long(),
        "num_sampled": torch.zeros(n, dtype=torch.int64),
    }
    return Selected(**{name: values[name] for name in Selected._fields})


def example_of(rows: Rows, row: int) -> Example:
    values: dict[str, Any] = dict.fromkeys(Example._fields)
    values |= {
        "id": rows.array("example_id")[row].tobytes(),
        "document_hash": rows.array("document_hash")[row].tobytes(),
        "window_index": 0,
        "window_count": 1,
        "input_ids": rows.input_ids.row(row).tobytes(),
        "file": "",
        "offset": 0,
    }
    return Example(**values)


def columns_read(sealed_data: memoryview) -> float:
    """Processor seconds that Arrow alone takes for a shard in memory, all columns: the floor of any reader."""
    buffer = pa.py_buffer(sealed_data)
    return best(lambda: pq.ParquetFile(pa.BufferReader(buffer)).read(use_threads=False), 8)
