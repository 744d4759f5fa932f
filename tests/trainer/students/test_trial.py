"""What cannot be trained, padded, generated with or saved is refused before the first step, in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
)

import teachonce
from schemas.cache import Cache
from schemas.cli.process import status_of
from schemas.errors import StudentError, TeachonceError
from schemas.tasks import TASKS
from tests.trainer.tiny import STUDENT, VOCAB, llama_config, save, tiny_tokenizer
from trainer.students.students import open_student
from trainer.students.trial import try_student

ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def student_file(folder: Path, **values: Any) -> str:
    path = folder / "student.json"
    path.write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_position_embeddings": 63}, "at least 64, got 63"),
        ({"vocab_size": VOCAB - 1}, f"at least {VOCAB}"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"model_type": "mixtral", "output_router_logits": True}, "router"),
        ({"model_type": "bart"}, "encoder-decoder"),
        ({"model_type": "t5"}, "encoder-decoder|cannot"),
        ({"model_type": "vit"}, "cannot|no model can be made"),
        ({"num_attention_heads": 5}, "cannot|no model can be made"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
            | {"max_position_embeddings": 64, "original_max_position_embeddings": 32},
            None,
        ),
        (
            ENCODER | {"model_type": "bert", "max_position_embeddings": 64},
            "sees the token after it.*is_decoder",
        ),
        (ENCODER | {"model_type": "xlnet", "d_model": 32, "n_layer": 2, "n_head": 2}, "xlnet"),
        ({"model_type": "gpt2", "max_position_embeddings": 63}, "at least 64"),
    ],
)
def test_what_a_config_cannot_be(
    causal_cache: Cache, tmp_path: Path, changes: dict[str, Any], named: str | None
) -> None:
    path = student_file(tmp_path, **(STUDENT | changes))
    if named is None:
        open_student(path, causal_cache)
        return
    with pytest.raises(TeachonceError, match=named) as caught:
        open_student(path, causal_cache)
    assert "\n" not in str(caught.value)
    assert status_of(caught.value) == 2


@pytest.mark.parametrize(("positions", "fits"), [(66, True), (64, False)])
def test_positions_that_begin_after_the_padding(
    class_cache_of: Callable[..., Cache], tmp_path: Path, positions: int, fits: bool
) -> None:
    """RoBERTa's usable length is two less than its positions."""
    values = ENCODER | {"model_type": "roberta", "max_position_embeddings": positions, "pad_token_id": 1}
    path = student_file(tmp_path, **values)
    cache = class_cache_of(rows=10)
    if fits:
        assert open_student(path, cache).pad_id == 1
    else:
        with pytest.raises(StudentError, match="positions for 64 tokens"):
            open_student(path, cache)


def without_pad(folder: Path, **changes: Any) -> str:
    config = llama_config(pad_token_id=None, **changes)
    config.num_labels = 3
    return save(AutoModelForSequenceClassification.from_config(config), folder, tiny_tokenizer())


@pytest.mark.parametrize("pad", [-1, VOCAB + 5])
def test_a_padding_id_without_an_embedding(
    class_cache_of: Callable[..., Cache], tmp_path: Path, pad: int
) -> None:
    path = student_file(tmp_path, **(STUDENT | {"pad_token_id": pad, "num_hidden_layers": 1}))
    cache = class_cache_of(rows=10)
    with pytest.raises(TeachonceError, match=r"padding token|no model can be made") as caught:
        open_student(path, cache)
    assert "\n" not in str(caught.value)


def test_a_decoder_that_classifies_takes_the_tokenizers_padding(
    class_cache_of: Callable[..., Cache], tmp_path: Path
) -> None:
    student = open_student(without_pad(tmp_path / "student"), class_cache_of(rows=10))
    assert student.model.config.pad_token_id == student.pad_id == 0


def test_a_model_that_mixes_over_padding_trains_one_text_a_batch(
    class_cache_of: Callable[..., Cache], tmp_path: Path
) -> None:
    """XLNet sums up a text in its last place, also where that is padding."""
    values = {"model_type": "xlnet", "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}
    path, cache = student_file(tmp_path, **values), class_cache_of(rows=10)
    with pytest.raises(StudentError, match=r"padded beside a longer one.*--per_device_train_batch_size 1"):
        open_student(path, cache)
    assert open_student(path, cache, alone=True).model.config.num_labels == 3


def broken(how: str) -> Any:
    """A Llama that one thing is wrong with."""
    model = LlamaForCausalLM(llama_config())
    forward = model.forward

    def wrong(*inputs: Any, **named: Any) -> Any:
        output = forward(*inputs, **named)
        if how == "numbers":
            output.logits = output.logits * float("nan")
        elif how == "batch":
            output.logits = output.logits * len(output.logits)
        elif how == "future":
            output.logits = output.logits.flip(1)
        elif how == "cache" and named.get("past_key_values") is not None:
            raise IndexError("no full attention")
        return output

    if how == "settings":
        model.generation_config.temperature = 0.5
        model.generation_config.do_sample = False
    model.forward = wrong
    return model


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("numbers", "not numbers"),
        ("batch", "padded beside a longer one"),
        ("future", "sees the token after it"),
        ("cache", "fails in generate for 3 tokens: got no full attention"),
        ("settings", "fails in saving its config"),
    ],
)
def test_each_trial_can_fail(how: str, named: str) -> None:
    with pytest.raises(StudentError, match=f"LlamaForCausalLM cannot be a student.*{named}"):
        try_student(broken(how), task=TASKS["causal-lm"], pad_id=0, max_length=64, generates=True)


def test_the_command_says_it_in_one_line(
    causal_cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = student_file(tmp_path, **(ENCODER | {"model_type": "bert", "max_position_embeddings": 64}))
    flags = ["--cache", causal_cache.storage.root, "--student", path, "--output_dir", str(tmp_path / "out")]
    capsys.readouterr()
    assert teachonce.main(["train", *flags, "--use_cpu"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "is_decoder" in told[-1]
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("length", [2, 3, 5])
def test_very_short_caches(length: int) -> None:
    heads = {"num_attention_heads": 2, "word_embed_proj_dim": 16, "intermediate_size": 16}
    for kind in ("llama", "opt"):
        config = AutoConfig.for_model(
            kind, vocab_size=50, hidden_size=16, num_hidden_layers=1, ffn_dim=16, **heads
        )
        model = AutoModelForCausalLM.from_config(config)
        try_student(model, task=TASKS["causal-lm"], pad_id=1, max_length=length, generates=True)
        assert model.training
    assert torch.is_grad_enabled()
