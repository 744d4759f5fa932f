"""Adapters are trained as plain transformers and PEFT would, the base stays, and a run resumes to the last bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
)

import teachonce
from schemas.cache import Cache
from tests.synthetic import SPECS, random_rows
from tests.trainer.caches import write_cache
from tests.trainer.lora import opened, opens_as_peft_does, same, saved, train
from tests.trainer.tiny import VOCAB, bert_config, make_llama, save, tiny_tokenizer
from trainer.checkpoints.records import Record
from trainer.losses.objective import Objective
from trainer.students.students import open_trained
from trainer.training.training import make_distiller

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
"""PEFT asks transformers by an older name."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_llama(tmp_path_factory.mktemp("models") / "base", seed=1, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def trained(causal_cache: Cache, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, with dropout and projections."""
    out = tmp_path_factory.mktemp("lora") / "out"
    assert train(causal_cache, base, out) == 0
    return out


def speak(adapter: Any, seed: int = 3) -> None:
    """Gives B, zero at birth, something to say."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)


def dense_kl(logits: torch.Tensor, rows: Any) -> torch.Tensor:
    """KL with one bucket for the tail, a position at a time, from the cache's own entries."""
    terms, kept = [], 0
    ids, logprobs = torch.from_numpy(rows.kept_ids).long(), torch.from_numpy(rows.kept_logprobs())
    counts = rows.ragged("num_kept")
    for row in range(len(rows)):
        for position, count in enumerate(counts.row(row)):
            part = slice(kept, kept + int(count))
            kept += int(count)
            p, log_q = logprobs[part].double().exp(), logits[row, position].double().log_softmax(-1)
            p = p / p.sum().clamp_min(1)
            beside = torch.ones(VOCAB, dtype=torch.bool)
            beside[ids[part]] = False
            tail, log_tail = (1 - p.sum()).clamp_min(0), log_q[beside].logsumexp(-1)
            terms.append((p * (p.log() - log_q[ids[part]])).sum() + torch.xlogy(tail, tail) - tail * log_tail)
    assert kept == len(ids)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "not reentrant"])
def test_loss_and_gradients_are_those_of_transformers_and_peft(
    causal_cache: Cache, base: str, checkpointing: bool | None
) -> None:
    student = opened(base, causal_cache, "r=4", "alpha=16", "targets=q_proj,v_proj,down_proj")
    speak(student.adapter)
    rows = causal_cache.read(causal_cache.row_groups[0]).take(np.arange(6))
    batch = student.collation(features=causal_cache.spec.features).batch(rows)
    distiller = make_distiller(student, causal_cache, Objective.parse(["kl=1.0"]))
    if checkpointing is not None:
        distiller.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": checkpointing}
        )
    found = distiller(batch)["loss"]
    found.backward()

    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    plain = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    speak(plain)
    weights = dict(student.adapter.named_parameters())
    plain.load_state_dict({n: w.detach().clone() for n, w in weights.items()}, strict=False)
    own = dense_kl(plain(**batch.model_inputs).logits, rows)
    own.backward()
    assert own.item() > 1
    torch.testing.assert_close(found.double(), own, rtol=1e-5, atol=1e-5)
    names = [name for name, weight in plain.named_parameters() if weight.requires_grad]
    assert len(names) == 2 * 3 * 2
    for name, weight in plain.named_parameters():
        if name not in names:
            assert weights[name].grad is None
            continue
        assert weight.grad is not None
        assert weight.grad.any()
        torch.testing.assert_close(weights[name].grad, weight.grad, rtol=1e-3, atol=1e-6)


def test_what_is_saved_is_peft_s_own(trained: Path, base: str, causal_cache: Cache) -> None:
    for folder in (trained, trained / "checkpoint-4"):
        names = {path.name for path in folder.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} < names
        assert not {"model.safetensors", "config.json"} & names
        assert ("README.md" in names) == (folder == trained)
    assert "teachonce" in (trained / "README.md").read_text()
    config = json.loads((trained / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 16, 0.1)
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert (config["task_type"], config["inference_mode"]) == ("CAUSAL_LM", True)
    assert all(weight.any() for weight in saved(trained).values())
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(trained)).eval()
    ours = open_trained(str(trained), causal_cache)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected, plain = theirs(input_ids=ids).logits, AutoModelForCausalLM.from_pretrained(base)(ids).logits
        torch.testing.assert_close(ours.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, plain, atol=0.1), "the adapters say something"


def test_the_base_is_unchanged_bit_for_bit(causal_cache: Cache, base: str, tmp_path: Path) -> None:
    """In memory, behind steps that were large; and its folder."""
    before = (Path(base) / "model.safetensors").read_bytes()
    student = opened(base, causal_cache, "r=4")
    distiller = make_distiller(student, causal_cache, Objective.parse(["kl=1.0", "ce=1", "feature=1"]))
    optimizer = torch.optim.AdamW([w for w in distiller.parameters() if w.requires_grad], lr=0.1)
    rows = causal_cache.read(causal_cache.row_groups[0]).take(np.arange(6))
    batch = student.collation(features=causal_cache.spec.features).batch(rows)
    for _ in range(3):
        distiller(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, weight in distiller.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name or name.startswith("projections.") for name in changed)
    assert any(name.startswith("projections.") for name in changed)
    now = student.adapter.unload().state_dict()
    plain = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert now.keys() == plain.keys()
    assert all(torch.equal(now[name], plain[name]) for name in plain)
    assert train(causal_cache, base, tmp_path / "out", max_steps=2) == 0
    assert (Path(base) / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_resumes_to_the_last_bit(
    causal_cache: Cache, base: str, trained: Path, tmp_path: Path, step: int
) -> None:
    from_there = str(trained / f"checkpoint-{step}")
    assert train(causal_cache, base, tmp_path / "again", resume_from_checkpoint=from_there) == 0
    assert same(trained, tmp_path / "again")
    projections = "projections.safetensors"
    ours, theirs = load_file(trained / projections), load_file(tmp_path / "again" / projections)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert not same(trained, trained / "checkpoint-4")


def test_a_run_with_another_lora_or_base_is_not_resumed(
    causal_cache: Cache, base: str, trained: Path, tmp_path: Path, capfd: Any
) -> None:
    record = Record.load(trained)
    assert record is not None
    targets = "down_proj,q_proj,v_proj"
    assert record.lora == {"r": 4, "alpha": 16, "dropout": 0.1, "targets": targets, "load_in_4bit": False}
    other = make_llama(tmp_path / "other", seed=2, tie_word_embeddings=True)
    lora = ["r=4", "alpha=16", "dropout=0.1", f"targets={targets}"]
    for changes, named in (
        ({"lora": ["r=8", *lora[1:]]}, "another lora r (got 8; expected 4)"),
        ({"lora": lora[:3]}, "another lora targets (got all-linear; expected down_proj,q_proj,v_proj)"),
        ({"lora": None}, "another lora alpha"),
        ({"student": other}, "another student_weights"),
    ):
        at = {"resume_from_checkpoint": str(trained / "checkpoint-2"), **changes}
        assert train(causal_cache, base, tmp_path / "again", **at) == 2
        error = capfd.readouterr().err
        assert "cannot be resumed with" in error
        assert named.partition(" (")[0] in error
        for value in (
            named.partition("(")[2].rstrip(")").replace("got ", "").replace("expected ", "").split("; ")
        ):
            assert value in error


def test_the_best_checkpoint_s_adapter_is_the_finished_one(
    causal_cache: Cache, base: str, tmp_path: Path
) -> None:
    """With a rate that ruins the student, an early checkpoint is the best."""
    told = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 1.0}
    assert train(causal_cache, base, tmp_path / "out", **told) == 0
    best = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["best_global_step"]
    assert best < 6
    assert same(tmp_path / "out", tmp_path / "out" / f"checkpoint-{best}")


def test_activation_checkpointing_changes_nothing(
    causal_cache: Cache, base: str, trained: Path, tmp_path: Path
) -> None:
    assert train(causal_cache, base, tmp_path / "out", activation_checkpointing=True) == 0
    ours, theirs = saved(trained), saved(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-5)


def evaluated(cache: Cache, folder: Path, capsys: Any, *more: str) -> dict[str, Any]:
    capsys.readouterr()
    told = [
        "evaluate",
        "--cache",
        cache.storage.root,
        "--student",
        str(folder),
        "--speed_seconds",
        "0",
        "--json",
    ]
    assert teachonce.main([*told, *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_evaluate_measures_base_and_adapter(
    causal_cache: Cache, base: str, trained: Path, tmp_path: Path, capsys: Any
) -> None:
    """As the same student does that PEFT merged and transformers saved."""
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(trained))
    whole = save(theirs.merge_and_unload(), tmp_path / "merged")
    ours = evaluated(causal_cache, trained, capsys)
    assert ours["eval_fraction"] == 0.2
    expected = evaluated(causal_cache, Path(whole), capsys, "--eval_fraction", "0.2")
    assert expected["metrics"] == pytest.approx(ours["metrics"], rel=1e-4)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_classifier_s_head_is_trained_and_saved(
    class_cache_of: Callable[..., Cache], tmp_path: Path, capsys: Any, score: str
) -> None:
    """The base is a language model without a head for classes: DistilBERT's has two layers, and both are new."""
    cache = class_cache_of(score)
    config = DistilBertConfig(
        vocab_size=VOCAB, dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=64
    )
    torch.manual_seed(0)
    base = save(DistilBertForMaskedLM(config), tmp_path / "base")
    out = tmp_path / "out"
    told: dict[str, Any] = {"lora": ["r=4"], "losses": ["kl=1"]}
    assert train(cache, base, out, **told) == 0
    heads = [name for name in saved(out) if "classifier" in name]
    assert sorted(heads) == [
        f"base_model.model.{layer}.{part}"
        for layer in ("classifier", "pre_classifier")
        for part in ("bias", "weight")
    ]
    assert not any("classifier" in name and "lora" in name for name in saved(out))
    assert not torch.equal(saved(out)[heads[0]], saved(out / "checkpoint-2")[heads[0]])
    assert (
        train(cache, base, tmp_path / "again", resume_from_checkpoint=str(out / "checkpoint-2"), **told) == 0
    )
    assert same(out, tmp_path / "again")
    opens_as_peft_does(cache, base, out)
    assert evaluated(cache, out, capsys)["metrics"]["positions"] > 0


def test_a_masked_language_model(tmp_path: Path, capsys: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "t199"})
    spec = replace(SPECS["masked"], vocab_size=VOCAB, features=(), max_length=32)
    cache = write_cache(tmp_path / "cache", random_rows(spec, 60).rows, tokenizer=tokenizer)
    torch.manual_seed(0)
    base = save(BertForMaskedLM(bert_config()), tmp_path / "base", tokenizer)
    out = tmp_path / "out"
    assert train(cache, base, out, lora=["r=4"], losses=["kl=1"], eval_fraction=0.3) == 0
    assert any("predictions.transform.dense.lora_B" in name for name in saved(out))
    assert not any("decoder" in name for name in saved(out))
    theirs = peft.PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(base), str(out)).eval()
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        ours = open_trained(str(out), cache).model(input_ids=ids).logits
        torch.testing.assert_close(ours, theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert evaluated(cache, out, capsys)["metrics"]["positions"] > 0
