"""An answer does not depend on who shares the batch: equal to plain transformers, or refused by name."""

import pytest
import torch
import transformers

from pipelines.teacher import opening
from pipelines.teacher.batching import each_batch
from pipelines.teacher.model import Teacher
from tests.pipelines.families import (
    AUTO,
    CAUSAL,
    CLASSES,
    ENCODER_DECODER,
    MAMBA,
    MASKED,
    TEXTS,
    batching,
    check_truth,
    family,
    masked_teacher,
    precomputed,
    teachonce_main,
    tokenizer,
)

PADDED, LENGTH, ALONE = "padded batches", "batches of one length", "one text a batch"
END = {"words": tokenizer(pad_token=None), "pad_token_id": 1}
XLNET = {"d_model": 32, "n_head": 2, "without": ("max_position_embeddings",)}
ROPE = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
PHI = {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 32}
FEATURES = ("--features", "mean:-1", "cls:-1", "last:1")
BLOCKS = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}
FAMILIES = {
    "the end of a text is its padding": (CLASSES, "gpt2", PADDED, END, FEATURES),
    "no padding at all": (CLASSES, "mistral", LENGTH, {**END, "pad_token_id": None}, FEATURES),
    "padding beyond the embedding": (CLASSES, "gpt2", LENGTH, {**END, "pad_token_id": 300}, ()),
    "padding of -1": (CLASSES, "opt", LENGTH, {"pad_token_id": -1, "word_embed_proj_dim": 32}, ()),
    "positions by padding": (CLASSES, "roberta", PADDED, {"pad_token_id": 1}, FEATURES),
    "padding is mixed in": (CLASSES, "fnet", LENGTH, {}, FEATURES),
    "the last token, with padding on the left": (CLASSES, "xlnet", LENGTH, XLNET, ()),
    "ends are counted": (CLASSES, "bart", PADDED, ENCODER_DECODER, ()),
    "attention by blocks": (CLASSES, "big_bird", LENGTH, BLOCKS, FEATURES[:2]),
    "a recurrent state": (CAUSAL, "mamba2", PADDED, MAMBA, FEATURES),
    "experts": (CAUSAL, "mixtral", PADDED, {"num_local_experts": 4, "head_dim": 16}, FEATURES),
    "positions by distance": (CAUSAL, "bloom", PADDED, {"n_layer": 2, "n_head": 2}, FEATURES),
    "frequencies of the longest text": (
        CAUSAL,
        "llama",
        LENGTH,
        {"rope_parameters": ROPE, "max_position_embeddings": 32},
        FEATURES,
    ),
    "frequencies of long texts": (CAUSAL, "phi3", LENGTH, PHI, FEATURES),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_cache_says_is_what_the_model_says_of_each_text_alone(tmp_path, name):
    task, kind, expected, changes, features = FAMILIES[name]
    teacher = family(tmp_path / "teacher", task, kind, **changes)
    status, said = precomputed(tmp_path, teacher, task, "--max_length", "128", *features)
    assert status == 0, said
    assert batching(tmp_path / "cache") == expected
    assert (expected in said) == (expected != PADDED)
    assert check_truth(tmp_path / "cache", teacher, task) >= len(TEXTS)


def test_a_teacher_that_answers_by_chance_is_refused_by_name(tmp_path, monkeypatch):
    teacher = family(tmp_path / "teacher", CLASSES, "bert")
    forward = transformers.BertForSequenceClassification.forward

    def by_chance(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + torch.randn_like(output.logits)
        return output

    monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", by_chance)
    status, said = precomputed(tmp_path, teacher, CLASSES)
    assert status != 0
    assert "BertForSequenceClassification does not say the same of a text twice" in said
    assert not (tmp_path / "cache" / "_delta_log").exists()


def test_a_model_that_mixes_over_its_batch_is_asked_for_one_text_at_a_time(tmp_path, monkeypatch):
    teacher = family(tmp_path / "teacher", CLASSES, "bert")
    forward = transformers.BertForSequenceClassification.forward

    def mixed(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + 0.1 * (len(output.logits) - 1) * output.logits
        return output

    monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", mixed)
    status, said = precomputed(tmp_path, teacher, CLASSES)
    assert status == 0, said
    assert f"BertForSequenceClassification: {ALONE}: other texts change its answers" in said
    assert batching(tmp_path / "cache") == ALONE
    check_truth(tmp_path / "cache", teacher, CLASSES)


def test_an_encoder_that_sees_what_it_is_to_predict_is_refused(tmp_path):
    teacher = family(tmp_path / "teacher", CAUSAL, "xlnet", **XLNET)
    status, said = precomputed(tmp_path, teacher, CAUSAL)
    assert status != 0
    assert "XLNetLMHeadModel sees the tokens that it is to predict" in said


@pytest.mark.parametrize(
    ("task", "layer"), [(CAUSAL, "self_attn.o_proj"), (MASKED, "attention.output.dense")]
)
def test_a_model_whose_attention_is_nothing_is_refused(tmp_path, task, layer):
    """Its scores are those of plain transformers, and mean nothing."""
    made = family(tmp_path / "t", CAUSAL, "llama") if task == CAUSAL else masked_teacher(tmp_path / "t")
    status, said = precomputed(tmp_path / "whole", made, task, "--max_length", "4", texts=TEXTS[1:])
    assert status == 0, said
    model = AUTO[task].from_pretrained(made)
    for name, weight in model.named_parameters():
        weight.data *= layer not in name
    model.save_pretrained(made)
    status, said = precomputed(tmp_path / "none", made, task)
    assert status != 0
    assert "sees nothing of a text but the token itself" in said.splitlines()[-1]


def test_verify_asks_one_text_at_a_time_and_so_sees_what_a_batch_did(tmp_path, monkeypatch):
    """A cache as it was made before teachers were asked: padded with id 0, for which the model does not look."""
    teacher = family(tmp_path / "teacher", CLASSES, "gpt2", **END)
    with monkeypatch.context() as patch:
        patch.setattr(opening, "settled", lambda opened, _: opened)
        patch.setattr(opening, "pad_id", lambda *_: 0)
        assert precomputed(tmp_path, teacher, CLASSES)[0] == 0
    sizes, honest = [], Teacher.logits

    def watched(self, batch):
        sizes.append(tuple(batch.attention_mask.shape))
        assert batch.attention_mask.all()
        return honest(self, batch)

    monkeypatch.setattr(Teacher, "logits", watched)
    status, said = teachonce_main("verify", tmp_path / "cache", "--teacher", teacher)
    assert {rows for rows, _ in sizes} == {1}
    assert status != 0
    assert "a mean KL of at most" in said


def test_batches_of_one_length_are_filled_to_the_budget():
    lengths = [3, 5, 3, 3, 5, 3, 7]
    found = list(each_batch(lengths, lambda: 9, on_device=False, batching=LENGTH))
    assert found == [[6], [1], [4], [0, 2, 3], [5]]
    alone = each_batch(lengths, lambda: 9, on_device=False, batching=ALONE)
    assert [len(batch) for batch in alone] == [1] * 7
