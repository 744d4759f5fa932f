"""Tiny random models, with a tokenizer of 200 words, as folders that transformers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCAB = 200
HIDDEN = 32

STUDENT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
"""A student's config file, as a user would write it: what the cache knows is left out."""


def tiny_tokenizer(size: int = VOCAB) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"t{i}": i for i in range(3, size)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def llama_config(**changes: Any) -> LlamaConfig:
    values = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    return LlamaConfig(**(values | changes))


def bert_config(num_labels: int = 3, **changes: Any) -> BertConfig:
    values = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "num_labels": num_labels,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**(values | changes))


def save(model: Any, folder: Path, tokenizer: Any = None) -> str:
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return str(folder)


def make_llama(folder: Path, seed: int = 0, **changes: Any) -> str:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(**changes))
    with torch.no_grad():  # sharper than at birth, so that top-k matters
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
        model.get_output_embeddings().weight.mul_(8)
    return save(model, folder)


def make_bert(folder: Path, seed: int = 0, num_labels: int = 3, **changes: Any) -> str:
    torch.manual_seed(seed)
    model = BertForSequenceClassification(bert_config(num_labels, **changes))
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    return save(model, folder)


def random_examples(num: int, seed: int = 0, longest: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, rng.integers(3, longest)).astype(np.int32) for _ in range(num)]
