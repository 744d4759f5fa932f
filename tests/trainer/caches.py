"""Caches of what a tiny model says, built with the schemas API as a writer would."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.cache import Cache
from schemas.features import Feature
from schemas.fingerprint import Fingerprint
from schemas.policies import KeepPolicy, TopK
from schemas.rows.codec import decode_scalars, encode_logprobs, encode_scalars, quantise
from schemas.rows.ragged import Ragged, offsets_of
from schemas.rows.rows import Rows
from schemas.shards.seal import SealedShard, Shard, Totals, ranking_of, seal_shard
from schemas.spec import Header, Spec
from schemas.storage.storage import Storage
from schemas.versions.commits import commit, record_after
from schemas.versions.header import create_header
from tests.trainer.tiny import HIDDEN, VOCAB, tiny_tokenizer


@torch.no_grad()
def causal_columns(model: Any, examples: list[np.ndarray], spec: Spec) -> dict[str, Any]:
    ids, codes, counts, tops, lses, entropies, golds, pooled = [], [], [], [], [], [], [], []
    for example in examples:
        tokens = torch.from_numpy(example).long()[None]
        output = model(input_ids=tokens, output_hidden_states=True)
        logits = output.logits[0, :-1].double()
        logprobs = logits.log_softmax(-1)
        order = logprobs.argsort(dim=-1, descending=True, stable=True)[:, : spec.max_kept]
        kept = logprobs.gather(-1, order).float().numpy()
        number = np.full(len(logits), order.shape[1], np.int64)
        ids.append(order.numpy().astype(np.int32).reshape(-1))
        tops.append(encode_scalars(-kept[:, 0], spec.top_step_nats).codes)
        top = -decode_scalars(tops[-1], spec.top_step_nats)
        codes.append(encode_logprobs(kept.reshape(-1), number, top, spec.code_step_nats).codes)
        counts.append(number.astype(np.int32))
        each = [(logits / t).logsumexp(-1).float() for t in spec.temperatures]
        lses.append(torch.stack(each, 1).numpy().reshape(-1))
        entropy = -(logprobs.exp() * logprobs).sum(-1).float().numpy()
        entropies.append(encode_scalars(entropy, spec.scalar_step_nats).codes)
        gold = logprobs.gather(-1, tokens[0, 1:, None])[:, 0].float().numpy()
        golds.append(encode_scalars(-gold, spec.scalar_step_nats).codes)
        pooled.append([_pool(output.hidden_states[f.layer][0], f.pooling) for f in spec.features])
    return {
        "input_ids": _lists(examples),
        "labels": _nulls(len(examples), np.int32),
        "num_kept": _lists(counts),
        "kept_ids": _lists(ids),
        "kept_codes": _lists(codes),
        "top_codes": _lists(tops),
        "logsumexp": _lists(lses),
        "entropy_codes": _lists(entropies),
        "gold_codes": _lists(golds),
        **_feature_columns(pooled, spec),
    }


@torch.no_grad()
def class_columns(model: Any, examples: list[np.ndarray], labels: list[Any], spec: Spec) -> dict[str, Any]:
    outputs = [
        model(input_ids=torch.from_numpy(example).long()[None], output_hidden_states=True)
        for example in examples
    ]
    logits = [output.logits[0].double() for output in outputs]
    pooled = [
        [_pool(output.hidden_states[f.layer][0], f.pooling) for f in spec.features] for output in outputs
    ]
    shared = {"input_ids": _lists(examples), **_feature_columns(pooled, spec)}
    if spec.score != "softmax":
        dense = _lists([z.float().numpy() for z in logits])
        return shared | {"labels": Ragged.of(labels, np.float32), "logits": dense}
    logprobs = [z.log_softmax(-1) for z in logits]
    order = [p.argsort(dim=-1, descending=True, stable=True) for p in logprobs]
    kept = [p[o].float().numpy() for p, o in zip(logprobs, order, strict=True)]
    number = np.full(len(examples), spec.vocab_size, np.int64)
    top = encode_scalars(-np.array([k[0] for k in kept], np.float32), spec.top_step_nats).codes
    decoded = -decode_scalars(top, spec.top_step_nats)
    codes = encode_logprobs(np.concatenate(kept), number, decoded, spec.code_step_nats).codes
    golds = [
        None if label is None else encode_scalars(-p[label : label + 1].float().numpy(), 1 / 32).codes
        for p, label in zip(logprobs, labels, strict=True)
    ]
    ones = [np.full(1, 32, np.int16)] * len(examples)
    return shared | {
        "labels": Ragged.of([None if label is None else np.array([label]) for label in labels], np.int32),
        "num_kept": _lists([np.array([n], np.int32) for n in number]),
        "kept_ids": _lists([o.numpy().astype(np.int32) for o in order]),
        "kept_codes": Ragged(values=codes, offsets=offsets_of(number)),
        "top_codes": _lists(list(top[:, None])),
        "logsumexp": _lists(
            [np.array([(z / t).logsumexp(-1).item() for t in spec.temperatures], np.float32) for z in logits]
        ),
        "entropy_codes": _lists(ones),
        "gold_codes": Ragged.of(golds, np.int16),
    }


def _pool(hidden: torch.Tensor, pooling: str) -> np.ndarray:
    how = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}
    return how[pooling].float().numpy()


def _feature_columns(pooled: list[list[np.ndarray]], spec: Spec) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for place, feature in enumerate(spec.features):
        quantised = quantise(np.stack([row[place] for row in pooled]))
        lengths = np.full(len(pooled), feature.width)
        columns[feature.column] = Ragged(values=quantised.codes.reshape(-1), offsets=offsets_of(lengths))
        columns[feature.scale_column] = quantised.scale
    return columns


def _lists(arrays: list[np.ndarray]) -> Ragged:
    return Ragged(
        values=np.concatenate(arrays), offsets=offsets_of(np.array([len(a) for a in arrays], np.int64))
    )


def _places(spec: Spec, rows: int) -> Ragged:
    """Null for a causal LM, where every token but the last is a position; a text's one position is its first token."""
    return _nulls(rows, np.int32) if spec.task == "causal-lm" else _lists([np.zeros(1, np.int32)] * rows)


def _nulls(rows: int, dtype: Any) -> Ragged:
    return Ragged.of([None] * rows, dtype)


def finished_rows(spec: Spec, columns: dict[str, Any], documents: list[int] | None = None) -> Rows:
    number = len(columns["input_ids"])
    documents = documents or list(range(number))
    hashes = [hashlib.blake2b(f"d{d}".encode(), digest_size=16).digest() for d in documents]
    ids = [hashlib.blake2b(f"e{i}".encode(), digest_size=16).digest() for i in range(number)]
    data = columns | {
        "example_id": np.frombuffer(b"".join(ids), np.uint8).reshape(number, 16),
        "document_hash": np.frombuffer(b"".join(hashes), np.uint8).reshape(number, 16),
        "window_index": np.zeros(number, np.int32),
        "window_count": np.ones(number, np.int32),
        "position_index": _places(spec, number),
    }
    rows = Rows(spec=spec, data=data)
    rows.check("test")
    return rows.take(np.array(sorted(range(number), key=lambda i: ids[i])))


def write_cache(
    path: Path,
    rows: Rows,
    *,
    group_rows: int = 16,
    shards: int = 2,
    tokenizer: Any = None,
    layers: int = 2,
    sealing: Callable[..., SealedShard] = seal_shard,
) -> Cache:
    """Commits the rows, whatever they are, as `shards` shards of row groups of at most `group_rows` rows."""
    spec = rows.spec
    folder = path.parent / f"{path.name}-tokenizer"
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    fingerprint = Fingerprint(weights="w", config="c", tokenizer="t", chat_template="", dtype="float32")
    header = Header(
        fingerprint=fingerprint,
        spec=spec,
        teacher={"name": "tiny", "layers": layers},
        tokenizer={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    storage = Storage.at(path)
    create_header(storage, header, files)
    live, totals = [], Totals()
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        groups = [rows.take(part[i : i + group_rows]) for i in range(0, len(part), group_rows)]
        sealed = sealing(
            groups,
            spec=spec,
            fingerprint_hash=fingerprint.hash,
            unit=f"{number:032x}",
            totals=Totals(),
            ranking=ranking_of(groups),
        )
        storage.put(sealed.name, sealed.data)
        live.append(Shard(sealed.name, len(sealed.data), len(part)))
        totals = totals + sealed.footer.totals
    record = record_after(None, live, totals, run="r1", header_hash=header.to_json()["hash"])
    commit(storage, spec, None, live, record)
    return Cache.open(path)


FEATURES = (Feature(pooling="mean", layer=2, width=HIDDEN), Feature(pooling="last", layer=1, width=HIDDEN))


def causal_spec(keep: KeepPolicy | None = None, **changes: Any) -> Spec:
    values: dict[str, Any] = {
        "task": "causal-lm",
        "score": "softmax",
        "vocab_size": VOCAB,
        "keep": keep or TopK(k=32),
        "scalars": ("entropy", "gold", "logsumexp"),
        "max_length": 64,
        "temperatures": (1.0, 2.0),
        "features": FEATURES,
    }
    return Spec(**(values | changes))
