"""Ids that a student has no embedding for are one line before the first step; its tokenizer gives what it takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

import teachonce
from schemas.cache import Cache
from schemas.errors import StudentError
from schemas.policies import KeepAll
from schemas.rows.ragged import Ragged
from schemas.spec import Spec
from tests.trainer.caches import class_columns, finished_rows, write_cache
from tests.trainer.tiny import VOCAB, make_bert, random_examples, tiny_tokenizer
from trainer.batches.collate import Collation
from trainer.students.students import open_student

BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
XLNET: dict[str, Any] = {"model_type": "xlnet", "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64}
DISTILBERT: dict[str, Any] = {"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2}


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Cache]:
    """A cache whose tokens are of so many types: XLNet's tokenizer gives the third to its last token."""

    def build(types: int) -> Cache:
        folder = tmp_path_factory.mktemp("typed")
        teacher = BertForSequenceClassification.from_pretrained(make_bert(folder / "teacher")).eval()
        spec = Spec(
            task="sequence-classification",
            score="softmax",
            vocab_size=3,
            keep=KeepAll(),
            max_length=64,
            scalars=("entropy", "gold", "logsumexp"),
            has_token_type_ids=True,
        )
        examples = random_examples(30)
        columns = class_columns(teacher, examples, [None] * 30, spec)
        given = [np.arange(len(example), dtype=np.int8) % types for example in examples]
        tokenizer = tiny_tokenizer()
        names = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
        rows = finished_rows(spec, columns | {"token_type_ids": Ragged.of(given, np.int8)})
        return write_cache(folder / "cache", rows, tokenizer=tokenizer)

    return build


def trained(cache: Cache, folder: Path, config: dict[str, Any], *more: str) -> int:
    path = folder / "student.json"
    path.write_text(json.dumps(config))
    flags = ["--cache", cache.storage.root, "--student", str(path), "--output_dir", str(folder / "out")]
    return teachonce.main(["train", *flags, "--max_steps", "1", "--use_cpu", "--report_to", "none", *more])


def test_token_types_beyond_the_student(
    typed: Callable[[int], Cache], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = typed(3)
    capsys.readouterr()
    assert trained(cache, tmp_path, BERT) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "no embedding for the cache's token_type_ids: example " in told
    assert "expected at most 1, got 2" in told
    assert "type_vocab_size" in told
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert trained(cache, tmp_path, BERT | {"type_vocab_size": 3}) == 0


def test_a_model_that_counts_no_types_is_told_them(typed: Callable[[int], Cache], tmp_path: Path) -> None:
    path = tmp_path / "student.json"
    path.write_text(json.dumps(XLNET))
    cache = typed(3)
    student = open_student(str(path), cache, alone=True)
    batch = student.collation().batch(cache.read(cache.row_groups[0]).take(np.arange(1)))
    assert batch.token_type_ids is not None


def test_the_students_tokenizer_gives_what_it_takes(
    typed: Callable[[int], Cache], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BERT's tokenizer names token types, and DistilBERT's forward takes none."""
    assert trained(typed(2), tmp_path, DISTILBERT) == 0
    assert "the student knows no token types" in capsys.readouterr().err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert model(**tokenizer("t5 t6", return_tensors="pt")).logits.shape == (1, 3)


def test_tokens_beyond_the_student(causal_cache: Cache) -> None:
    rows = causal_cache.read(causal_cache.row_groups[0]).take(np.arange(6))
    most = int(rows.input_ids.values.max())
    Collation(student_vocab=VOCAB, pad_id=0, embeddings=most + 1).batch(rows)
    with pytest.raises(
        StudentError, match=f"input_ids: example .*at most {most - 1}, got {most}.*vocab_size"
    ):
        Collation(student_vocab=VOCAB, pad_id=0, embeddings=most).batch(rows)
