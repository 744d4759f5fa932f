"""Four students from one decode against the same four trained one after the other. Ratios of wall and processor time.

* **together**: `train_students`, as `teachonce train --students` runs it.
* **apart**: `train` for each, in this process too, so that imports count for nobody.

The students are a byte-level language model's: small models with a small vocabulary, whose step costs little more than
what it is made from. Alike they differ in the learning rate, and share decode and batches; unlike in losses, width and
accumulation, and share the decode. A large vocabulary or model takes its time in the step: there is less to gain
(`--cache`). Both ways run in turns, and the first turn is not counted. Their weights are compared: they must be equal.

    python benchmarks/fanout.py
    python benchmarks/fanout.py --cache CACHE
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import torch
import transformers
from ratios import tell
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipelines import CorpusConfig, PrecomputeConfig, TeacherConfig, precompute
from schemas import Cache
from schemas.policies import parse_keep
from trainer import StudentArguments, TrainConfig, train, train_students

ROOT = Path(__file__).resolve().parents[1]
POLICIES = ("top_k:64", "top_k:192")
DOCUMENTS = 100
MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
STUDENTS: dict[str, list[dict[str, Any]]] = {
    "alike": [{"learning_rate": rate} for rate in (1e-3, 5e-4, 2e-4, 1e-4)],
    "unlike": [
        {},
        {"losses": ["kl=1", "ce=0.5"], "learning_rate": 1e-3},
        {"temperature": 1.0, "model": {"hidden_size": 48, "num_attention_heads": 3}},
        {"losses": ["kl=1", "mse_logits=0.1"], "accumulation": 4},
    ],
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        caches = [arguments.cache] if arguments.cache else make_caches(Path(folder), arguments.keep)
        for cache in caches:
            for name in arguments.students:
                compare(name, cache, arguments, Path(folder))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--cache", help="of a causal LM; default: two are made of examples/ and a random teacher"
    )
    parser.add_argument("--keep", nargs="+", default=POLICIES)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args()


def make_caches(folder: Path, policies: Sequence[str]) -> list[str]:
    """What a random teacher of bytes says of the first texts of examples/."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: place for place, letter in enumerate(["<eos>", *letters])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>").save_pretrained(
        folder / "teacher"
    )
    shape = {key: value for key, value in MODEL.items() if key != "model_type"}
    config = LlamaConfig(vocab_size=257, pad_token_id=0, bos_token_id=None, eos_token_id=0, **shape)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "teacher")
    with pyarrow.input_stream(str(ROOT / "examples/corpus.jsonl.zst"), compression="zstd") as lines:
        documents = lines.read().splitlines()[:DOCUMENTS]
    (folder / "corpus.jsonl").write_bytes(b"\n".join(documents) + b"\n")
    return [make_cache(folder, keep) for keep in policies]


def make_cache(folder: Path, keep: str) -> str:
    path = str(folder / f"cache-{keep.replace(':', '-')}")
    precompute(
        PrecomputeConfig(
            corpus=CorpusConfig(files=(str(folder / "corpus.jsonl"),)),
            teacher=TeacherConfig(path=str(folder / "teacher"), task="causal-lm"),
            cache=path,
            keep=parse_keep(keep),
            max_length=256,
            show_progress=False,
        )
    )
    return path


def compare(name: str, cache: str, arguments: argparse.Namespace, folder: Path) -> None:
    students, totals = STUDENTS[name], Cache.open(cache).totals
    positions, entries = totals.positions, totals.entries / totals.positions
    print(f"{positions:,} positions of {entries:.1f} entries; students {name}", flush=True)
    walls, times = [], []
    for turn in range(arguments.turns + 1):
        outs = {way: Path(folder, f"{way}-{turn}") for way in ("together", "apart")}
        told = {
            way: [ask(cache, own, arguments, out, n) for n, own in enumerate(students)]
            for way, out in outs.items()
        }
        one = measured(lambda told=told: train_all(told["together"]))
        other = measured(lambda told=told: [train(*each) for each in told["apart"]])
        check_equal(told)
        for out in outs.values():
            shutil.rmtree(out)
        if turn:
            walls.append(one[0] / other[0])
            times.append(one[1] / other[1])
    for what, ratios in (("wall time", walls), ("processor time", times)):
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"together / apart, {what}, turn by turn: {each}", flush=True)
        aim = 0.7 if what == "processor time" else None
        tell(f"{entries:.0f} entries, {name}: together / apart, {what}", statistics.median(ratios), aim)


def ask(
    cache: str, own: dict[str, Any], arguments: argparse.Namespace, out: Path, number: int
) -> tuple[TrainConfig, StudentArguments]:
    out.mkdir(exist_ok=True)
    own = dict(own)
    config = MODEL | own.pop("model", {})
    path = out / f"{number}.json"
    path.write_text(json.dumps(config))
    accumulation = own.pop("accumulation", 1)
    names = {"losses", "temperature"} & own.keys()
    settings = {
        "output_dir": str(out / str(number)),
        "max_steps": arguments.steps,
        "per_device_train_batch_size": arguments.batch_size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    settings |= {key: value for key, value in own.items() if key not in names}
    chosen = {key: own[key] for key in names}
    return TrainConfig(cache=cache, student=str(path), **chosen), StudentArguments(**settings)


def train_all(students: Sequence[tuple[TrainConfig, StudentArguments]]) -> None:
    for outcome in train_students(students):
        if outcome.error is not None:
            raise outcome.error


def measured(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of wall and of processor, of all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        work()
    return time.perf_counter() - wall, time.process_time() - processor


def check_equal(told: dict[str, list[tuple[TrainConfig, StudentArguments]]]) -> None:
    for one, other in zip(told["together"], told["apart"], strict=True):
        ours, theirs = (load_file(Path(each[1].output_dir, "model.safetensors")) for each in (one, other))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), one[1].output_dir


if __name__ == "__main__":
    main()
