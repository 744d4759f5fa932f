"""What a cache holds is what the model's own forward says, within the codec's bounds, for every kind of head."""

import numpy as np
import pytest
import torch
import transformers

from pipelines.keep import select as select_module
from pipelines.teacher import model as teacher_module
from schemas import Cache
from schemas.policies import KeepAll, TopK, TopP
from tests.pipelines import models
from tests.pipelines.helpers import documents, read, run, write_jsonl
from tests.pipelines.oracle import Oracle, check_features, check_labels, check_row

HEADS = {
    "tied": ("llama", {}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "soft-capped": ("gemma2", {}),
    "divided": ("granite", {}),
    "multiplied": ("cohere", {"logit_scale": 0.25}),
    "biased": ("phi", {"tie_word_embeddings": False}),
    "old names": ("gpt2", {}),
}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("few") / "few.jsonl", documents(7))


def check(cache, teacher, *, rounding=5e-5, most_swapped=0.002, dtype=torch.float32):
    """Every row of a causal LM's cache against a direct forward."""
    opened, oracle = Cache.open(cache), Oracle(teacher, dtype=dtype)
    swapped, mass = 0, 0.0
    for row in read(opened).values():
        truth = oracle.truth(row)
        swapped += check_row(row, truth, opened.spec, rounding=rounding)
        check_labels(row, truth, row["input_ids"][row["positions"] + 1], rounding=rounding)
        check_features(row, truth, opened.spec, rounding=rounding)
        logits = truth.logits[row["positions"]]
        logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        place = np.repeat(np.arange(len(logits)), np.diff(row["kept_offsets"]))
        mass += np.exp(logprobs[place, row["kept_ids"]]).sum()
    assert swapped <= most_swapped * opened.totals.entries
    assert opened.totals.kept_mass_sum == pytest.approx(mass, rel=1e-4)
    return opened


@pytest.mark.parametrize("name", HEADS)
def test_a_cache_says_what_the_models_own_forward_says(tmp_path, few, name):
    kind, changes = HEADS[name]
    teacher = models.causal_teacher(tmp_path / "teacher", kind=kind, **changes)
    features = ("mean:1", "last:-1", "cls:0")
    keep = TopP(p=0.9, k=40) if name != "tied" else KeepAll()
    run(few, teacher, tmp_path / "c", keep=keep, temperatures=(1.0, 2.0), features=features, stride=3)
    check(tmp_path / "c", teacher)


def test_float32_features_are_stored_as_they_are(tmp_path, few, teacher):
    run(few, teacher, tmp_path / "c", features=("mean:-1", "last:1"), feature_dtype="float32", keep=TopK(k=3))
    opened = check(tmp_path / "c", teacher)
    assert [feature.dtype for feature in opened.spec.features] == ["float32"] * 2


def test_a_vocabulary_beyond_seventeen_bits_keeps_its_ids(tmp_path, few):
    size = {"vocab_size": 2**17 + 300, "hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    teacher = models.causal_teacher(tmp_path / "teacher", initializer_range=1.0, **size)
    run(few, teacher, tmp_path / "c", max_length=12, keep=TopP(p=0.99, k=64))
    opened = check(tmp_path / "c", teacher)
    assert opened.spec.vocab_size == 2**17 + 300
    assert max(rows.kept_ids.max() for rows in opened.read_all()) >= 2**17


def test_a_bfloat16_teachers_head_is_applied_in_float32(tmp_path, few):
    teacher = models.causal_teacher(tmp_path / "teacher")
    run(few, teacher, tmp_path / "c", dtype="bfloat16", keep=TopK(k=32), batch_tokens=1)
    opened = check(tmp_path / "c", teacher, dtype=torch.bfloat16, rounding=1e-4)
    assert opened.fingerprint.dtype == "bfloat16"


def test_equal_logits_at_and_across_the_cut_keep_the_lower_ids(tmp_path, few):
    """Rows of zeros in the head: exactly equal logits whatever the order of the sums."""
    teacher = models.causal_teacher(tmp_path / "teacher", tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    tied = [0, *range(20, 290)]
    with torch.no_grad():
        model.lm_head.weight[tied] = 0
    model.save_pretrained(teacher)
    run(few, teacher, tmp_path / "c", keep=TopK(k=24))
    check(tmp_path / "c", teacher, most_swapped=0)
    oracle = Oracle(teacher)
    for row in read(tmp_path / "c").values():
        logits = oracle.truth(row).logits[row["positions"]]
        for n, ids in enumerate(row["kept_ids"].reshape(-1, 24)):
            above = int((logits[n] > 0).sum())
            assert 0 < above < 24
            assert ids[above:].tolist() == tied[: 24 - above]


def test_rows_are_the_same_for_any_units_batches_chunks_and_row_groups(
    tmp_path, corpus, teacher, whole, monkeypatch
):
    cache, summary = whole
    assert summary.shards > 2
    monkeypatch.setitem(teacher_module._CHUNK_BYTES, "cpu", 4 * 300 * 7)
    monkeypatch.setattr(select_module, "_CACHED_BYTES", 4 * 300 * 3)
    run(corpus, teacher, tmp_path / "c", unit_tokens=10**6, batch_tokens=1, row_group_tokens=10**6)
    first, second = read(cache), read(tmp_path / "c")
    assert len(Cache.open(tmp_path / "c").row_groups) == 1 < len(Cache.open(cache).row_groups)
    assert first.keys() == second.keys()
    for one, other in ((first[key], second[key]) for key in first):
        same(one, other)


STEPS = {"logprobs": 1 / 16 + 1 / 64, "top_logprob": 1 / 64, "entropy": 1 / 32, "label_logprob": 1 / 32}
"""An entry's level is counted from the top one, so it may be off by that one's step too."""


def same(one: dict, other: dict) -> None:
    """Equal rows; log-probabilities within a rounding, or a whole step where it tipped a code."""
    assert one.keys() == other.keys()
    for name, values in one.items():
        if name in ("kept_ids", "kept_codes"):
            continue
        tolerance = STEPS.get(name, 0) + 1e-4
        if np.asarray(values).dtype.kind == "f":
            np.testing.assert_allclose(values, other[name], atol=tolerance)
        else:
            np.testing.assert_array_equal(values, other[name])
    assert (one["kept_ids"] != other["kept_ids"]).mean() < 0.01
