"""Opening a student: a model folder or hub name, a config to start from scratch, or a teacher with fewer layers.

Whether it fits the cache is checked from configs and tokenizers, before any weight is read. A student is held in
float32 (`--bf16` computes in bfloat16 all the same), and its weights are seeded, so two students of one config and
seed begin identical.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    set_seed,
)

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError, one_line
from schemas.spec import Spec
from trainer.fit import check_config, check_labels, check_vocabulary
from trainer.heads import check_head
from trainer.shrink import parse_shrink, shrunk

_PROBLEM_TYPES = {
    "softmax": "single_label_classification",
    "sigmoid": "multi_label_classification",
    "identity": "regression",
}


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model that fits a cache, with the tokenizer that it is saved with."""

    model: Any
    tokenizer: Any
    is_causal: bool

    @property
    def vocab_size(self) -> int:
        """V: the width of the head, or the number of classes."""
        if self.is_causal:
            return int(self.model.get_output_embeddings().weight.shape[0])
        return int(self.model.config.num_labels)

    @property
    def pad_id(self) -> int:
        """What pads `input_ids`: masked out, so any id will do where the model names none."""
        for found in (self.model.config.get_text_config().pad_token_id, self.tokenizer.pad_token_id):
            if found is not None:
                return int(found)
        return 0

    @property
    def takes_token_types(self) -> bool:
        """Whether the model has embeddings for token types (pairs of texts)."""
        return (getattr(self.model.config, "type_vocab_size", 0) or 0) > 1


def open_student(name: str, cache: Cache, *, teacher: str | None = None, seed: int = 42) -> Student:
    """Opens `name`: a folder or hub name, a config `.json`, or `shrink:layers=3` of the `teacher`.

    Raises:
        UsageError: it cannot be opened.
        StudentError: it does not fit the cache.
    """
    layers = parse_shrink(name)
    source = name if layers is None else _needed_teacher(teacher, name)
    from_scratch = layers is None and name.endswith(".json")
    tokenizer = cached_tokenizer(cache)
    config = _scratch_config(source, cache.spec, tokenizer) if from_scratch else open_config(source)
    if not from_scratch:
        own = open_tokenizer(source)
        check_vocabulary(own.get_vocab(), tokenizer.get_vocab(), source)
        tokenizer = own
    _fit_config(config, cache.spec, tokenizer)
    check_config(config, cache.spec, tokenizer.get_vocab(), source)
    set_seed(seed)
    kind = auto_class(cache.spec)
    model = kind.from_config(config, dtype=torch.float32) if from_scratch else _weights(kind, source, config)
    if layers is not None:
        model = shrunk(model, layers, kind)
    if cache.spec.task == "causal-lm":
        check_head(model)
    return Student(model=model, tokenizer=tokenizer, is_causal=cache.spec.task == "causal-lm")


def open_trained(folder: str, cache: Cache) -> Student:
    """Opens a finished student, or the teacher, for evaluation.

    Raises:
        UsageError: it cannot be opened.
        StudentError: it does not fit the cache.
    """
    config, tokenizer = open_config(folder), open_tokenizer(folder)
    check_vocabulary(tokenizer.get_vocab(), cached_tokenizer(cache).get_vocab(), folder)
    check_labels(config, cache.spec, folder)
    check_config(config, cache.spec, tokenizer.get_vocab(), folder)
    model = _weights(auto_class(cache.spec), folder, config)
    if cache.spec.task == "causal-lm":
        check_head(model)
    return Student(model=model.eval(), tokenizer=tokenizer, is_causal=cache.spec.task == "causal-lm")


def auto_class(spec: Spec) -> Any:
    """The transformers class that opens models of the task."""
    return AutoModelForCausalLM if spec.task == "causal-lm" else AutoModelForSequenceClassification


def cached_tokenizer(cache: Cache) -> Any:
    """The teacher's tokenizer, from the cache.

    Raises:
        StudentError: the cache holds none.
    """
    if not cache.header.tokenizer:
        raise StudentError(
            "the cache holds no tokenizer, so no student can be known to fit it", where=cache.storage.root
        )
    with tempfile.TemporaryDirectory() as folder:
        return open_tokenizer(str(cache.save_tokenizer(folder)))


def open_config(source: str) -> Any:
    """A folder's or hub name's config.

    Raises:
        UsageError: it cannot be opened.
    """
    return _opened("config", source, lambda: AutoConfig.from_pretrained(source))


def open_tokenizer(source: str) -> Any:
    """A folder's or hub name's tokenizer.

    Raises:
        UsageError: it cannot be opened.
    """
    return _opened("tokenizer", source, lambda: AutoTokenizer.from_pretrained(source))


def _weights(kind: Any, source: str, config: Any) -> Any:
    return _opened(
        "weights", source, lambda: kind.from_pretrained(source, config=config, dtype=torch.float32)
    )


def _opened(what: str, source: str, how: Callable[[], Any]) -> Any:
    if source.startswith(("/", ".", "~")) and not Path(source).exists():
        raise UsageError("there is no such model folder", where=source)
    try:
        return how()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"the model's {what} cannot be opened",
            where=source,
            got=one_line(error).rstrip("."),
            do="Name a model folder, a hub name, a config .json, or shrink:layers=N with --teacher",
        ) from error


def _needed_teacher(teacher: str | None, name: str) -> str:
    if teacher is None:
        raise UsageError(f"--student {name} takes its weights from the teacher", do="Add --teacher FOLDER")
    return teacher


def _scratch_config(path: str, spec: Spec, tokenizer: Any) -> Any:
    """The config of a JSON file, its vocabulary and special tokens filled in from the cache where it names none.

    Raises:
        UsageError: no such file, not JSON, or not a config.
    """
    try:
        values: Mapping[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        filled = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        if spec.task == "causal-lm":
            filled["vocab_size"] = spec.vocab_size
        else:
            filled["vocab_size"] = max(tokenizer.get_vocab().values()) + 1
        merged = {**filled, **values}
        return AutoConfig.for_model(merged.pop("model_type"), **merged)
    except KeyError as error:
        raise UsageError("a student's config needs the key model_type", where=path) from error
    except Exception as error:
        got = one_line(error).rstrip(".")
        raise UsageError("the student's config cannot be read", where=path, got=got) from error


def _fit_config(config: Any, spec: Spec, tokenizer: Any) -> None:
    """Gives a classifier the cache's classes; a decoder needs a padding token to find a text's end by."""
    if spec.task == "causal-lm":
        return
    trained = any("SequenceClassification" in name for name in config.architectures or ())
    if trained:
        check_labels(config, spec, "student")
    names = spec.label_names or tuple(f"LABEL_{index}" for index in range(spec.vocab_size))
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = _PROBLEM_TYPES[spec.score]
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
