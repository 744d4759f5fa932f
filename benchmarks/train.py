"""A training step from the cache against the same student on plain cross entropy with tensors in memory. A ratio.

* **cache**: `teachonce train`'s own loop: shards read, checked and decoded as it goes, KL, head and loss fused in
  chunks, the student's whole logits never in memory.
* **memory**: Hugging Face `Trainer` on the same student, the same batches in the same order, collated beforehand; the
  model's own forward with `labels`, its own cross entropy.

Both run in this process in turns, as many steps each; the first turn of each is not counted. Wall time is the loop's
own; processor time is that of the whole call, opening student and cache included. The cache is made of what the
repository ships, with the default policy; or `--cache` names one.

    python benchmarks/train.py
    python benchmarks/train.py --cache CACHE --student CONFIG.json --batch_size 8
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from ratios import tell
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from pipelines import CorpusConfig, PrecomputeConfig, TeacherConfig, precompute
from schemas import Cache
from schemas.policies import Threshold
from trainer import StudentArguments, TrainConfig, train
from trainer.batches.collate import Collation
from trainer.stream.order import Order
from trainer.stream.replay import Address, Share, read_batches
from trainer.stream.side import Side
from trainer.students.students import open_student

ROOT = Path(__file__).resolve().parents[1]
SEED, SHUFFLE, EVAL_FRACTION = 1, 8, 0.05


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        cache = arguments.cache or make_cache(Path(folder, "cache"))
        batches = in_memory(cache, arguments)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        print(
            f"{arguments.steps} steps of {arguments.batch_size} rows, {tokens:,} tokens, {arguments.threads} threads"
        )
        cached, memory = [], []
        processor: tuple[list[float], list[float]] = ([], [])
        for turn in range(arguments.turns + 1):
            start = time.process_time()
            wall = from_cache(cache, arguments, folder)
            middle = time.process_time()
            plain = from_memory(batches, arguments, folder)
            end = time.process_time()
            if turn:
                cached.append(wall)
                memory.append(plain)
                processor[0].append(middle - start)
                processor[1].append(end - middle)
        for name, taken in (("cache", cached), ("memory", memory)):
            each = ", ".join(f"{seconds / arguments.steps * 1000:.0f}" for seconds in taken)
            print(f"{name:<7} ms a step: {each}")
        ratio = statistics.median(a / b for a, b in zip(cached, memory, strict=True))
        print(f"ratios are medians of {len(cached)} pairs")
        tell("step from the cache / step in memory", ratio, 1.10)
        used = statistics.median(a / b for a, b in zip(*processor, strict=True))
        tell("the same, by processor time", used, 1.10)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cache", help="default: made from examples/ in a temporary folder")
    parser.add_argument(
        "--student", default=str(ROOT / "examples/student.json"), help="config of a causal LM"
    )
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def make_cache(path: Path) -> str:
    precompute(
        PrecomputeConfig(
            corpus=CorpusConfig(files=(str(ROOT / "examples/corpus.jsonl.zst"),)),
            teacher=TeacherConfig(path=str(ROOT / "examples/teacher"), task="causal-lm"),
            cache=str(path),
            keep=Threshold(tau=1 / 32),
            max_length=128,
        )
    )
    return str(path)


def in_memory(path: str, arguments: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """The first batches of the training order, with labels as transformers wants them."""
    cache = Cache.open(path)
    side = Side(cache=cache, eval_fraction=EVAL_FRACTION, is_eval=False)
    order = Order(counts=(side.counts(),), batch_size=arguments.batch_size, row_groups=SHUFFLE, seed=SEED)
    student = open_student(arguments.student, cache, teacher=None, seed=SEED)
    collation = Collation(student_vocab=student.vocab_size, pad_id=student.pad_id)
    stream = read_batches([side], order, collation, Share(batch_size=arguments.batch_size), Address(0, 0))
    found = []
    for _, batch in itertools.islice(stream, arguments.steps):
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        found.append({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels})
    stream.close()  # type: ignore[attr-defined]
    return found


def from_cache(path: str, arguments: argparse.Namespace, folder: str) -> float:
    """Seconds of the loop, as Trainer counts them."""
    config = TrainConfig(cache=path, student=arguments.student, losses=["kl=1.0"])
    finished = train(
        config, StudentArguments(**loop_arguments(arguments, f"{folder}/cached"), overwrite_output_dir=True)
    )
    return float(finished.metrics["train_runtime"])


class InMemory(Dataset[Any]):
    """Whole batches as items."""

    def __init__(self, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._batches[index]


def from_memory(
    batches: Sequence[dict[str, torch.Tensor]], arguments: argparse.Namespace, folder: str
) -> float:
    transformers.set_seed(SEED)
    config = transformers.AutoConfig.from_pretrained(arguments.student)
    model = transformers.AutoModelForCausalLM.from_config(config)
    settings = loop_arguments(arguments, f"{folder}/plain") | {"per_device_train_batch_size": 1}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**settings, report_to="none"),
        train_dataset=InMemory(batches),
        data_collator=lambda items: items[0],
    )
    return float(trainer.train().metrics["train_runtime"])


def loop_arguments(arguments: argparse.Namespace, output_dir: str) -> dict[str, Any]:
    return {
        "output_dir": output_dir,
        "max_steps": arguments.steps,
        "per_device_train_batch_size": arguments.batch_size,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": arguments.steps,
        "disable_tqdm": True,
        "seed": SEED,
        "use_cpu": True,
    }


if __name__ == "__main__":
    main()
