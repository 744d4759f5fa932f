"""Static students: `--student static:256`, a table of embeddings that wide, and folders of such."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError, one_line
from schemas.spec import Spec
from trainer.models.static_embedding import StaticEmbedding, StaticEmbeddingConfig
from trainer.students.compatibility import check_vocabulary
from trainer.students.opening import cached_tokenizer, open_tokenizer

_NAMES = re.compile(r"static:(.*)")
_MOST_WIDTH = 2**14


def parse_static(name: str) -> int | None:
    """The width of `static:256`; None of any other student's name.

    Raises:
        UsageError: the width cannot be.
    """
    found = _NAMES.fullmatch(name)
    if found is None:
        return None
    width = int(found[1]) if re.fullmatch(r"[1-9][0-9]{0,5}", found[1]) else 0
    if not 0 < width <= _MOST_WIDTH:
        raise UsageError(
            "--student static: takes the width of its embeddings",
            expected=f"static:256, of at most {_MOST_WIDTH}",
            got=name,
        )
    return width


def is_static(folder: str) -> bool:
    """Whether a folder holds such a student."""
    path = Path(folder).expanduser() / "config.json"
    try:
        values = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("model_type") == StaticEmbeddingConfig.model_type


def begin_static(width: int, cache: Cache, seed: int) -> tuple[Any, Any]:
    """A new table, drawn by the seed, for the cache's tokenizer.

    Raises:
        StudentError: the cache is no cache of embeddings.
    """
    check_static(cache.spec)
    tokenizer = cached_tokenizer(cache)
    config = StaticEmbeddingConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        hidden_size=width,
        special_ids=sorted(set(tokenizer.all_special_ids)),
        pad_token_id=tokenizer.pad_token_id,
    )
    set_seed(seed)
    return StaticEmbedding(config).float(), tokenizer


def open_static(folder: str, cache: Cache) -> tuple[Any, Any]:
    """A trained one, and its tokenizer, which must be the cache's.

    Raises:
        UsageError: it cannot be opened.
        StudentError: it has another tokenizer, or the cache is no cache of embeddings.
    """
    check_static(cache.spec)
    tokenizer = open_tokenizer(folder)
    check_vocabulary(tokenizer.get_vocab(), cached_tokenizer(cache).get_vocab(), folder)
    try:
        model = StaticEmbedding.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:
        raise UsageError("the student cannot be opened", where=folder, got=one_line(error)) from error
    return model, tokenizer


def check_static(spec: Spec) -> None:
    """Whether a cache can have static students.

    Raises:
        StudentError: it cannot, and what to do.
    """
    if spec.kind.has_positions or spec.kind.reads_images:
        raise StudentError(
            "a static student gives embeddings of texts, and nothing else",
            expected="a cache of the task feature-extraction",
            got=spec.task,
            do="Name a model folder, a hub name or a config .json as --student",
        )
