"""A law over families of models: a student with fewer layers keeps each kind of layer, and is used as it is reloaded.

One of each way in which a config says what kinds its layers are: lists of an item a layer, lists of numbers, strings,
periods, the first so many, the last so many, patterns that are repeated; and models of one kind.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import teachonce
from schemas.cache import Cache
from schemas.errors import StudentError
from tests.trainer.tiny import VOCAB, save
from trainer.models.layers import find_stack, kept_layers
from trainer.students.students import open_student

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
STATES: dict[str, Any] = {"mamba_d_state": 8, "mamba_dt_rank": 4, "mamba_n_heads": 8, "mamba_d_head": 8}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

CAUSAL: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a list": (
        "qwen3_next",
        EXPERTS | LINEAR | {"shared_expert_intermediate_size": 16},
        "aaabaaab",
        "aaab",
    ),
    "a list from a pattern": ("gemma3_text", {"sliding_window_pattern": 4}, "aaabaaab", "aaab"),
    "periods": (
        "jamba",
        EXPERTS | STATES | {"num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 3},
        "abacabac",
        "abac",
    ),
    "numbers of layers": (
        "bamba",
        STATES | {"attn_layer_indices": [3, 7], "mamba_n_groups": 1, "mamba_chunk_size": 16},
        "aaabaaab",
        "aaab",
    ),
    "nested lists": (
        "gpt_neo",
        {"num_layers": 8, "num_heads": 4, "attention_types": [[["global", "local"], 4]], "window_size": 8},
        "abababab",
        "abab",
    ),
    "exceptions": ("qwen3_moe", EXPERTS | {"mlp_only_layers": [0, 1, 2, 3]}, "aaaabbbb", "aabb"),
    "the first so many": (
        "glm4_moe",
        EXPERTS | {"first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
        "aabbbbbb",
        "abbb",
    ),
    "a body of another name": (
        "llama4_text",
        {"num_local_experts": 2, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2},
        "abacabac",
        "abac",
    ),
    "layers without positions": ("smollm3", {}, "aaabaaab", "aaab"),
    "a repeated pattern": (
        "recurrent_gemma",
        {
            "num_hidden_layers": 6,
            "num_key_value_heads": 1,
            "lru_width": 32,
            "attention_window_size": 8,
            "logits_soft_cap": 1e4,
        },
        "aabaab",
        "aab",
    ),
    "letters": (
        "nemotron_h",
        {
            "hybrid_override_pattern": "M*M-M*M-",
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "chunk_size": 16,
        },
        "abacabac",
        "abac",
    ),
    "one kind of two parts": (
        "falcon_h1",
        {
            "mamba_d_state": 8,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
        "aaaaaaaa",
        "aaaa",
    ),
    "one kind": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "aaaaaaaa", "aaaa"),
}


def letters(model: Any) -> str:
    """Each layer's kind, as a letter in order of appearance."""
    kinds = find_stack(model, model.config).kinds
    names = list(dict.fromkeys(kinds))
    return "".join("abcdefgh"[names.index(kind)] for kind in kinds)


def made(folder: Path, kind: str, changes: dict[str, Any], auto: Any = AutoModelForCausalLM) -> str:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SHAPE | changes))
    if auto is AutoModelForSequenceClassification:
        config.num_labels = 3
    return save(auto.from_config(config), folder)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=torch.arange(5, 25)[None]).logits
    return found


@pytest.mark.parametrize("how", CAUSAL)
def test_each_kind_of_layer_is_kept_in_its_proportion(causal_cache: Cache, tmp_path: Path, how: str) -> None:
    kind, changes, whole, half = CAUSAL[how]
    folder = made(tmp_path / "teacher", kind, changes)
    teacher = AutoModelForCausalLM.from_pretrained(folder)
    assert letters(teacher) == whole
    student = open_student(f"shrink:layers={len(half)}", causal_cache, teacher=folder).model
    assert letters(student) == half
    student.save_pretrained(tmp_path / "student")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert letters(again) == half
    torch.testing.assert_close(logits(again), logits(student))
    everything = open_student(f"shrink:layers={len(whole)}", causal_cache, teacher=folder).model
    torch.testing.assert_close(logits(everything), logits(teacher))


ENCODERS: dict[str, dict[str, Any]] = {
    "roberta": {"max_position_embeddings": 130, "pad_token_id": 1, "type_vocab_size": 1},
    "modernbert": {
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        "bos_token_id": 1,
        "cls_token_id": 1,
    }
    | {"sep_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 8, "n_heads": 4, "hidden_dim": 64},
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_classifiers_of_other_families(
    class_cache_of: Callable[..., Cache], tmp_path: Path, kind: str
) -> None:
    auto = AutoModelForSequenceClassification
    folder = made(tmp_path / "teacher", kind, ENCODERS[kind], auto)
    student = open_student("shrink:layers=4", class_cache_of(rows=20), teacher=folder).model
    assert len(letters(student)) == 4
    student.save_pretrained(tmp_path / "student")
    torch.testing.assert_close(logits(auto.from_pretrained(tmp_path / "student")), logits(student))


def test_the_command_keeps_both_kinds_of_qwen3_next(causal_cache: Cache, tmp_path: Path) -> None:
    kind, changes, _, _ = CAUSAL["a list"]
    folder = made(tmp_path / "teacher", kind, changes)
    out = tmp_path / "student"
    flags = [
        "--student",
        "shrink:layers=4",
        "--teacher",
        folder,
        "--output_dir",
        str(out),
        "--max_steps",
        "1",
    ]
    quiet = [
        "--disable_tqdm",
        "true",
        "--use_cpu",
        "--dataloader_pin_memory",
        "false",
        "--save_strategy",
        "no",
    ]
    assert teachonce.main(["train", "--cache", causal_cache.storage.root, *flags, *quiet]) == 0
    assert json.loads((out / "config.json").read_text())["layer_types"] == ["linear_attention"] * 3 + [
        "full_attention"
    ]
    found = AutoModelForCausalLM.from_pretrained(out).generate(torch.arange(5, 9)[None], max_new_tokens=3)
    assert found.shape == (1, 7)


def test_too_few_layers_for_each_kind(causal_cache: Cache, tmp_path: Path) -> None:
    kind, changes, _, _ = CAUSAL["a list"]
    folder = made(tmp_path / "teacher", kind, changes)
    with pytest.raises(StudentError, match=r"2 kinds, and each must be kept: expected at least 2, got 1"):
        open_student("shrink:layers=1", causal_cache, teacher=folder)


def test_a_multimodal_teacher_gives_its_text_model(causal_cache: Cache, tmp_path: Path) -> None:
    text = SHAPE | {"model_type": "gemma3_text", "num_hidden_layers": 6, "bos_token_id": 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2}
    changes = {"text_config": text, "vision_config": vision | {"image_size": 28, "patch_size": 14}}
    config = AutoConfig.for_model("gemma3", **changes, mm_tokens_per_image=4, pad_token_id=0)
    torch.manual_seed(0)
    folder = save(AutoModelForCausalLM.from_config(config), tmp_path / "teacher")
    teacher = AutoModelForCausalLM.from_pretrained(folder)
    student = open_student("shrink:layers=6", causal_cache, teacher=folder).model
    assert type(student).__name__ == "Gemma3ForCausalLM"
    torch.testing.assert_close(logits(student), logits(teacher))
    half = open_student("shrink:layers=3", causal_cache, teacher=folder).model
    assert len(half.model.layers) == 3
    assert "full_attention" in half.config.layer_types


def test_what_no_rule_can_say_is_refused_by_name(causal_cache: Cache, tmp_path: Path) -> None:
    """Its layers weigh by their number, so fewer layers are not the teacher's."""
    folder = made(tmp_path / "teacher", "diffllama", {})
    with pytest.raises(StudentError, match="the layers of DiffLlamaForCausalLM cannot be moved"):
        open_student("shrink:layers=4", causal_cache, teacher=folder)


@pytest.mark.parametrize(
    ("pattern", "layers", "kept"),
    [
        ("aaabaaab", 4, [0, 2, 4, 7]),
        ("abacabac", 4, [0, 1, 4, 7]),
        ("abbbbbbb", 4, [0, 2, 4, 6]),
        ("aaaaaaab", 2, [0, 7]),
        ("aabbbbbb", 4, [0, 3, 5, 7]),
        ("aaaa", 2, [0, 2]),
    ],
)
def test_which_layers_are_kept(pattern: str, layers: int, kept: list[int]) -> None:
    assert kept_layers(tuple(pattern), layers) == kept
    assert kept_layers(tuple(pattern), len(pattern)) == list(range(len(pattern)))
