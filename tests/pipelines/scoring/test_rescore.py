"""`verify --teacher`: the same teacher says the same, another one is refused, one that drifted is an error."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from pipelines.cli import precompute as commands
from pipelines.scoring import rescore as rescore_module
from pipelines.scoring.rescore import RescoreConfig, rescore
from schemas import Cache
from schemas.errors import CorruptionError, DriftError, MismatchError
from schemas.policies import KeepAll, Sampled, Threshold, TopK, TopP
from tests.pipelines import models
from tests.pipelines.helpers import documents, run, write_jsonl

CODEC_NATS = 5e-4
"""What rounding to 1/16 nat may cost a position here, at most."""

BOUND = 0.005
"""What `--max_mean_kl` and `--max_drift_kl` are by default."""


@pytest.fixture(scope="module")
def cut(tmp_path_factory, teacher, corpus):
    """A cache that keeps the top of each distribution."""
    cache = tmp_path_factory.mktemp("cut") / "cache"
    run(corpus, teacher, cache, keep=TopP(p=0.9, k=32), unit_tokens=300, stride=2)
    return cache


@pytest.mark.parametrize("name", ["whole", "cut"])
def test_the_same_teacher_says_what_the_cache_holds(request, teacher, name):
    cache = request.getfixturevalue(name)
    opened = Cache.open(cache[0] if name == "whole" else cache)
    every = rescore(opened, RescoreConfig(teacher=str(teacher), sample=10**6))
    assert (every.examples, every.positions) == (opened.totals.examples, opened.totals.positions)
    assert 0 <= every.mean_kl_nats < CODEC_NATS
    few = rescore(opened, RescoreConfig(teacher=str(teacher), sample=5))
    assert few.examples == 5
    assert few == rescore(opened, RescoreConfig(teacher=str(teacher), sample=5))
    assert few != rescore(opened, RescoreConfig(teacher=str(teacher), sample=5, seed=1))


def perturbed(folder, teacher, scale):
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(scale * torch.randn_like(weight))
    return models.save(model, transformers.AutoTokenizer.from_pretrained(teacher), folder)


def divergences(opened, teacher, other):
    """KL of each position of a cache's rows, from plain forwards of the two teachers."""
    p, q = (transformers.AutoModelForCausalLM.from_pretrained(folder) for folder in (teacher, other))
    distances = []
    for rows in opened.read_all():
        for index in range(len(rows)):
            ids = torch.from_numpy(rows.input_ids.row(index).astype(np.int64))[None]
            with torch.inference_mode():
                ours, theirs = (m(ids).logits[0, :-1].double().log_softmax(1) for m in (p, q))
            distances += (ours.exp() * (ours - theirs)).sum(1).tolist()
    return distances


def test_the_distance_is_the_kl_divergence_of_the_two_teachers(tmp_path, whole, teacher, monkeypatch):
    """With all entries kept it is the textbook's sum, here from two plain forwards."""
    other = perturbed(tmp_path / "other", teacher, 0.02)
    monkeypatch.setattr(rescore_module, "make_fingerprint", lambda *_: Cache.open(whole[0]).fingerprint)
    opened = Cache.open(whole[0])
    found = rescore(opened, RescoreConfig(teacher=str(other), sample=10**6))
    distances = divergences(opened, teacher, other)
    assert isinstance(opened.spec.keep, KeepAll)
    assert found.mean_kl_nats == pytest.approx(np.mean(distances), rel=0.05, abs=CODEC_NATS)
    assert found.max_kl_nats == pytest.approx(np.max(distances), rel=0.05, abs=CODEC_NATS)
    assert np.mean(distances) > 10 * CODEC_NATS


def test_another_teacher_is_refused(tmp_path, cut, teacher):
    other = perturbed(tmp_path / "other", teacher, 1e-6)
    with pytest.raises(MismatchError, match="not the teacher that made this cache"):
        rescore(Cache.open(cut), RescoreConfig(teacher=str(other)))


def test_the_verb_prints_what_it_found_and_fails_on_drift(cut, teacher, capsys, tmp_path):
    flags = [str(cut), "--teacher", str(teacher), "--sample", "20"]
    assert commands.verify(flags) == 0
    assert "mean KL to the teacher: " in capsys.readouterr().out
    assert commands.verify([*flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["examples"], told["scored_again"]["examples"]) == (Cache.open(cut).totals.examples, 20)
    with pytest.raises(DriftError, match="a mean KL of at most 1e-12 nats"):
        commands.verify([*flags, "--max_mean_kl", "1e-12"])
    drifted = shutil.copytree(teacher, tmp_path / "drifted")
    text = (drifted / "config.json").read_text()
    (drifted / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'))
    with pytest.raises(DriftError):
        commands.verify([str(cut), "--teacher", str(drifted)])


def test_a_damaged_cache_is_found_before_the_teacher_is_opened(tmp_path, cut, teacher):
    broken = shutil.copytree(cut, tmp_path / "broken")
    shard = next(broken.glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptionError, match="1 of"):
        commands.verify([str(broken), "--teacher", str(teacher)])


def test_classifiers_and_scores_without_a_normaliser_are_compared_too(tmp_path, classifier):
    records = [{**d, "label": [i % 3]} for i, d in enumerate(documents(6))]
    for score in ("softmax", "sigmoid"):
        corpus = write_jsonl(tmp_path / score / "c.jsonl", records)
        run(corpus, classifier, tmp_path / score / "c", task="sequence-classification", score=score)
        found = rescore(Cache.open(tmp_path / score / "c"), RescoreConfig(teacher=str(classifier)))
        assert found.examples == found.positions > 0
        assert found.max_kl_nats < CODEC_NATS


def test_positions_of_instruction_data_are_found_again(tmp_path, teacher):
    records = [{"p": f"{i} Say: ", "c": d["text"]} for i, d in enumerate(documents(6))]
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    fields = {"prompt_field": "p", "completion_field": "c", "supervise": "assistant"}
    run(corpus, teacher, tmp_path / "c", **fields)
    found = rescore(Cache.open(tmp_path / "c"), RescoreConfig(teacher=str(teacher), sample=10**6))
    assert found.positions == Cache.open(tmp_path / "c").totals.positions
    assert found.max_kl_nats < 5e-3


LOSING = {
    "top_p": {"keep": TopP(p=0.9, k=32)},
    "top_k": {"keep": TopK(k=8)},
    "threshold": {"keep": Threshold(tau=1 / 16)},
    "own": {"keep": Threshold(tau=1 / 16), "temperatures": (1.0, 2.0)},
    "draws": {"keep": Sampled(n=13)},
    "own draws": {"keep": Sampled(n=13), "own_logits": True},
}


@pytest.mark.parametrize("name", LOSING)
def test_caches_that_cut_or_draw_are_compared_by_what_they_know(tmp_path, teacher, name, monkeypatch):
    """Own log-probabilities give the whole KL divergence without bias; all else a lower bound of it."""
    corpus = write_jsonl(tmp_path / "c.jsonl", documents(10))
    run(corpus, teacher, tmp_path / "c", **LOSING[name])
    opened = Cache.open(tmp_path / "c")
    same = rescore(opened, RescoreConfig(teacher=str(teacher), sample=10**6))
    assert same.positions == opened.totals.positions
    assert 0 <= same.mean_kl_nats < CODEC_NATS
    other = perturbed(tmp_path / "other", teacher, 0.02)
    monkeypatch.setattr(rescore_module, "make_fingerprint", lambda *_: opened.fingerprint)
    found = rescore(opened, RescoreConfig(teacher=str(other), sample=10**6)).mean_kl_nats
    kl = np.mean(divergences(opened, teacher, other))
    if opened.spec.own_logits:
        assert found == pytest.approx(kl, rel=0.2, abs=CODEC_NATS)
    else:
        assert BOUND < found < kl


@pytest.fixture(scope="module")
def sures(tmp_path_factory):
    """Classifiers of two classes by how sure they are: their largest probabilities are 0.50 to 0.66, and 0.53 to 1."""
    found = {}
    for name, scale in (("unsure", 0.2), ("sure", 2.0)):
        folder = models.classifier(tmp_path_factory.mktemp(name) / "bert", num_labels=2)
        found[name] = moved(folder.with_name("scaled"), folder, lambda head, by=scale: head.mul_(by))
    return found


def moved(folder, classifier, change):
    """A classifier saved again, its head's weights changed."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    with torch.no_grad():
        change(model.classifier.weight)
    return models.save(model, transformers.AutoTokenizer.from_pretrained(classifier), folder)


FEW_CLASSES = [
    ("unsure", KeepAll()),
    ("unsure", Threshold(tau=1 / 32)),
    ("unsure", Threshold(tau=0.4)),
    ("sure", KeepAll()),
    ("sure", TopK(k=1)),
    ("sure", TopP(p=0.99, k=2)),
    ("sure", Threshold(tau=1 / 32)),
    ("sure", Threshold(tau=0.4)),
    ("sure", Sampled(n=13)),
]


@pytest.mark.parametrize(("sure", "keep"), FEW_CLASSES, ids=str)
def test_rounding_is_no_drift_where_there_is_no_tail_to_speak_of(tmp_path, sures, sure, keep, monkeypatch):
    """Whether both scores are kept, or one that is nearly 1; and real drift is told at the bound that people have."""
    corpus = write_jsonl(tmp_path / "c.jsonl", documents(24))
    run(corpus, sures[sure], tmp_path / "c", task="sequence-classification", score="softmax", keep=keep)
    opened = Cache.open(tmp_path / "c")
    same = rescore(opened, RescoreConfig(teacher=str(sures[sure]), sample=10**6))
    monkeypatch.setattr(rescore_module, "make_fingerprint", lambda *_: opened.fingerprint)
    torch.manual_seed(1)
    by = {"unsure": 0.1, "sure": 0.3}[sure]
    other = moved(tmp_path / "other", sures[sure], lambda head: head.add_(by * torch.randn_like(head)))
    found = rescore(opened, RescoreConfig(teacher=str(other), sample=10**6)).mean_kl_nats
    kl = np.mean(class_divergences(opened, sures[sure], other))
    assert 0 <= same.mean_kl_nats <= same.max_kl_nats < CODEC_NATS
    assert kl > 2 * BOUND
    assert (
        BOUND < found < (kl**0.5 + CODEC_NATS**0.5) ** 2
    )  # the rounding of entries moves log p by half a step


def class_divergences(opened, teacher, other):
    """KL of each text, from plain forwards of the two classifiers."""
    p, q = (transformers.AutoModelForSequenceClassification.from_pretrained(f) for f in (teacher, other))
    distances = []
    for rows in opened.read_all():
        for index in range(len(rows)):
            ids = torch.from_numpy(rows.input_ids.row(index).astype(np.int64))[None]
            types = torch.from_numpy(rows.ragged("token_type_ids").row(index).astype(np.int64))[None]
            with torch.inference_mode():
                ours, theirs = (
                    m(ids, token_type_ids=types).logits[0].double().log_softmax(0) for m in (p, q)
                )
            distances.append((ours.exp() * (ours - theirs)).sum().item())
    return distances


@pytest.mark.parametrize("keep", [KeepAll(), Threshold(tau=1 / 32), Threshold(tau=0.4)], ids=str)
def test_a_night_with_another_attention_goes_on(tmp_path, sures, keep):
    flags = {"task": "sequence-classification", "score": "softmax", "keep": keep}
    run(write_jsonl(tmp_path / "1.jsonl", documents(40)), sures["sure"], tmp_path / "c", **flags)
    more = write_jsonl(tmp_path / "2.jsonl", documents(45))
    assert run(more, sures["sure"], tmp_path / "c", attn_implementation="eager", **flags).committed
    assert Cache.open(tmp_path / "c").record.provenance["attn_implementation"] == "eager"
    assert commands.verify([str(tmp_path / "c"), "--teacher", str(sures["sure"])]) == 0
