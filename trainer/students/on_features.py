"""Students that read the cache's pooled features in place of texts: `linear`, `mlp:256`, and folders of such."""

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
from trainer.losses.objective import Objective
from trainer.models.feature_classifier import FeatureClassifier, FeatureClassifierConfig
from trainer.students.compatibility import check_labels
from trainer.students.fitting import fit_config
from trainer.students.opening import cached_tokenizer

_NAMES = re.compile(r"linear|mlp:(.*)")
_MOST_WIDTH, _MOST_LAYERS = 2**16, 8


def parse_on_features(name: str) -> tuple[int, ...] | None:
    """The hidden widths of `linear` (none), `mlp:256` or `mlp:512,256`; None of any other student's name.

    Raises:
        UsageError: the widths cannot be.
    """
    found = _NAMES.fullmatch(name)
    if found is None:
        return None
    words = [] if found[1] is None else found[1].split(",")
    widths = [int(word) if re.fullmatch(r"[1-9][0-9]{0,5}", word) else 0 for word in words]
    if len(widths) > _MOST_LAYERS or not all(0 < width <= _MOST_WIDTH for width in widths):
        raise UsageError(
            "--student mlp: takes the widths of its hidden layers",
            expected=f"mlp:256 or mlp:512,256, of at most {_MOST_LAYERS} layers up to {_MOST_WIDTH}",
            got=name,
        )
    return tuple(widths)


def is_on_features(folder: str) -> bool:
    """Whether a folder holds such a student."""
    path = Path(folder).expanduser() / "config.json"
    try:
        values = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("model_type") == FeatureClassifierConfig.model_type


def begin_on_features(hidden: tuple[int, ...], cache: Cache, seed: int) -> tuple[Any, Any]:
    """A new model with weights drawn by the seed, and the cache's tokenizer.

    Raises:
        StudentError: the cache holds no features, or its task has no classes of whole texts.
    """
    check_features(cache.spec)
    tokenizer = cached_tokenizer(cache)
    config = FeatureClassifierConfig(
        features=[feature.name for feature in cache.spec.features],
        feature_widths=[feature.width for feature in cache.spec.features],
        hidden_sizes=list(hidden),
    )
    fit_config(config, cache.spec, tokenizer)
    set_seed(seed)
    return FeatureClassifier(config).float(), tokenizer


def open_on_features(folder: str, cache: Cache) -> tuple[Any, Any]:
    """A trained one, and the cache's tokenizer.

    Raises:
        UsageError: it cannot be opened.
        StudentError: it reads other features than the cache holds, or has other classes.
    """
    check_features(cache.spec)
    try:
        model = FeatureClassifier.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:
        raise UsageError("the student cannot be opened", where=folder, got=one_line(error)) from error
    named = list(zip(model.config.features or (), model.config.feature_widths or (), strict=False))
    wanted = [(feature.name, feature.width) for feature in cache.spec.features]
    if named != wanted:
        raise StudentError(
            "the student reads other features than the cache holds",
            where=folder,
            expected=_told(named),
            got=_told(wanted),
            do="Name the cache that it was trained on, or one with the same --features",
        )
    check_labels(model.config, cache.spec, folder)
    return model, cached_tokenizer(cache)


def check_features(spec: Spec) -> None:
    """Whether a cache can have students without a backbone.

    Raises:
        StudentError: it cannot, and what to do.
    """
    if not (spec.kind.has_named_classes and spec.kind.places == "whole_text"):
        raise StudentError(
            "a student without a backbone has one answer a text, from the features of the whole text",
            expected="a cache of classes or values of texts",
            got=spec.task,
            do="Name a model folder, a hub name or a config .json as --student",
        )
    if not spec.features:
        raise StudentError(
            "a student without a backbone reads features, and the cache holds none",
            do="Precompute a cache with --features, for instance --features mean:-1 or --features cls:-1",
        )


def check_objective(model: Any, objective: Objective, *, is_joined: bool) -> None:
    """What such a student cannot be trained by.

    Raises:
        StudentError: losses compare its states, or move its embeddings, and it has neither; or caches are joined.
    """
    if not isinstance(model, FeatureClassifier):
        return
    if is_joined:
        raise StudentError(
            "a student without a backbone reads one teacher's features",
            got="--join",
            do="Train it on one cache, or name another --student",
        )
    asked = [*objective.feature_losses, *(["--adversarial"] if objective.adversarial else [])]
    if asked:
        raise StudentError(
            "a student without a backbone has neither states nor embeddings",
            got=" ".join(asked),
            do="Use losses on its classes alone, as --losses kl=1 ce=0.5",
        )


def _told(features: list[tuple[str, int]]) -> str:
    return ", ".join(f"{name} of width {width}" for name, width in features) or "none"
