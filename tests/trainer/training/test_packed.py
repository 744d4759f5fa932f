"""The law of packing: packed and unpacked batches give one loss, the same terms, and the same gradients."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from schemas.cache import Cache
from schemas.errors import UsageError
from schemas.features import Feature
from schemas.policies import Threshold
from schemas.spec import Spec
from tests.synthetic import causal_spec, masked_spec, random_rows
from tests.trainer.outputs import logs, weights
from trainer.batches.collate import Collation
from trainer.batches.packing import Packing
from trainer.checkpoints.records import Record
from trainer.losses.objective import Objective
from trainer.students.packed_trial import find_packing
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.distiller import Distiller

FEATURES = tuple(
    Feature(pooling=pooling, layer=layer, width=5)  # type: ignore[arg-type]
    for layer, pooling in enumerate(("cls", "last", "mean"))
)
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 34,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}
FAMILIES: list[tuple[str, dict[str, Any], str]] = [
    *(("llama", {}, attention) for attention in ("sdpa", "eager")),
    *(("gpt2", {}, attention) for attention in ("sdpa", "eager")),
    *(("mistral", {"sliding_window": 6}, attention) for attention in ("sdpa", "eager")),
    *(("gemma3_text", {"sliding_window": 6}, attention) for attention in ("sdpa", "eager")),
    *(("opt", {"word_embed_proj_dim": 32, "ffn_dim": 64}, attention) for attention in ("sdpa", "eager")),
    ("gemma2", {"sliding_window": 6, "final_logit_softcapping": 3.0}, "eager"),
    ("llama4_text", {"attention_chunk_size": 6, "num_local_experts": 2, "intermediate_size_mlp": 64}, "sdpa"),
    ("mixtral", EXPERTS, "sdpa"),
    ("gpt_neo", {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 6}, "eager"),
    ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 34}, "eager"),
    *(("bert", {}, attention) for attention in ("sdpa", "eager")),
    *(("roberta", {}, attention) for attention in ("sdpa", "eager")),
]
MASKED = ("bert", "roberta")
LOSSES = ["kl=1.0", "ce=0.5", "mse_logits=0.1", "feature=2.0"]
DRAWN = ["kl=1.0", "ce=0.5", "feature=2.0"]


def spec_of(kind: str, *, draws: bool = False) -> Spec:
    changes: dict[str, Any] = {"features": FEATURES, "has_token_type_ids": kind == "bert"}
    if draws:
        changes |= {"keep": Threshold(tau=1 / 8), "temperatures": (1.0,), "scalars": ("gold",)}
    return (masked_spec if kind in MASKED else causal_spec)(**changes)


def distiller_of(kind: str, changes: dict[str, Any], attention: str, losses: list[str]) -> Distiller:
    """Its dropout is off; sharper than at birth, so that who sees whom matters."""
    torch.manual_seed(0)
    task = STUDENT_TASKS["masked-lm" if kind in MASKED else "causal-lm"]
    config = AutoConfig.for_model(kind, **(SHAPE | changes))
    student = task.auto.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(6 if parameter.ndim == 2 else 1)
    objective = Objective.parse(losses)
    features = FEATURES if objective.uses_features else ()
    return Distiller(
        student, objective, score="softmax", features=features, teacher_layers=2, task=task
    ).eval()


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize(("kind", "changes", "attention"), FAMILIES)
def test_packed_is_unpacked(kind: str, changes: dict[str, Any], attention: str, draws: bool) -> None:
    """Rows of 2 to 32 tokens whose positions are every token but the last, or some tokens, as in chat data; their ids
    are any, the padding's among them."""
    spec = spec_of(kind, draws=draws)
    rows = random_rows(spec, 40, seed=2).rows
    model = distiller_of(kind, changes, attention, DRAWN if draws else LOSSES)
    run = STUDENT_TASKS[spec.task].run
    packing = find_packing(model.student, task=spec.kind, run=run, max_length=spec.max_length)
    told: dict[str, Any] = {"student_vocab": 50, "pad_id": 1, "features": FEATURES}
    plain, packed = Collation(**told).batch(rows), Collation(**told, packing=packing).batch(rows)
    assert len(packed.input_ids) < 0.8 * len(plain.input_ids)
    assert torch.equal(plain.counts, packed.counts)
    found = []
    for batch in (plain, packed):
        model.zero_grad()
        terms = model(batch)
        terms["loss"].backward()
        found.append((terms, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (terms, gradients), (own_terms, own_gradients) = found
    torch.testing.assert_close(own_terms, terms, rtol=1e-5, atol=1e-6)
    assert {"kl", "ce", "feature"} <= terms.keys()
    assert gradients.keys() == own_gradients.keys()
    for name, gradient in gradients.items():
        bound = 1e-5 * max(gradient.abs().max().item(), 1e-2)
        torch.testing.assert_close(own_gradients[name], gradient, rtol=1e-4, atol=bound, msg=name)


@pytest.mark.parametrize(("kind", "changes", "attention"), FAMILIES)
def test_the_law_finds_a_student_that_is_told_too_little(
    kind: str, changes: dict[str, Any], attention: str
) -> None:
    """Told of a row alone, each of them answers otherwise by far more than rounding."""
    spec = spec_of(kind)
    rows = random_rows(spec, 40, seed=2).rows
    model = distiller_of(kind, changes, attention, ["kl=1"])
    packing = Packing(max_length=spec.max_length)
    packed = Collation(student_vocab=50, pad_id=1, packing=packing).batch(rows)
    plain = Collation(student_vocab=50, pad_id=1).batch(rows)
    right, blind = (model(batch)["loss"].item() for batch in (plain, replace(packed, packed=None)))
    assert abs(blind - right) > 1e-3 * right


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return {
        "losses": ["kl=1", "ce=0.5", "feature=0.1"],
        "logging_steps": 4,
        "save_steps": 10,
        "max_steps": 20,
    }


def test_a_packed_run_learns_as_a_padded_one(run: Callable[..., Path], settings: dict[str, Any]) -> None:
    """The stream is the same, so every log is, to rounding; and less is padding."""
    both = [
        run(name, batching=name, eval_strategy="steps", eval_steps=10, **settings)
        for name in ("bucket", "pack")
    ]
    bucket, pack = (logs(folder) for folder in both)
    assert [log["step"] for log in bucket] == [log["step"] for log in pack]
    compared = 0
    for ours, theirs in zip(pack, bucket, strict=True):
        for name in {"loss", "kl", "ce", "feature", "eval_loss", "eval_kl", "eval_feature"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3)
            compared += 1
    assert compared > 20
    padding = [[log["padding"] for log in one if "padding" in log] for one in (bucket, pack)]
    assert len(padding[0]) == len(padding[1]) == 5
    assert 0 <= sum(padding[1]) < sum(padding[0])
    for name, weight in weights(both[1]).items():
        torch.testing.assert_close(weight, weights(both[0])[name], rtol=0.05, atol=5e-3)


def test_the_padding_that_is_logged(run: Callable[..., Path], causal_cache: Cache) -> None:
    """All rows in one batch: the share is that of their lengths."""
    lengths = np.concatenate(
        [causal_cache.read(group).input_ids.lengths for group in causal_cache.row_groups]
    )
    assert len(lengths) == 150
    told: dict[str, Any] = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "eval_fraction": 0.0}
    folder = run(per_device_train_batch_size=150, shuffle_row_groups=100, **told)
    expected = 1 - lengths.sum() / (len(lengths) * lengths.max())
    found = [log["padding"] for log in logs(folder) if "padding" in log]
    assert found == pytest.approx([expected, expected], abs=1e-6)
    packed = run("packed", per_device_train_batch_size=150, shuffle_row_groups=100, batching="pack", **told)
    assert all(log["padding"] <= 1 / 32 for log in logs(packed) if "padding" in log)


def test_a_packed_run_is_resumed_as_one(run: Callable[..., Path], settings: dict[str, Any]) -> None:
    whole = run("whole", batching="pack", **settings)
    record = Record.load(whole)
    assert record is not None
    assert record.batching == "pack"
    resume = {"resume_from_checkpoint": str(whole / "checkpoint-10")}
    resumed = run("again", batching="pack", **resume, **settings)
    ours, theirs = weights(whole), weights(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(UsageError, match="cannot be resumed with another batching"):
        run("other", **resume, **settings)


def test_what_no_batching_is(run: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="must be bucket or pack: got packed"):
        run(batching="packed")


def test_one_text_a_batch_has_nothing_to_pack(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no effect where a batch is one text"):
        run(batching="pack", per_device_train_batch_size=1)
    assert not (tmp_path / "out").exists()
