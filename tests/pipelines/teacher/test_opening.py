"""Opening a teacher of any class: it works, or one line says why not, before anything is scored."""

import json

import pytest
import torch
import transformers

from pipelines.teacher import config_shapes
from schemas import Cache
from tests.pipelines import models
from tests.pipelines.families import (
    CAUSAL,
    CLASSES,
    ENCODER_DECODER,
    MAMBA,
    check_truth,
    family,
    precomputed,
    tokenizer,
)

T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "without": ("hidden_size",),
}
FALCON = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "head_dim": 16,
    "lm_head_multiplier": 0.25,
}
GRIFFIN = {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16, "logits_soft_cap": 3.0}
WORKING = {
    "infinity in the config": (CAUSAL, "mamba2", MAMBA, ()),
    "a classifier without hidden states": (CLASSES, "bart", ENCODER_DECODER, ()),
    "another one": (CLASSES, "t5", T5, ()),
    "no padding in the config, no limit of positions": (CAUSAL, "rwkv", {"attention_hidden_size": 32}, ()),
    "a projection after the last layer": (
        CAUSAL,
        "opt",
        {"word_embed_proj_dim": 16, "ffn_dim": 48},
        ("--features", "mean:-1", "last:1"),
    ),
    "a scaling that multiplies": (CAUSAL, "hyperclovax", {"logits_scaling": 0.25}, ()),
    "a multiplier of the head": (CAUSAL, "falcon_h1", FALCON, ()),
    "a cap of another name": (CAUSAL, "recurrent_gemma", GRIFFIN, ("--features", "mean:-1")),
}


@pytest.mark.parametrize("name", WORKING)
def test_teachers_that_open_say_what_they_say_plainly(tmp_path, name):
    task, kind, changes, flags = WORKING[name]
    teacher = family(tmp_path / "teacher", task, kind, **changes)
    status, said = precomputed(tmp_path, teacher, task, "--max_length", "64", *flags)
    assert status == 0, said
    assert check_truth(tmp_path / "cache", teacher, task)


def refused(tmp_path, teacher, task, *flags):
    """What one line says of a teacher before anything is scored; nothing is left of the run."""
    status, said = precomputed(tmp_path, teacher, task, *flags)
    assert status in (1, 2), said
    lines = [line for line in said.splitlines() if line.startswith("teachonce")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    assert not (tmp_path / "cache" / "_delta_log").exists()
    return lines[0]


def test_features_of_an_encoder_decoder_are_refused(tmp_path):
    teacher = family(tmp_path / "teacher", CLASSES, "bart", **ENCODER_DECODER)
    line = refused(tmp_path, teacher, CLASSES, "--features", "mean:-1")
    assert "BartForSequenceClassification is an encoder-decoder" in line


def test_an_encoder_decoder_is_no_causal_language_model(tmp_path):
    config = transformers.BartConfig(vocab_size=300, eos_token_id=1, **ENCODER_DECODER)
    teacher = models.save(transformers.BartForConditionalGeneration(config), tokenizer(), tmp_path / "t")
    line = refused(tmp_path, teacher, CAUSAL)
    assert "BartForConditionalGeneration is an encoder-decoder, and no causal language model" in line


def test_an_encoder_without_a_trained_head_is_refused(tmp_path):
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    teacher = models.save(transformers.BertModel(config), tokenizer(), tmp_path / "t")
    line = refused(tmp_path, teacher, CLASSES)
    assert "lack weights of BertForSequenceClassification, which would be random" in line
    assert "classifier.weight" in line


def test_weights_of_another_shape_are_refused(tmp_path):
    teacher = family(tmp_path / "teacher", CLASSES, "bert")
    file = teacher / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 40}))
    assert "the teacher" in refused(tmp_path, teacher, CLASSES)


def test_positions_that_begin_behind_the_padding_end_earlier(tmp_path):
    """RoBERTa: of 40 positions 38 are a token's. Left out, --max_length is that; more is refused."""
    teacher = family(tmp_path / "teacher", CLASSES, "roberta", pad_token_id=1, max_position_embeddings=40)
    line = refused(tmp_path, teacher, CLASSES, "--max_length", "39")
    assert "RobertaForSequenceClassification cannot be asked for a text of 39 tokens" in line
    assert "Say --max_length 38 or less" in line
    status, said = precomputed(tmp_path, teacher, CLASSES)
    assert status == 0, said
    assert Cache.open(tmp_path / "cache").spec.max_length == 38
    check_truth(tmp_path / "cache", teacher, CLASSES)


def test_float16_that_overflows_says_so(tmp_path):
    teacher = family(tmp_path / "teacher", CAUSAL, "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        model.lm_head.weight.mul_(60_000)
    models.save(model, tokenizer(special=False), teacher)
    line = refused(tmp_path, teacher, CAUSAL, "--dtype", "float16")
    assert "LlamaForCausalLM overflows in float16. Say --dtype bfloat16 or float32" in line


def test_a_forward_that_fails_is_one_line_that_names_the_class(tmp_path, monkeypatch):
    teacher = family(tmp_path / "teacher", CLASSES, "bert")

    def fail(*_, **__):
        raise RuntimeError("no kernel for\n  this machine")

    monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", fail)
    line = refused(tmp_path, teacher, CLASSES)
    assert "BertForSequenceClassification cannot be asked" in line
    assert "RuntimeError: no kernel for this machine" in line


def test_ids_beyond_the_embedding_are_refused_but_for_the_padding(tmp_path):
    words = tokenizer()
    words.add_special_tokens({"pad_token": "<more>"})
    teacher = family(tmp_path / "teacher", CLASSES, "bert", words=words)
    status, said = precomputed(tmp_path, teacher, CLASSES, "--max_reject_fraction", "0.5")
    assert status == 0, said
    check_truth(tmp_path / "cache", teacher, CLASSES)
    words.add_tokens(["<another>"])
    words.save_pretrained(teacher)
    line = refused(tmp_path / "again", teacher, CLASSES)
    assert "1 tokens that BertForSequenceClassification has no embedding for" in line
    assert "'<another>': 301" in line


def test_a_special_token_beyond_the_embedding_is_refused_only_where_every_text_has_it(tmp_path):
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    teacher = family(tmp_path / "teacher", CAUSAL, "llama", words=words)
    texts = ["one text", "two <picture> three", "four or five"]
    status, said = precomputed(tmp_path, teacher, CAUSAL, "--max_reject_fraction", "0.5", texts=texts)
    assert status == 0, said
    assert Cache.open(tmp_path / "cache").totals.examples == 2
    words.chat_template = "{% for m in messages %}<picture>{{ m.content }}{% endfor %}"
    words.save_pretrained(teacher)
    assert "'<picture>': 300" in refused(tmp_path / "again", teacher, CAUSAL)


def test_a_text_that_holds_the_padding_beyond_the_embedding_is_rejected_alone(tmp_path):
    words = tokenizer()
    words.add_special_tokens({"pad_token": "<more>"})
    teacher = family(tmp_path / "teacher", CLASSES, "bert", words=words)
    texts = ["one", "two <more> three", "four"]
    status, said = precomputed(tmp_path, teacher, CLASSES, "--max_reject_fraction", "0.5", texts=texts)
    assert status == 0, said
    assert Cache.open(tmp_path / "cache").totals.examples == 2


SHAPES = {
    "layers": (config_shapes.num_layers, {"num_hidden_layers": 3}, 3),
    "layers by another name": (config_shapes.num_layers, {"n_layers": 4}, 4),
    "width by another name": (config_shapes.hidden_size, {"d_model": 24}, 24),
    "no limit": (config_shapes.usable_length, {"max_position_embeddings": -1}, None),
    "nothing said": (config_shapes.usable_length, {}, None),
    "a limit": (config_shapes.usable_length, {"max_position_embeddings": 77}, 77),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_told_from_configs_that_name_them_differently(name):
    ask, values, expected = SHAPES[name]
    assert ask(transformers.PreTrainedConfig(**values)) == expected


def test_what_a_config_does_not_say_is_one_line_that_names_the_model():
    with pytest.raises(
        config_shapes.UsageError, match=r"PreTrainedConfig does not say how many layers there are"
    ):
        config_shapes.num_layers(transformers.PreTrainedConfig())
