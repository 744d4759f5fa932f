"""Folders with adapters: data of strangers, opened with their base or refused by name."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    LlamaForCausalLM,
)

import teachonce
from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from tests.synthetic import SPECS, random_rows
from tests.trainer.caches import write_cache
from tests.trainer.lora import LORA, changed, opened, train, without, words, written
from tests.trainer.tiny import VOCAB, make_bert, make_llama
from trainer.students.students import open_trained

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def test_without_peft(causal_cache: Cache, base: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "peft")
    for opening in (lambda: opened(base, causal_cache), lambda: open_trained(str(folder), causal_cache)):
        with pytest.raises(UsageError, match=re.escape("pip install 'teachonce[lora]'")):
            opening()


def test_adapters_of_another_shape_or_base(causal_cache: Cache, folder: Path, tmp_path: Path) -> None:
    config = folder / "adapter_config.json"
    for name, shape in (("wide", {"intermediate_size": 96}), ("deep", {"num_hidden_layers": 3})):
        other = make_llama(tmp_path / name, **shape)
        changed(config, base_model_name_or_path=other)
        with pytest.raises(StudentError, match="the adapter does not fit its base model"):
            open_trained(str(folder), causal_cache)
    changed(config, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="the base model of this adapter cannot be opened") as caught:
        open_trained(str(folder), causal_cache)
    assert str(tmp_path / "gone") in str(caught.value)
    changed(config, base_model_name_or_path=None)
    with pytest.raises(UsageError, match="does not name its base"):
        open_trained(str(folder), causal_cache)


def test_a_base_that_has_changed_since(causal_cache: Cache, tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base", seed=1)
    assert train(causal_cache, base, tmp_path / "out", max_steps=2) == 0
    open_trained(str(tmp_path / "out"), causal_cache)
    make_llama(tmp_path / "base", seed=2)
    with pytest.raises(StudentError, match="is not what it was trained on"):
        open_trained(str(tmp_path / "out"), causal_cache)


def test_nothing_pickled_is_opened(causal_cache: Cache, folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match="this adapter has no weights"):
        open_trained(str(folder), causal_cache)
    torch.save(weights, folder / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"pickled, which is code.*adapter_model\.bin"):
        open_trained(str(folder), causal_cache)
    (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UsageError, match="the adapter's weights cannot be read"):
        open_trained(str(folder), causal_cache)


@pytest.mark.parametrize(
    "changes",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "evil"},
        {"megatron_core": "evil"},
        {"auto_map": {"AutoModel": "evil.Evil"}},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 2]]},
        {"bias": "all"},
        {"target_modules": "(a+)+$"},
        {"target_modules": [".*"]},
        {"modules_to_save": ["(a+)+"]},
        {"rank_pattern": {"(a+)+": 3}},
        {"r": 0},
        {"r": "many"},
        {"peft_type": "IA3"},
        {"brand_new": True},
        {"trainable_token_indices": [1]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_config_that_asks_for_more(causal_cache: Cache, folder: Path, changes: dict[str, Any]) -> None:
    """PEFT imports the module that `megatron_core` names, and takes names for patterns."""
    changed(folder / "adapter_config.json", **changes)
    with pytest.raises(UsageError, match=f"{next(iter(changes))}|no LoRA"):
        open_trained(str(folder), causal_cache)


def test_configs_that_are_none(causal_cache: Cache, folder: Path) -> None:
    for text in ("[1]", "{", '"x"', "[" * 100_000):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(UsageError, match="the adapter's config cannot be read"):
            open_trained(str(folder), causal_cache)


def test_a_foreign_adapter_on_the_head(causal_cache: Cache, base: str, tmp_path: Path) -> None:
    for number, config in enumerate(
        (
            peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
            peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        )
    ):
        place = tmp_path / str(number)
        model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
        model.save_pretrained(place, save_embedding_layers=False)
        with pytest.raises(StudentError, match="cannot be adapted: the head is applied apart") as caught:
            open_trained(str(place), causal_cache)
        assert ("lm_head", "embed_tokens")[number] in str(caught.value)


def test_a_foreign_adapter_as_peft_wrote_it(causal_cache: Cache, base: str, tmp_path: Path) -> None:
    """Without a tokenizer of its own; with DoRA and a rank of its own for a layer."""
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "v_proj"],
        use_dora=True,
        rank_pattern={"v_proj": 3},
        init_lora_weights=False,
    )
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        ours = open_trained(str(tmp_path / "theirs"), causal_cache).model(input_ids=ids).logits
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_no_student_to_begin_with_and_no_teacher(
    causal_cache: Cache, folder: Path, base: str, tmp_path: Path, capfd: Any
) -> None:
    told = words(causal_cache, str(folder), tmp_path / "out", lora=None)
    assert teachonce.main(told) == 2
    assert "holds an adapter" in capfd.readouterr().err
    assert train(causal_cache, str(folder), tmp_path / "out", lora=LORA) == 2
    assert "holds an adapter" in capfd.readouterr().err
    told = ["evaluate", "--cache", causal_cache.storage.root, "--student", base, "--teacher", str(folder)]
    assert teachonce.main(told) == 2
    assert "holds an adapter" in capfd.readouterr().err


def test_a_hub_name_is_kept_with_its_revision(
    causal_cache: Cache, base: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """As the hub's cache on the disk has it, offline."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = tmp_path / "hub" / "models--somebody--base"
    shutil.copytree(base, hub / "snapshots" / commit)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    student = opened("somebody/base", causal_cache)
    folder = written(student, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("somebody/base", commit)
    (hub / "refs" / "main").write_text("f" * 40)
    assert open_trained(str(folder), causal_cache).vocab_size == VOCAB


def test_an_adapter_beside_a_whole_model(causal_cache: Cache, folder: Path, base: str) -> None:
    shutil.copy(Path(base) / "model.safetensors", folder)
    with pytest.raises(UsageError, match="an adapter and a whole model"):
        open_trained(str(folder), causal_cache)


def test_classes_in_another_order(tmp_path: Path) -> None:
    """A PEFT config has no room for the classes' names; the record of the run has them."""
    base = make_bert(tmp_path / "base")
    caches = []
    for number, names in enumerate((("no", "maybe", "yes"), ("yes", "maybe", "no"))):
        rows = random_rows(replace(SPECS["classes"], label_names=names), 60).rows
        caches.append(write_cache(tmp_path / f"cache{number}", rows))
    config = json.loads((Path(base) / "config.json").read_text())
    config["architectures"] = ["BertModel"]
    (Path(base) / "config.json").write_text(json.dumps(config))
    assert train(caches[0], base, tmp_path / "out", losses=["kl=1"], max_steps=2) == 2, "it has no q_proj"
    assert train(caches[0], base, tmp_path / "out", losses=["kl=1"], max_steps=2, lora=["r=2"]) == 0
    open_trained(str(tmp_path / "out"), caches[0])
    with pytest.raises(StudentError, match="the student's classes are not the cache's"):
        open_trained(str(tmp_path / "out"), caches[1])
