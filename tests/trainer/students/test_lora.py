"""What `--lora` takes and refuses, and the adapters that it puts into a student."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from schemas.cache import Cache
from schemas.errors import StudentError, TeachonceError, UsageError
from tests.trainer.lora import changed, opened, opens_as_peft_does, train, without, written
from tests.trainer.tiny import VOCAB, bert_config, llama_config, make_llama, save
from trainer.models.heads import check_head
from trainer.models.weights import weights_hash
from trainer.students.adapters import adapter_weights
from trainer.students.lora import Lora
from trainer.students.students import open_trained
from trainer.tasks.tasks import STUDENT_TASKS

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def test_settings_and_their_defaults() -> None:
    assert Lora.parse(["r=8"]) == Lora(r=8, alpha=16, dropout=0.0, targets=("all-linear",))
    assert Lora.parse(["alpha=0.5", "targets=a,b.c", "dropout=0.05"]) == Lora(
        r=16, alpha=0.5, dropout=0.05, targets=("a", "b.c")
    )


@pytest.mark.parametrize(
    "word",
    [
        *(
            "r=0",
            "r=-1",
            "r=1.5",
            "r=x",
            "r=nan",
            "r=inf",
            "r=70000",
            "r",
            "rank=4",
            "16",
            "alpha=0",
            "dropout=1",
        ),
        *("dropout=-0.1", "targets=", "targets=a,", "targets=all-linear,q_proj", "targets=(a+)+$"),
    ],
)
def test_settings_that_cannot_be(
    word: str, tmp_path: Path, causal_cache: Cache, base: str, capfd: Any
) -> None:
    assert train(causal_cache, base, tmp_path / "out", lora=[word]) == 2
    error = capfd.readouterr().err
    assert "--lora" in error
    assert word.partition("=")[2] in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError):
        Lora.parse(["r=4", "r=4"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"student": "shrink:layers=1", "teacher": "./t"},
            "--lora needs a --student that can be opened again",
        ),
        ({"student": "s.json"}, "--lora needs a --student that can be opened again"),
        ({"lora": None, "load_in_4bit": True}, "--load_in_4bit has no effect without --lora"),
    ],
)
def test_flags_that_do_not_go_together(
    changes: dict[str, Any], named: str, causal_cache: Cache, base: str, tmp_path: Path, capfd: Any
) -> None:
    assert train(causal_cache, base, tmp_path / "out", **changes) == 2
    assert named in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["k_projj", "proj", "lm_head", "embed_tokens", "self_attn", "norm"])
def test_a_layer_that_is_not_there_or_not_to_be_adapted(causal_cache: Cache, base: str, target: str) -> None:
    with pytest.raises(StudentError) as caught:
        opened(base, causal_cache, f"targets=q_proj,{target}")
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(caught.value)
    assert target in str(caught.value)


def test_4_bits_without_the_package(
    causal_cache: Cache, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    without(monkeypatch, "bitsandbytes")
    assert train(causal_cache, base, tmp_path / "out", load_in_4bit=True) == 2
    assert "pip install bitsandbytes" in capfd.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="4-bit weights need CUDA")
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_4_bits(causal_cache: Cache, base: str, tmp_path: Path) -> None:
    assert train(causal_cache, base, tmp_path / "out", load_in_4bit=True, use_cpu=None) == 0
    assert open_trained(str(tmp_path / "out"), causal_cache).vocab_size == VOCAB


def test_a_head_is_found_with_adapters_that_speak(causal_cache: Cache, base: str) -> None:
    """At birth B is zero, so no comparison would find a fault; a head that is adapted is seen by its weight."""
    student = opened(base, causal_cache, "r=4")
    assert not any(w.any() for n, w in student.model.named_parameters() if "lora_B" in n)
    assert type(student.model) is LlamaForCausalLM
    model = LlamaForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    )
    with pytest.raises(StudentError, match="does something to its logits"):
        check_head(adapted.get_base_model(), STUDENT_TASKS["causal-lm"].run)


def test_the_hash_is_of_the_base(causal_cache: Cache, base: str) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    expected = weights_hash(plain)
    assert weights_hash(opened(base, causal_cache).model) == expected
    assert weights_hash(opened(base, causal_cache, "r=2", seed=7).model) == expected
    plain.model.layers[0].mlp.down_proj.weight.data[0, 0] += 1e-3
    assert weights_hash(plain) != expected


@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_give_the_same_logits(causal_cache: Cache, tmp_path: Path, tied: bool) -> None:
    base = make_llama(tmp_path / "base", seed=1, tie_word_embeddings=tied)
    student = opened(base, causal_cache, "r=4")
    with torch.no_grad():
        for name, weight in student.adapter.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    folder = written(student, tmp_path / "adapter")
    student.model.eval()
    merged = open_trained(str(folder), causal_cache)
    assert merged.adapter is None
    assert not any("lora" in name for name in merged.model.state_dict())
    ids = torch.arange(3, 50)[None]
    with torch.no_grad():
        adapted, plain = (
            student.model(input_ids=ids).logits,
            AutoModelForCausalLM.from_pretrained(base)(ids).logits,
        )
        torch.testing.assert_close(merged.model(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted, plain, atol=0.1)


def test_gpt_2_s_transposed_layers(causal_cache: Cache, tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1
    )
    torch.manual_seed(0)
    base = save(GPT2LMHeadModel(config), tmp_path / "base")
    student = opened(base, causal_cache, "r=2", "targets=c_attn")
    assert sorted(
        {name.rpartition(".")[0].rpartition(".")[0] for name in adapter_weights(student.adapter)}
    ) == [f"base_model.model.transformer.h.{layer}.attn.c_attn" for layer in (0, 1)]
    open_trained(str(written(student, tmp_path / "adapter")), causal_cache)


def test_a_pooler_that_the_base_lacks_is_trained(
    class_cache_of: Callable[..., Cache], tmp_path: Path
) -> None:
    """BERT's masked language model has none, and the classifier's is drawn at random."""
    cache = class_cache_of()
    torch.manual_seed(0)
    base = save(BertForMaskedLM(bert_config()), tmp_path / "base")
    student = opened(base, cache, "r=2")
    names = {name for name in adapter_weights(student.adapter) if "lora" not in name}
    prefix = "base_model.model."
    assert names == {
        f"{prefix}{name}.{part}"
        for name in ("classifier", "bert.pooler.dense")
        for part in ("weight", "bias")
    }
    folder = written(student, tmp_path / "adapter")
    ids = torch.arange(3, 40)[None]
    student.model.eval()
    with torch.no_grad():
        expected = student.model(input_ids=ids).logits
        torch.testing.assert_close(open_trained(str(folder), cache).model(input_ids=ids).logits, expected)
    weights = {n: w for n, w in load_file(folder / "adapter_model.safetensors").items() if "pooler" not in n}
    save_file(weights, folder / "adapter_model.safetensors")
    changed(folder / "adapter_config.json", modules_to_save=["classifier"])
    with pytest.raises(StudentError, match="neither the adapter nor its base has weights"):
        open_trained(str(folder), cache)


def test_a_decoder_s_score(class_cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    cache = class_cache_of()
    base = make_llama(tmp_path / "base")
    out = tmp_path / "out"
    assert train(cache, base, out, lora=["r=2"], losses=["kl=1"], max_steps=2) == 0
    assert "base_model.model.score.weight" in load_file(out / "adapter_model.safetensors")
    opens_as_peft_does(cache, base, out)
    with pytest.raises(TeachonceError, match=r"score\.weight"):
        open_trained(str(out), class_cache_of(num_labels=4))


def test_a_relative_path_is_kept_whole(causal_cache: Cache, tmp_path: Path, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    save(LlamaForCausalLM(llama_config()), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert opened("base", causal_cache).adapter.peft_config["default"].base_model_name_or_path == str(
        tmp_path / "base"
    )
