"""How the in-process runner's memory grows with the corpus: from where on an engine is needed.

Beam's in-process runner keeps what it groups in memory: the documents, and then the examples, of a whole run. Each size
runs in a process of its own, with a teacher of one layer so that the time is that of everything else, and the largest
resident size is what the system counted. A second run over the same corpus, where all is known, is measured too.

    python benchmarks/memory.py                       # 10,000 and 100,000 documents
    python benchmarks/memory.py --documents 1000000   # minutes, and gigabytes
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from pipelines import CorpusConfig, PrecomputeConfig, TeacherConfig, precompute
from schemas.policies import TopP

ROOT = Path(__file__).resolve().parents[1]
WORDS = 200


def main() -> None:
    arguments = parse_arguments()
    if arguments.one is not None:
        one(*arguments.one)
        return
    with tempfile.TemporaryDirectory() as place:
        make_teacher(Path(place, "teacher"))
        found = [measure(Path(place), count, arguments.words) for count in arguments.documents]
    if len(found) > 1:
        (few, first, _), (many, last, again) = found[0], found[-1]
        each = (last - first) / (many - few)
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        print(f"a document costs {each:,.0f} bytes; {last - again:,} bytes less when all are known")
        print(f"so {total / 2**30:.0f} GiB hold about {(total - first) / each / 1e6:,.0f} million documents")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--words", type=int, default=12, help="words of a document, and so its tokens")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(place: Path, documents: int, words: int) -> tuple[int, int, int]:
    """Documents, and the largest resident bytes of a first run and of a second one."""
    corpus = place / f"{documents}.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        file.writelines(lines(documents, words))
    sizes = []
    for turn in ("first", "again"):
        command = [sys.executable, __file__, "--one"]
        command += [str(corpus), str(place / "teacher"), str(place / f"{documents}")]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
        sizes.append(told["bytes"])
        print(
            f"{documents:>9,} documents, {turn}: {told['bytes'] / 2**20:6,.0f} MiB, {told['seconds']:.0f} s",
            flush=True,
        )
    return documents, sizes[0], sizes[1]


def lines(documents: int, words: int) -> Iterator[str]:
    """Short documents, all different."""
    draw = random.Random(0)
    for number in range(documents):
        text = " ".join(f"w{draw.randrange(WORDS)}" for _ in range(words - 1))
        yield json.dumps({"text": f"{text} w{number % WORDS}"}) + "\n"


def one(corpus: str, teacher: str, cache: str) -> None:
    """One run in this process."""
    transformers.utils.logging.disable_progress_bar()
    started = time.perf_counter()
    precompute(
        PrecomputeConfig(
            corpus=CorpusConfig(files=(corpus,)),
            teacher=TeacherConfig(path=teacher, task="causal-lm", device="cpu"),
            cache=cache,
            keep=TopP(p=0.99, k=4),
            show_progress=False,
        )
    )
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"bytes": largest, "seconds": time.perf_counter() - started}))


def make_teacher(folder: Path) -> None:
    """One layer, eight wide, a token a word."""
    names: Sequence[str] = ["<unk>", *(f"w{number}" for number in range(WORDS))]
    words = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<unk>", model_max_length=512
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(names),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
