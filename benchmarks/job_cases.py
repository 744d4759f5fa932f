"""What `job_parts.py` measures: teachers, policies and corpora, and the product that selection is compared with."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from precompute import ROOT, paragraphs

DEMO, CORPUS = str(ROOT / "examples/teacher"), str(ROOT / "examples/corpus.jsonl.zst")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: a teacher, a policy, and what a figure is divided by."""

    vocab_size: int | None = None
    classes: int | None = None
    keep: str | None = None
    features: tuple[str, ...] = ()
    real: bool = False

    @property
    def per(self) -> str:
        return "example" if self.classes else "token"


CASES = {
    "4k": Case(vocab_size=4096),
    "49k": Case(vocab_size=49_152),
    "128k": Case(vocab_size=128_256),
    "4k-top_p": Case(vocab_size=4096, keep="top_p:0.99,k=64"),
    "49k-top_p": Case(vocab_size=49_152, keep="top_p:0.99,k=64"),
    "128k-top_p": Case(vocab_size=128_256, keep="top_p:0.99,k=64"),
    "classes": Case(classes=45),
    "features": Case(classes=45, features=("mean:-1",)),
    "real": Case(real=True),
}
_WIDTHS = {4096: 192, 49_152: 576, 128_256: 2048}
"""Hidden sizes of the demo's teacher, of SmolLM2-135M and of Llama-3.2-1B: what a head of so many ids is given."""
_TOKENS = {"4k": 160_000, "49k": 40_000, "128k": 16_000, "real": 30_000}
_EXAMPLES = 12_000


def write_corpus(name: str, case: Case, folder: Path, tokens: int | None = None) -> list[Path]:
    """A quarter of some paragraphs, all of them, and 1% more: a file each."""
    texts = paragraphs(CORPUS)
    if case.classes:
        every = [text for text in texts if len(text) <= 160]
        every += [f"{text} {number}" for number in (2, 3) for text in every]
        size = _EXAMPLES
    else:
        every, lengths = [], 0
        most = (tokens or _TOKENS.get(name.partition("-")[0], 0)) * 3
        again = (f"{text} {turn}" for turn in range(1, 99) for text in paragraphs(CORPUS))
        for text in itertools.chain(texts, again):
            every.append(text)
            lengths += len(text)
            if lengths > most:
                break
        size = len(every) * 100 // 101
    parts = (every[: size // 4], every[:size], every[size : size + max(1, size // 100)])
    files = [folder / f"part{index}.jsonl" for index in range(3)]
    for file, part in zip(files, parts, strict=True):
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in part), encoding="utf-8")
    return files


def product_us(vocab_size: int) -> float:
    """Microseconds of one core that the head's product takes a position."""
    width = _WIDTHS[vocab_size]
    rows = max(1, 2**26 // (4 * vocab_size))
    hidden, weight = torch.randn(rows, width), torch.randn(vocab_size, width)
    out = torch.empty(rows, vocab_size)
    seconds = []
    for _ in range(5):
        started = time.thread_time()
        torch.mm(hidden, weight.t(), out=out)
        seconds.append(time.thread_time() - started)
    return 1e6 * statistics.median(seconds) / rows
