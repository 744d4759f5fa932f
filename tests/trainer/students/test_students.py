"""A student opens from a folder, a config or a teacher, or is refused before any work, in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
)

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from tests.trainer.caches import causal_columns, causal_spec, finished_rows, write_cache
from tests.trainer.tiny import (
    STUDENT,
    VOCAB,
    bert_config,
    llama_config,
    make_bert,
    make_llama,
    random_examples,
    save,
    tiny_tokenizer,
)
from trainer.models.layers import find_stack, kept_layers
from trainer.models.shrink import parse_shrink, shrunk
from trainer.students.students import open_student, open_trained


def config_file(folder: Path, **changes: Any) -> str:
    path = folder / "student.json"
    path.write_text(json.dumps(STUDENT | {"num_hidden_layers": 1} | changes))
    return str(path)


def test_a_config_takes_vocabulary_and_special_tokens_from_the_cache(
    causal_cache: Cache, tmp_path: Path
) -> None:
    student = open_student(config_file(tmp_path), causal_cache)
    config = student.model.config
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id) == (VOCAB, 0, 1)
    assert config.bos_token_id is None
    assert student.vocab_size == VOCAB
    assert student.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert student.model.dtype == torch.float32


def test_two_students_of_one_config_and_seed_begin_identical(causal_cache: Cache, tmp_path: Path) -> None:
    a, b, c = (open_student(config_file(tmp_path), causal_cache, seed=seed).model for seed in (3, 3, 4))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)


def test_a_folder_opens_with_its_own_tokenizer(causal_cache: Cache, teacher_dir: str) -> None:
    student = open_student(teacher_dir, causal_cache)
    assert student.task.has_vocabulary
    assert student.tokenizer.name_or_path == teacher_dir


def test_a_padded_embedding_fits(causal_cache: Cache, tmp_path: Path) -> None:
    for size in (VOCAB + 24, VOCAB):
        assert open_student(config_file(tmp_path, vocab_size=size), causal_cache).vocab_size == size


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": VOCAB - 1}, f"at least {VOCAB}, got {VOCAB - 1}"),
        ({"max_position_embeddings": 32}, "at least 64, got 32"),
    ],
)
def test_a_config_that_is_too_small_is_refused(
    causal_cache: Cache, tmp_path: Path, changes: dict[str, int], named: str
) -> None:
    with pytest.raises(StudentError, match=named):
        open_student(config_file(tmp_path, **changes), causal_cache)


def test_another_tokenizer_is_refused_by_example(causal_cache: Cache, tmp_path: Path) -> None:
    folder = save(LlamaForCausalLM(llama_config()), tmp_path / "other", tiny_tokenizer(VOCAB - 10))
    with pytest.raises(StudentError, match=r"10 tokens that differ \('t190': None\)"):
        open_student(folder, causal_cache)
    with pytest.raises(StudentError, match="10 tokens that differ"):
        open_trained(folder, causal_cache)


@pytest.mark.parametrize("name", ["/nowhere/student", "./nowhere", "nobody/nothing"])
def test_what_is_not_there_is_a_usage_error_of_one_line(causal_cache: Cache, name: str) -> None:
    with pytest.raises(UsageError, match="no") as caught:
        open_student(name, causal_cache)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "cannot be read"),
        ('{"hidden_size": 32}', "model_type"),
        ('{"model_type": "lama"}', "lama"),
        ('{"model_type": "llama", "hidden_size": "big"}', "hidden_size"),
    ],
)
def test_a_config_of_nonsense_is_a_usage_error(
    causal_cache: Cache, tmp_path: Path, text: str, named: str
) -> None:
    (tmp_path / "student.json").write_text(text)
    with pytest.raises(UsageError, match=named):
        open_student(str(tmp_path / "student.json"), causal_cache)


def test_a_missing_config_file_is_a_usage_error(causal_cache: Cache) -> None:
    with pytest.raises(UsageError, match=r"none\.json"):
        open_student("none.json", causal_cache)


def test_a_cache_without_a_tokenizer_is_refused(tmp_path: Path, teacher_dir: str) -> None:
    spec = causal_spec()
    model = LlamaForCausalLM.from_pretrained(teacher_dir).eval()
    rows = finished_rows(spec, causal_columns(model, random_examples(4), spec))

    class NoTokenizer:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()

    cache = write_cache(tmp_path / "cache", rows, shards=1, tokenizer=NoTokenizer())
    with pytest.raises(StudentError, match="no tokenizer"):
        open_student(config_file(tmp_path), cache)


class TestShrink:
    """`shrink:layers=N`."""

    @pytest.mark.parametrize(
        ("total", "layers", "kept"),
        [
            (6, 3, [0, 2, 4]),
            (12, 4, [0, 3, 6, 9]),
            (6, 6, [0, 1, 2, 3, 4, 5]),
            (6, 4, [0, 1, 3, 4]),
            (6, 1, [0]),
        ],
    )
    def test_layers_are_evenly_spaced_from_the_first(self, total: int, layers: int, kept: list[int]) -> None:
        assert kept_layers(("one",) * total, layers) == kept

    def test_how_it_is_written(self) -> None:
        assert parse_shrink("shrink:layers=3") == 3
        assert parse_shrink("./student") is None
        for wrong in ("shrink:3", "shrink:layers=0", "shrink:layers=x", "shrink:width=2"):
            with pytest.raises(UsageError, match=wrong):
                parse_shrink(wrong)

    def test_the_teacher_must_be_named(self, causal_cache: Cache) -> None:
        with pytest.raises(UsageError, match="--teacher"):
            open_student("shrink:layers=1", causal_cache)

    def test_a_decoder_keeps_the_layers_it_should(self, causal_cache: Cache, tmp_path: Path) -> None:
        folder = make_llama(tmp_path / "deep", num_hidden_layers=6, tie_word_embeddings=True)
        teacher = AutoModelForCausalLM.from_pretrained(folder)
        student = open_student("shrink:layers=3", causal_cache, teacher=folder).model
        assert student.config.num_hidden_layers == len(student.model.layers) == 3
        for new, old in enumerate([0, 2, 4]):
            ours, theirs = student.model.layers[new], teacher.model.layers[old]
            assert torch.equal(ours.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
            assert ours.self_attn.layer_idx == new
        assert torch.equal(student.model.embed_tokens.weight, teacher.model.embed_tokens.weight)
        assert student.lm_head.weight is student.model.embed_tokens.weight

    def test_lists_with_an_item_a_layer_are_kept_in_step(self) -> None:
        config = Gemma2Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=6,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            layer_types=["sliding_attention", "full_attention", "full_attention"] * 2,
        )
        student = shrunk(Gemma2ForCausalLM(config), 3, AutoModelForCausalLM)
        assert student.config.layer_types == ["sliding_attention", "full_attention", "full_attention"]
        assert student(input_ids=torch.arange(5)[None]).logits.shape == (1, 5, VOCAB)

    def test_an_encoder_shrinks_too(self, class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
        folder = make_bert(tmp_path / "deep", num_hidden_layers=4)
        student = open_student("shrink:layers=2", class_cache_of(), teacher=folder)
        teacher = AutoModelForSequenceClassification.from_pretrained(folder)
        layers = student.model.bert.encoder.layer
        assert len(layers) == 2
        assert torch.equal(layers[1].output.dense.weight, teacher.bert.encoder.layer[2].output.dense.weight)
        assert torch.equal(student.model.classifier.weight, teacher.classifier.weight)

    def test_more_layers_than_the_teacher_has(self, causal_cache: Cache, teacher_dir: str) -> None:
        with pytest.raises(StudentError, match="at most 2, got 3"):
            open_student("shrink:layers=3", causal_cache, teacher=teacher_dir)

    def test_layers_that_cannot_be_told(self) -> None:
        model = LlamaForCausalLM(llama_config())
        model.config.num_hidden_layers = 5
        with pytest.raises(StudentError, match="one list of 5 modules, got none"):
            find_stack(model, model.config)


class TestClassifiers:
    """Students of a sequence classification cache."""

    def test_a_config_takes_the_caches_classes(
        self, class_cache_of: Callable[..., Cache], tmp_path: Path
    ) -> None:
        path = config_file(tmp_path, model_type="bert")
        student = open_student(path, class_cache_of("sigmoid", 4))
        assert student.vocab_size == student.model.config.num_labels == 4
        assert student.model.config.problem_type == "multi_label_classification"
        assert not student.task.has_vocabulary
        assert student.takes_token_types

    def test_a_plain_encoder_gets_a_new_head(
        self, class_cache_of: Callable[..., Cache], tmp_path: Path
    ) -> None:
        folder = save(BertModel(bert_config()), tmp_path / "encoder")
        student = open_student(folder, class_cache_of("softmax", 5))
        assert student.model.classifier.weight.shape == (5, 32)

    def test_a_trained_classifier_with_other_classes_is_refused(
        self, class_cache_of: Callable[..., Cache], tmp_path: Path
    ) -> None:
        folder = make_bert(tmp_path / "four", num_labels=4)
        cache = class_cache_of()
        for opening in (open_student, open_trained):
            with pytest.raises(StudentError, match="expected 3, got 4"):
                opening(folder, cache)

    def test_a_decoder_classifies_with_the_tokenizers_padding(
        self, class_cache_of: Callable[..., Cache], tmp_path: Path
    ) -> None:
        student = open_student(config_file(tmp_path), class_cache_of())
        assert student.model.config.pad_token_id == student.pad_id == 0
