"""Which students keep texts apart that stand in one row, found by trying them; others are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

import teachonce
from schemas.cache import Cache
from schemas.errors import StudentError
from schemas.tasks import TASKS
from tests.trainer.tiny import STUDENT, VOCAB
from trainer.batches.packing import Packing
from trainer.students.packed_trial import find_packing
from trainer.students.students import open_student
from trainer.tasks.tasks import STUDENT_TASKS

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 0,
}
MAMBA = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16}
ENCODERS = ("bert", "roberta", "modernbert", "fnet")


def model_of(kind: str, attention: str = "eager", **changes: Any) -> Any:
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if kind in ENCODERS else AutoModelForCausalLM
    config = AutoConfig.for_model(kind, **(SHAPE | changes))
    return auto.from_config(config, attn_implementation=attention)


def packing_of(model: Any, max_length: int = 64) -> Packing:
    name = "masked-lm" if model.config.model_type in ENCODERS else "causal-lm"
    run = STUDENT_TASKS[name].run
    return find_packing(model, task=TASKS[name], run=run, max_length=max_length)


@pytest.mark.parametrize(
    ("kind", "attention", "mask", "uncounted"),
    [
        ("llama", "sdpa", "own", None),
        ("llama", "eager", "own", None),
        ("gpt2", "sdpa", "own", None),
        ("opt", "sdpa", "boolean", None),
        ("opt", "eager", "additive", None),
        ("bert", "sdpa", "boolean", None),
        ("bert", "eager", "additive", None),
        ("roberta", "sdpa", "boolean", 1),
        ("roberta", "eager", "additive", 1),
    ],
)
def test_how_a_student_is_told(kind: str, attention: str, mask: str, uncounted: int | None) -> None:
    changes = {"word_embed_proj_dim": 32, "ffn_dim": 64} if kind == "opt" else {}
    found = packing_of(model_of(kind, attention, **changes))
    causal = kind not in ENCODERS
    assert found == Packing(max_length=64, mask=mask, is_causal=causal, uncounted=uncounted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mamba", {"state_size": 8}),
        ("mamba2", MAMBA),
        ("rwkv", {"attention_hidden_size": 32}),
        ("lfm2", {"full_attn_idxs": [1]}),
        ("bloom", {}),
        ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
        ("fnet", {}),
        ("modernbert", {"local_attention": 8, "global_attn_every_n_layers": 2}),
    ],
)
def test_who_is_refused(kind: str, changes: dict[str, Any]) -> None:
    """A state, a convolution, positions that count the row, a mixing without a mask, a window."""
    model = model_of(kind, **changes)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(
        StudentError, match=rf"{type(model).__name__}.*--batching pack.*otherwise.*attention eager"
    ) as caught:
        packing_of(model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.training


def test_weights_that_begin_at_zero_hide_no_neighbour() -> None:
    """An RWKV whose outputs do answers each token by itself alone, until it is trained."""
    model = model_of("rwkv", attention_hidden_size=32).eval()
    with torch.no_grad():
        for block in model.rwkv.blocks:
            block.attention.output.weight.zero_()
            block.feed_forward.value.weight.zero_()
    here, there = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[9, 6, 7, 8]])
    assert torch.equal(model(here).logits[:, 1:], model(there).logits[:, 1:])
    with pytest.raises(StudentError, match=r"RwkvForCausalLM.*otherwise"):
        packing_of(model)
    assert not model.rwkv.blocks[1].attention.output.weight.any()


def test_a_little_leak_is_one() -> None:
    """A fresh LFM2 hears so little through its convolution that it passes for rounding against a text alone."""
    model = model_of("lfm2", full_attn_idxs=[1]).eval()
    text, other = torch.arange(5, 10)[None], torch.arange(20, 25)[None]
    positions = torch.arange(5).repeat(2)[None]
    packed = model(input_ids=torch.cat([other, text], 1), position_ids=positions, use_cache=False).logits[
        :, 5:
    ]
    alone = model(input_ids=text, use_cache=False).logits
    heard = ((packed - alone).abs().max() / alone.abs().max()).item()
    assert 2**-18 < heard < 2**-10


def test_answers_of_no_other_token_tell_nothing() -> None:
    model = model_of("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.fill_(1e-12)
    with pytest.raises(StudentError, match="depend on no other token"):
        packing_of(model)


def test_a_window_longer_than_what_is_tried() -> None:
    """A mask that is made for a student knows no window, so such a student's own mask must do."""
    model = model_of("opt", word_embed_proj_dim=32, ffn_dim=64)
    assert packing_of(model, 5000).mask == "additive"
    model.config.sliding_window = 4096
    with pytest.raises(StudentError, match="OPTForCausalLM"):
        packing_of(model, 5000)
    assert packing_of(model_of("mistral", sliding_window=4096), 5000).mask == "own"


@pytest.mark.parametrize("length", [2, 3, 5])
def test_very_short_caches(length: int) -> None:
    assert packing_of(model_of("llama"), length) == Packing(max_length=length)


def test_classifiers_are_refused(class_cache_of: Callable[..., Cache], bert_dir: str) -> None:
    cache = class_cache_of(rows=10)
    with pytest.raises(StudentError, match="pack is not for sequence-classification"):
        open_student(bert_dir, cache, packs=True)


def test_the_command_says_it_in_one_line(
    causal_cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "student.json"
    path.write_text(json.dumps({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1}))
    flags = [
        "--cache",
        causal_cache.storage.root,
        "--student",
        str(path),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    assert teachonce.main(["train", *flags, "--use_cpu", "--batching", "pack"]) == 2
    assert (
        "MambaForCausalLM cannot be trained with --batching pack" in capsys.readouterr().err.splitlines()[-1]
    )


def test_a_student_is_not_packed_unless_asked(causal_cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "student.json"
    path.write_text(json.dumps(STUDENT))
    assert open_student(str(path), causal_cache).collation().packing is None
    assert open_student(str(path), causal_cache, packs=True).collation().packing == Packing(
        max_length=64, filler=1
    )
