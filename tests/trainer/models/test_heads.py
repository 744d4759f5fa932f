"""A head taken apart gives the model's own logits, or says which model class it does not know."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaForCausalLM,
    PhiConfig,
    RecurrentGemmaConfig,
)

from schemas.errors import StudentError
from tests.trainer.tiny import VOCAB, llama_config
from trainer.models.heads import Head, LogitTransform, check_head
from trainer.tasks.tasks import STUDENT_TASKS

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}

CONFIGS = {
    "llama": llama_config(),
    "tied": llama_config(tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=0.2),
    "recurrent gemma": RecurrentGemmaConfig(
        **SHAPE | {"num_hidden_layers": 3}, lru_width=32, attention_window_size=16, logits_soft_cap=0.2
    ),
    "granite": GraniteConfig(**SHAPE, logits_scaling=8.0),
    "cohere": CohereConfig(**SHAPE, logit_scale=0.0625),
    "phi (with a bias)": PhiConfig(**SHAPE),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_head_is_the_models_own(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    check_head(model, STUDENT_TASKS["causal-lm"].run)
    assert model.training


def test_what_is_not_known_names_the_model_class() -> None:
    class ScaledLlama(LlamaForCausalLM):
        def forward(self, **inputs: Any) -> Any:
            output = super().forward(**inputs)
            output.logits = output.logits * 2
            return output

    with pytest.raises(StudentError, match=r"ScaledLlama does something to its logits.*heads\.py"):
        check_head(ScaledLlama(llama_config()), STUDENT_TASKS["causal-lm"].run)


def test_a_model_without_a_language_head_is_refused() -> None:
    body = LlamaForCausalLM(llama_config()).model
    with pytest.raises(StudentError, match="LlamaModel"):
        Head.of(body)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, LogitTransform()),
        ({"logits_scaling": 8.0}, LogitTransform(multiplier=0.125)),
        ({"logits_scaling": 8.0, "model_type": "hyperclovax"}, LogitTransform(multiplier=8.0)),
        ({"logit_scale": 0.5}, LogitTransform(multiplier=0.5)),
        ({"lm_head_multiplier": 3.0}, LogitTransform(multiplier=3.0)),
        ({"final_logit_softcapping": 30.0}, LogitTransform(softcap=30.0)),
        ({"final_logit_softcapping": None}, LogitTransform()),
    ],
)
def test_configs(config: dict[str, Any], expected: LogitTransform) -> None:
    assert LogitTransform.from_config(config) == expected


def test_a_softcap_of_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        LogitTransform(softcap=-1.0)
