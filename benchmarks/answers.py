"""What a teacher says of real text, cut to what every keep policy needs, and kept in a file.

Logits of 65,000 positions over 49,152 ids are 13 GB; what the policies need of them is under 100 MB: the 64 largest,
what each policy draws, and a few sums. `codec.py` makes it once for each teacher and corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import zstandard

from pipelines.keep.select import num_uniforms, select
from pipelines.keep.top import top_k
from schemas.policies import KeepAll, KeepPolicy, Sampled, Threshold, TopP, parse_keep
from schemas.rows.ragged import Array, Ragged, offsets_of

K = 64
DRAWN = ("threshold:1/8", "threshold:1/16", "threshold:1/32", "threshold:1/64", "sampled:13", "sampled:50")
_CHUNK = 128
"""Positions at a time. Their float64 arrays must be above 32 MB, for glibc to give them back: smaller ones leave holes
around the small arrays that are kept, and the memory grows to that of all logits."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What one policy draws at each position."""

    counts: Array
    """[N]"""
    ids: Array
    logprobs: Array
    times: Array
    """How often each id was drawn; 1 for `threshold`."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """N positions of R examples; every token but the last of an example is one."""

    lengths: Array
    """Tokens of each example, [R]."""
    input_ids: Array
    top_ids: Array
    """[N, K], descending, equal ones by id."""
    top_logprobs: Array
    entropy: Array
    gold_logprob: Array
    sum_squares: Array
    """Sum of p^2 over all ids."""
    features: Array
    """Mean of the last hidden states, [R, D]."""
    vocab_size: int
    draws: dict[str, Draws]

    @property
    def num_positions(self) -> int:
        return len(self.entropy)

    @property
    def inputs(self) -> Array:
        """The token that each position stands on."""
        last = np.zeros(len(self.input_ids), np.bool_)
        last[np.cumsum(self.lengths) - 1] = True
        found: Array = self.input_ids[~last]
        return found

    def exact_counts(self, policy: KeepPolicy) -> Array:
        """How many of the largest entries a policy keeps."""
        p = np.exp(self.top_logprobs.astype(np.float64))
        if isinstance(policy, Threshold):
            return np.maximum(policy.k, (p >= policy.tau).sum(1))
        if isinstance(policy, Sampled):
            return np.zeros(len(p), np.int64)
        if isinstance(policy, KeepAll):
            raise ValueError("answers hold no whole distributions")
        if isinstance(policy, TopP):
            before = np.cumsum(p, 1) - p
            return np.maximum(1, (before[:, : policy.k] < policy.p).sum(1))
        return np.full(len(p), policy.k)

    def save(self, file: Path) -> None:
        """Whole or not at all."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "draws"}
        for name, drawn in self.draws.items():
            arrays |= {f"{name} {f.name}": getattr(drawn, f.name) for f in fields(drawn)}
        part = file.with_suffix(".part.npz")
        np.savez(part, **arrays)
        part.rename(file)

    @classmethod
    def load(cls, file: Path) -> Answers:
        data = dict(np.load(file))
        draws = {
            name: Draws(**{f.name: data.pop(f"{name} {f.name}") for f in fields(Draws)}) for name in DRAWN
        }
        return cls(**{**data, "vocab_size": int(data["vocab_size"])}, draws=draws)


def load_or_make(teacher: str, corpus: str, tokens: int, folder: Path) -> Answers:
    """From the file of an earlier start, or from the teacher."""
    file = folder / f"answers-{Path(teacher).name}-{Path(corpus).name.partition('.')[0]}-{tokens}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make(teacher, corpus, tokens).save(file)
    return Answers.load(file)


def make(teacher: str, corpus: str, tokens: int) -> Answers:
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    cut = windows(tokenizer, corpus, tokens)
    return collect(cut, spoken(model, cut))


def windows(tokenizer: Any, corpus: str, tokens: int, length: int = 512) -> list[list[int]]:
    """Windows of whole documents, at most four of each so that many are seen; in an order by lot."""
    lines = read_text(corpus).splitlines()
    order = np.random.default_rng(0).permutation(len(lines))
    found: list[list[int]] = []
    count = 0
    for line in order:
        ids = tokenizer(json.loads(lines[line])["text"], verbose=False)["input_ids"][: 4 * length]
        cut = [ids[start : start + length] for start in range(0, len(ids), length)]
        found += [window for window in cut if len(window) >= 32]
        count = sum(map(len, found))
        if count >= tokens:
            break
    return found


def read_text(corpus: str) -> str:
    data = Path(corpus).read_bytes()
    if corpus.endswith(".zst"):
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    return data.decode()


def spoken(model: Any, cut: Sequence[list[int]]) -> Iterator[tuple[torch.Tensor, Array]]:
    """For each window the logits of its positions, and its mean last hidden state."""
    with torch.inference_mode():
        for window in cut:
            output = model(torch.tensor([window]), output_hidden_states=True)
            yield output.logits[0, :-1], output.hidden_states[-1][0].mean(0).numpy()


def collect(cut: Sequence[list[int]], spoken: Iterator[tuple[torch.Tensor, Array]]) -> Answers:
    """Goes over the logits once."""
    draw = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {name: [] for name in ("ids", "logprobs", "entropy", "gold", "squares")}
    draws: dict[str, list[Draws]] = {name: [] for name in DRAWN}
    features = []
    vocab_size = 0
    for window, (logits, feature) in zip(cut, spoken, strict=True):
        features.append(feature)
        gold = torch.tensor(window[1:])
        vocab_size = logits.shape[1]
        for rows, labels in zip(logits.split(_CHUNK), gold.split(_CHUNK), strict=True):
            logprobs = torch.log_softmax(rows.double(), 1)
            p = logprobs.exp()
            _, ids = top_k(rows, K)
            columns["ids"].append(ids.int().numpy())
            columns["logprobs"].append(logprobs.gather(1, ids).float().numpy())
            columns["entropy"].append(-(p * logprobs).sum(1).numpy())
            columns["gold"].append(logprobs.gather(1, labels[:, None])[:, 0].float().numpy())
            columns["squares"].append((p * p).sum(1).numpy())
            for name in DRAWN:
                draws[name].append(drawn_of(parse_keep(name), rows, labels, draw))
    return Answers(
        lengths=np.array([len(window) for window in cut]),
        input_ids=np.concatenate([np.array(window, np.int32) for window in cut]),
        top_ids=np.concatenate(columns["ids"]),
        top_logprobs=np.concatenate(columns["logprobs"]),
        entropy=np.concatenate(columns["entropy"]).astype(np.float32),
        gold_logprob=np.concatenate(columns["gold"]),
        sum_squares=np.concatenate(columns["squares"]),
        features=np.stack(features),
        vocab_size=vocab_size,
        draws={name: joined(parts) for name, parts in draws.items()},
    )


def joined(parts: Sequence[Draws]) -> Draws:
    return Draws(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Draws)})


def drawn_of(
    policy: KeepPolicy, logits: torch.Tensor, labels: torch.Tensor, draw: np.random.Generator
) -> Draws:
    """What a policy draws at some positions, as the job draws it."""
    uniforms = torch.from_numpy(draw.random((len(logits), num_uniforms(policy))))
    found = select(logits.clone(), labels, policy, uniforms=uniforms)
    is_drawn = torch.arange(found.sampled_ids.shape[1]) < found.num_sampled[:, None]
    return Draws(
        counts=found.num_sampled.numpy(),
        ids=found.sampled_ids[is_drawn].int().numpy(),
        logprobs=found.sampled_logprobs[is_drawn].numpy(),
        times=found.draws[is_drawn].int().numpy(),
    )


def lists(values: Array, lengths: Array) -> Ragged:
    return Ragged(values=values, offsets=offsets_of(lengths))
