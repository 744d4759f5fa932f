"""Students from scratch: a config's JSON file, completed from the cache, and a model with weights drawn by the seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig

from schemas.cli.arguments import small_text
from schemas.errors import UsageError, one_line
from schemas.spec import Spec
from trainer.students.opening import refuse_code

MOST_CONFIG_BYTES = 2**26


def model_of(kind: Any, source: str, config: Any) -> Any:
    """A new model in float32 by an Auto class; `source` names the config in errors.

    Raises:
        UsageError: none can be made.
    """
    try:
        return kind.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise UsageError(
            "no model can be made of the student's config", where=source, got=one_line(error).rstrip(".")
        ) from error


def scratch_config(path: str, spec: Spec, tokenizer: Any) -> Any:
    """The config of a JSON file, its vocabulary and special tokens filled in from the cache where it names none.

    Raises:
        UsageError: no such file, not JSON, or not a config.
    """
    try:
        values: Mapping[str, Any] = json.loads(small_text(path, MOST_CONFIG_BYTES))
        refuse_code(values, path)
        filled = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        if spec.kind.has_source:
            filled["decoder_start_token_id"] = tokenizer.pad_token_id  # as T5 and Marian begin
        if spec.kind.has_vocabulary:
            filled["vocab_size"] = spec.vocab_size
        else:
            filled["vocab_size"] = max(tokenizer.get_vocab().values()) + 1
        merged = {**filled, **values}
        return AutoConfig.for_model(merged.pop("model_type"), **merged)
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError("a student's config needs the key model_type", where=path) from error
    except Exception as error:
        got = one_line(error).rstrip(".")
        raise UsageError("the student's config cannot be read", where=path, got=got) from error
