"""A tiny config for every causal and masked language model class of the installed transformers.

A class's own defaults are shrunk name by name, sub-configs too, so that a class that transformers adds tomorrow is most
likely built without a word here. What that leaves wrong stands in a table, and what cannot be built at all in another,
with the reason.
"""

from dataclasses import fields
from typing import Any

import torch
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

CAUSAL, MASKED = "causal-lm", "masked-lm"
AUTO = {CAUSAL: transformers.AutoModelForCausalLM, MASKED: transformers.AutoModelForMaskedLM}
NAMES: dict[str, dict[str, str]] = {
    CAUSAL: modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MASKED: modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
}
"""Of each task, the model types with their classes."""
VOCAB, LAYERS, HEADS, WIDTH, INNER = 300, 2, 2, 32, 48

_SIZES: list[tuple[int, str]] = [
    (VOCAB, "vocab_size vocab_size_per_layer_input"),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers"
        " num_encoder_layers num_experts_per_tok moe_k moe_topk num_blocks num_self_attends_per_block",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"
        " num_key_value_heads num_kv_heads attention_heads num_decoder_attention_heads num_encoder_attention_heads"
        " linear_num_key_heads linear_num_value_heads linear_num_heads num_cross_attention_heads"
        " num_self_attention_heads swa_num_attention_heads swa_num_key_value_heads n_shared_experts",
    ),
    (
        WIDTH,
        "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim d_latents embedding_dim"
        " input_embedding_size output_embedding_size mamba_d_ssm backbone_hidden_size lru_width"
        " router_hidden_size hidden_size_global",
    ),
    (
        INNER,
        "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim hidden_dim n_inner d_inner d_ff dff dim_ff"
        " moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size ffn_hidden_size"
        " expert_ffn_hidden_size shared_intermediate_size moe_shared_expert_intermediate_size feed_forward_size"
        " dense_intermediate_size intermediate_size_mlp",
    ),
    (
        16,
        "head_dim dim_head d_head linear_key_head_dim linear_value_head_dim linear_head_dim q_lora_rank"
        " kv_lora_rank qk_nope_head_dim v_head_dim index_head_dim swa_head_dim o_lora_rank kv_channels"
        " attention_head_size mamba_chunk_size chunk_size query_pre_attn_scalar adapter_rank laurel_rank"
        " hidden_size_per_layer_input entity_emb_size pronunciation_embed_dim shape_embed_dim embedding_rank"
        " num_latents max_num_rows max_num_columns prediction_head_size hc_lowrank gated_norm_rank",
    ),
    (
        512,
        "max_position_embeddings n_positions max_sequence_length max_seq_len n_ctx context_length"
        " max_target_positions original_max_position_embeddings entity_vocab_size shape_vocab_size"
        " encoder_hash_byte_group_vocab",
    ),
    (
        4,
        "num_experts n_routed_experts num_local_experts moe_num_experts mamba_n_heads n_mamba_heads mamba_num_heads"
        " zero_expert_num prompt_length",
    ),
    (
        8,
        "sliding_window attention_window attention_window_size sliding_window_size local_attention window_size"
        " qk_rope_head_dim rotary_dim mamba_d_state state_size ssm_state_size index_topk index_n_heads keep_window_size"
        " attention_chunk_size block_size index_block_size mamba_head_dim rel_extent",
    ),
    (
        1,
        "n_group topk_group mamba_n_groups n_groups mamba_ngroups num_mem_blocks first_k_dense_replace"
        " num_dense_layers moe_layer_start_index",
    ),
]
_TINY = {name: size for size, names in _SIZES for name in names.split()}
CLS, SEP, MASK = 2, 3, VOCAB - 1
_SPECIAL = {"pad_token_id": 0, "pad_index": 0, "bos_token_id": 1, "eos_token_id": 1}
_SPECIAL |= {"cls_token_id": CLS, "sep_token_id": SEP, "mask_token_id": MASK}

_PAIRS = {"layer_types": ["linear_attention", "full_attention"] * 2, "num_hidden_layers": 4}
_HYBRID = {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4}
_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_SLIDING = {f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")}
_SLIDING |= {"swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_head_dim": 24}
_AXIAL = {
    "axial_pos_shape": [16, 32],
    "axial_pos_embds_dim": [16, 16],
    "attn_layers": ["local", "lsh"],
    "local_attn_chunk_length": 8,
    "lsh_attn_chunk_length": 8,
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3], "num_hidden_layers": 4},
    "codegen": {"n_head": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note": {
        "text_config": _SLIDING,
        "vision_config": {
            "mlp_layer_types": ["dense", "sparse"],
            "adapter_in_dim": 32,
            "adapter_out_dim": 32,
        },
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 16},
    },
    "dots3_note_text": _SLIDING,
    "esm": {"token_dropout": True, "position_embedding_type": "rotary"},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "gemma4": {
        "text_config": {"global_head_dim": 32},
        "vision_config": {"position_embedding_size": 64},
        "audio_config": {"output_proj_dims": 32, "subsampling_conv_channels": [8, 8]},
    },
    "gemma4_text": {"global_head_dim": 32},
    "gemma4_unified": {
        "text_config": {"global_head_dim": 32},
        "vision_config": {"patch_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32},
    },
    "gemma4_unified_text": {"global_head_dim": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "got_ocr2": {"vision_config": {"image_size": 32, "output_channels": 8, "mlp_dim": 48}},
    "granitemoehybrid": _PAIRS,
    "inkling_text": {"logits_mup_width_multiplier": 2.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "mimo_v2_flash": {"head_dim": 32, "num_key_value_heads": 1},
    "mllama": {"text_config": {"cross_attention_layers": [1]}},
    "phi4_multimodal": {
        "vision_config": {"image_size": 28, "crop_size": 28},
        "audio_config": {
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 32,
        },
    },
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": _AXIAL,
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": _HYBRID,
    "zamba2": _HYBRID,
    "zaya": {"num_experts_per_tok": 1},
}
"""What names alone get wrong."""

CAUSAL_ONLY = {"is_decoder": True, "causal": True}
"""Of encoders that are language models too, where their config says so."""

_ASSISTANT = "drafts for another model: its attention reads keys and values that only that one has"
UNBUILT: dict[str, str] = {
    "gemma3n": "needs the package timm, for its pictures",
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "musicgen": "AutoModelForCausalLM gives its class a config that it cannot read, of the whole model",
    "musicgen_melody": "AutoModelForCausalLM gives its class a config that it cannot read, of the whole model",
}
"""Model types of which no tiny model can be made, and why."""


def config_class(model_type: str) -> Any:
    """Of a model type."""
    return configuration_auto.CONFIG_MAPPING[model_type]


def shrunk(kind: Any) -> dict[str, Any]:
    """Tiny values for those settings that a config class has, and for its sub-configs."""
    own = {field.name for field in fields(kind)}
    names = own | {alias for alias, name in kind.attribute_map.items() if name not in _TINY}
    found = {name: size for name, size in (_TINY | _SPECIAL).items() if name in names}
    found |= _layer_types(kind, own)
    for name, spec in kind.sub_configs_defaults.items():
        inner = type(spec.default_config)
        found[name] = {"model_type": inner.model_type} | shrunk(inner)
    return found


def _layer_types(kind: Any, names: set[str]) -> dict[str, Any]:
    """Each kind of layer twice, where a config lists them."""
    if "layer_types" not in names:
        return {}
    types = list(dict.fromkeys(kind().layer_types or ()))
    return {"layer_types": types * 2, "num_hidden_layers": len(types) * 2} if len(types) > 1 else {}


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The values with changes, also of sub-configs."""
    inner = {
        name: merged(values[name], change)
        for name, change in changes.items()
        if isinstance(change, dict) and isinstance(values.get(name), dict)
    }
    return values | changes | inner


def tiny_config(task: str, model_type: str) -> Any:
    """A config of a few thousand weights."""
    kind = config_class(model_type)
    names = {field.name for field in fields(kind)}
    values = merged(shrunk(kind), OVERRIDES.get(model_type, {}))
    if task == CAUSAL:
        values |= {name: value for name, value in CAUSAL_ONLY.items() if name in names}
    return kind(**values)


class Unbuilt(Exception):  # noqa: N818  it is a value more than an error
    """Why no tiny model of a class can be made here."""


def tiny_model(task: str, model_type: str) -> Any:
    """A random model of a class, ready to be asked.

    Raises:
        Unbuilt: there can be none.
    """
    if model_type in UNBUILT:
        raise Unbuilt(UNBUILT[model_type])
    torch.manual_seed(0)
    return AUTO[task].from_config(tiny_config(task, model_type)).eval()
