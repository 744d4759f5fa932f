"""One peer of `replay_peers.py`, run by an interpreter that has its package: writes a cache's content as the peer's own
format, and reads it back as padded batches, shuffled, in one process. Imports nothing of this project.

    python replay_worker.py PEER write SOURCE.npz FOLDER
    python replay_worker.py datasets shuffle SHARDS ROWS FOLDER BUFFER  # the order of numbers, by its shuffle
    python replay_worker.py PEER read FOLDER BATCH_SIZE BUFFER    # an epoch for each line of the standard input

The content is an example's number, its tokens, each position's count of kept entries, tail and negentropy, and each
entry's id and the logarithm of its weight: as plain arrays, so that nothing is left to decode. Batches have what ours
have: padded tokens, mask, row and token of each position, each entry's position, id, log-probability and weight, tail,
negentropy and gold id. They are not sorted by length: no peer does it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

COLUMNS = {
    "number": np.int32,
    "input_ids": np.int32,
    "counts": np.int32,
    "tail": np.float32,
    "negentropy": np.float32,
    "ids": np.int32,
    "logprobs": np.float32,
}
SHARDS = 8
"""Of the formats whose documentation names no size: so that shuffling the shards does something."""
Example = dict[str, Any]


def main() -> None:
    peer, verb, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    format_ = PEERS[peer]
    if verb == "write":
        source, folder = rest
        Path(folder).mkdir(parents=True)
        format_.write(Path(source), folder)
        return
    if verb == "shuffle":
        print(json.dumps(numbers_shuffled(*map(int, rest[:2]), rest[2], int(rest[3]))))
        return
    folder, size, buffer = rest
    dataset = format_.open(folder, int(size), int(buffer))
    for epoch, _ in enumerate(sys.stdin):
        print(json.dumps(epoch_of(format_, dataset, int(size), epoch)), flush=True)


def epoch_of(format_: Any, dataset: Any, size: int, epoch: int) -> dict[str, Any]:
    start, positions, tokens, room, order = time.process_time(), 0, 0, 0, []
    for columns, lengths in format_.batches(dataset, size, epoch):
        batch = collate(columns, lengths)
        positions += len(batch["row"])
        tokens += int(lengths.sum())
        room += batch["input_ids"].numel()
        order.append(columns["number"])
    seconds = time.process_time() - start
    numbers = np.concatenate(order).tolist()
    return {"seconds": seconds, "positions": positions, "padded": room / tokens, "order": numbers}


def collate(columns: Example, lengths: np.ndarray) -> dict[str, torch.Tensor]:
    """The tensors of a batch, from flat arrays."""
    longest, number = int(lengths.max()), len(lengths)
    mask = np.arange(longest) < lengths[:, None]
    tokens = np.zeros(mask.shape, np.int64)
    tokens[mask] = columns["input_ids"]
    row = np.repeat(np.arange(number), lengths - 1)
    firsts = np.cumsum(lengths - 1) - (lengths - 1)
    token = np.arange(len(row)) - firsts[row]
    logprobs = columns["logprobs"]
    found = {
        "input_ids": tokens,
        "attention_mask": mask.astype(np.int64),
        "row": row,
        "token": token,
        "ids": columns["ids"].astype(np.int64),
        "position": np.repeat(np.arange(len(row)), columns["counts"]),
        "logprobs": logprobs,
        "weights": np.exp(logprobs),
        "tail": columns["tail"],
        "negentropy": columns["negentropy"],
        "gold": tokens[row, token + 1],
    }
    return {name: torch.from_numpy(values) for name, values in found.items()}


def numbers_shuffled(shards: int, rows: int, folder: str, buffer: int) -> list[int]:
    """Rows of so many Parquet files, in the order of the buffer's shuffle; the files are shuffled too."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import load_dataset

    files = [f"{folder}/{shard:04d}.parquet" for shard in range(shards)]
    for shard, file in enumerate(files):
        pq.write_table(pa.table({"number": np.arange(rows) + shard * rows}), file)
    data = load_dataset("parquet", data_files=files, split="train", streaming=True)
    return [example["number"] for example in data.shuffle(seed=0, buffer_size=buffer)]


def examples(source: Path) -> Iterator[Example]:
    data = np.load(source)
    columns = {name: (data[name], data[f"{name}_offsets"]) for name in COLUMNS}
    for row in range(len(columns["number"][0])):
        yield {name: values[at[row] : at[row + 1]] for name, (values, at) in columns.items()}


def joined(batch: list[Example]) -> tuple[Example, np.ndarray]:
    lengths = np.array([len(example["input_ids"]) for example in batch])
    return {name: np.concatenate([example[name] for example in batch]) for name in COLUMNS}, lengths


def batched(found: Iterator[Example], size: int) -> Iterator[tuple[Example, np.ndarray]]:
    batch = []
    for example in found:
        batch.append(example)
        if len(batch) == size:
            yield joined(batch)
            batch = []
    if batch:
        yield joined(batch)


class Datasets:
    """Parquet files, streamed; Arrow tables from end to end, which its documentation names the fastest."""

    def write(self, source: Path, folder: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = np.load(source)
        columns = {
            name: pa.ListArray.from_arrays(data[f"{name}_offsets"].astype(np.int32), data[name])
            for name in COLUMNS
        }
        table = pa.table(columns)
        each = -(-len(table) // SHARDS)
        for shard in range(SHARDS):
            pq.write_table(
                table.slice(shard * each, each),
                f"{folder}/{shard}.parquet",
                row_group_size=100,
                use_dictionary=False,
            )

    def open(self, folder: str, size: int, buffer: int) -> Any:
        from datasets import load_dataset

        files = sorted(map(str, Path(folder).glob("*.parquet")))
        data = load_dataset("parquet", data_files=files, split="train", streaming=True)
        return data.with_format("arrow").shuffle(seed=0, buffer_size=buffer)

    def batches(self, dataset: Any, size: int, epoch: int) -> Iterator[tuple[Example, np.ndarray]]:
        dataset.set_epoch(epoch)
        for table in dataset.iter(batch_size=size):
            flat = {name: table[name].combine_chunks() for name in COLUMNS}
            yield (
                {name: column.flatten().to_numpy(zero_copy_only=False) for name, column in flat.items()},
                np.diff(flat["input_ids"].offsets.to_numpy()),
            )


class LitData:
    """Chunks of 64 MB, as its documentation has them."""

    def write(self, source: Path, folder: str) -> None:
        from litdata import optimize

        self._examples = list(examples(source))
        optimize(
            fn=self._example,
            inputs=list(range(len(self._examples))),
            output_dir=folder,
            chunk_bytes="64MB",
            num_workers=1,
            start_method="fork",
        )

    def _example(self, number: int) -> Example:
        return self._examples[number]

    def open(self, folder: str, size: int, buffer: int) -> Any:
        from litdata import StreamingDataset

        return StreamingDataset(folder, shuffle=True, seed=0)

    def batches(self, dataset: Any, size: int, epoch: int) -> Iterator[tuple[Example, np.ndarray]]:
        dataset.set_epoch(epoch)
        return batched(iter(dataset), size)


class Mosaic:
    """MDS shards of 64 MB, not compressed, as its defaults are."""

    def write(self, source: Path, folder: str) -> None:
        from streaming import MDSWriter

        columns = {name: f"ndarray:{np.dtype(dtype).name}" for name, dtype in COLUMNS.items()}
        with MDSWriter(out=folder, columns=columns) as writer:
            for example in examples(source):
                writer.write(example)

    def open(self, folder: str, size: int, buffer: int) -> Any:
        from streaming import StreamingDataset

        return StreamingDataset(local=folder, shuffle=True, shuffle_seed=0, batch_size=size)

    def batches(self, dataset: Any, size: int, epoch: int) -> Iterator[tuple[Example, np.ndarray]]:
        return batched(iter(dataset), size)


class WebDataset:
    """Tar files of tensors in its own binary form; shuffled before they are parsed."""

    def write(self, source: Path, folder: str) -> None:
        import webdataset

        found = list(examples(source))
        each = -(-len(found) // SHARDS)
        with webdataset.ShardWriter(f"{folder}/%04d.tar", maxcount=each, verbose=0) as writer:
            for number, example in enumerate(found):
                arrays = [np.ascontiguousarray(example[name]) for name in COLUMNS]
                writer.write({"__key__": f"{number:08d}", "ten": arrays})

    def open(self, folder: str, size: int, buffer: int) -> Any:
        import webdataset

        files = sorted(map(str, Path(folder).glob("*.tar")))
        return webdataset.WebDataset(files, shardshuffle=SHARDS, seed=0).shuffle(buffer).decode()

    def batches(self, dataset: Any, size: int, epoch: int) -> Iterator[tuple[Example, np.ndarray]]:
        found = (dict(zip(COLUMNS, sample["ten"], strict=True)) for sample in dataset)
        return batched(found, size)


PEERS = {"datasets": Datasets(), "litdata": LitData(), "mosaic": Mosaic(), "webdataset": WebDataset()}

if __name__ == "__main__":
    main()
