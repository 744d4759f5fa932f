"""A static student: a table of embeddings, of which a text's is the mean (model2vec's idea).

It is the cheapest model that reads text: a look-up a token, and no layer. Special tokens that a tokenizer puts around a
text have no part in the mean, so the folder is what sentence-transformers calls `StaticEmbedding`, too.

Format: `config.json` (below) and `model.safetensors` with `embedding.weight` `[V, D]`, beside the tokenizer's files.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Int64
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


@no_type_check  # transformers checks its configs itself, and hands on what is no field of theirs
@strict
class StaticEmbeddingConfig(PreTrainedConfig):  # type: ignore[misc]
    """How large the table is, and which ids are left out of the mean."""

    model_type = "teachonce-static"

    vocab_size: int = 0
    hidden_size: int = 0
    special_ids: list[int] | None = None
    num_hidden_layers: int = 0
    initializer_range: float = 0.02


class StaticEmbedding(PreTrainedModel):  # type: ignore[misc]
    """`StaticEmbedding.from_pretrained(folder)(input_ids, attention_mask)`: the state of every token is its text's mean,
    so that whatever a text's states are pooled by gives it."""

    config_class = StaticEmbeddingConfig

    def __init__(self, config: StaticEmbeddingConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table."""
        return self.embedding

    def forward(
        self,
        input_ids: Int64[Tensor, "B S"],
        attention_mask: Int64[Tensor, "B S"] | None = None,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> BaseModelOutput:
        """States `[B, S, D]`, all tokens of a row alike; zeros of a text without any token of its own."""
        special = torch.tensor(self.config.special_ids or [], dtype=torch.int64, device=input_ids.device)
        counts = ~torch.isin(input_ids, special)
        if attention_mask is not None:
            counts = counts & (attention_mask > 0)
        weights = counts.to(self.embedding.weight.dtype)[..., None]
        mean = (self.embedding(input_ids) * weights).sum(1) / weights.sum(1).clamp_min(1)
        states = mean[:, None].expand(-1, input_ids.shape[1], -1)
        return BaseModelOutput(
            last_hidden_state=states, hidden_states=(states,) if output_hidden_states else None
        )
