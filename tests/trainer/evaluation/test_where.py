"""`evaluate --where` measures on the held-out rows that a plain loop chooses, and on no other."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import teachonce
from schemas.cache import Cache
from tests.trainer.evaluation.test_evaluation import held_out
from tests.trainer.tiny import make_llama


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_llama(tmp_path_factory.mktemp("student"), seed=5)


def words(cache: Cache, student: str, *more: str) -> list[str]:
    usual = ["--eval_fraction", "0.3", "--batch_size", "8", "--speed_seconds", "0", "--device", "cpu"]
    return ["evaluate", "--cache", cache.storage.root, "--student", student, *usual, *more]


def test_only_rows_that_meet_all_are_measured(
    causal_cache: Cache, student: str, capfd: pytest.CaptureFixture[str]
) -> None:
    told = ["--where", "length>=12", "--where", "length<30", "entropy<5.2"]
    assert teachonce.main(words(causal_cache, student, *told, "--json")) == 0
    found = json.loads(capfd.readouterr().out)
    model, rows = AutoModelForCausalLM.from_pretrained(student).eval(), held_out(causal_cache)
    nats = positions = left_out = begin = 0
    for place in range(len(rows)):
        tokens = torch.from_numpy(rows.input_ids.row(place).copy()).long()[None]
        count = tokens.shape[1] - 1
        entropy = rows.entropy()[begin : begin + count].mean()
        begin += count
        if not (12 <= tokens.shape[1] < 30 and entropy < 5.2):
            left_out += 1
            continue
        with torch.no_grad():
            nats += model(input_ids=tokens, labels=tokens).loss.item() * count
        positions += count
    assert 5 < left_out < len(rows) - 5
    assert found["where"] == ["length>=12", "length<30", "entropy<5.2"]
    assert found["metrics"]["positions"] == positions
    assert found["metrics"]["cross_entropy_nats"] == pytest.approx(nats / positions, rel=1e-5)
    assert found["metrics"]["perplexity"] == pytest.approx(math.exp(nats / positions), rel=1e-4)


def test_the_table_says_what_was_measured(
    causal_cache: Cache, student: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert teachonce.main(words(causal_cache, student, "--where", "length<30")) == 0
    assert "where length<30" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ("size<3", "--where cannot be read"),
        ("label=1", "--where label means nothing here: the cache's rows have no label"),
        ("length>1000", "no held-out row meets --where length>1000"),
    ],
)
def test_a_filter_without_rows_or_meaning(
    causal_cache: Cache, student: str, capfd: pytest.CaptureFixture[str], told: str, named: str
) -> None:
    assert teachonce.main(words(causal_cache, student, "--where", told)) == 2
    told_out, told_err = capfd.readouterr()
    assert told_out == ""
    assert named in told_err
    assert told_err.count("\n") == 1
