"""A student's card says how to repeat it, and the call that stands there does; an edited card is never replaced."""

import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import teachonce
from schemas.cache import Cache
from tests.trainer.commanding import AUTO, flags, train
from tests.trainer.outputs import same
from trainer.training.model_card import is_untouched, sealed

MORE = {"losses": ["kl=1", "ce=0.5"], "max_steps": 3, "eval_strategy": "steps", "eval_steps": 3}


def test_the_call_on_the_card_gives_the_same_weights(
    causal_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(causal_cache, tmp_path, "out", learning_rate="3e-3", **MORE) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert card.data.license is None
    for told in (causal_cache.fingerprint.hash, "kl=1 ce=0.5", "learning\\_rate", "after step 3"):
        assert told in text
    monkeypatch.chdir(tmp_path)
    words = shlex.split(re.search(r"```bash\n(.*)\n```", text)[1])
    assert words[0] == "teachonce"
    assert teachonce.main([*words[1:], "--use_cpu", "true", "--disable_tqdm", "true"]) == 0
    assert same(tmp_path / "out", tmp_path / "again")


def test_a_card_of_ours_is_replaced_and_an_edited_one_stays(
    causal_cache: Cache, tmp_path: Path, caplog
) -> None:
    said = flags(causal_cache, tmp_path, "out", "--overwrite_output_dir", **MORE)
    assert teachonce.main(said) == 0
    card = tmp_path / "out" / "README.md"
    first = card.read_bytes()
    assert teachonce.main(said) == 0
    assert is_untouched(card.read_bytes())
    assert card.read_bytes() != first, "another run has another number"
    edited = card.read_bytes().replace(b"# out", b"# My student")
    card.write_bytes(edited)
    assert teachonce.main(said) == 0
    assert card.read_bytes() == edited


def test_an_edited_card_harms_no_resume(causal_cache: Cache, tmp_path: Path, capsys) -> None:
    assert train(causal_cache, tmp_path, "out", **MORE) == 0
    (tmp_path / "out" / "README.md").write_text("mine")
    capsys.readouterr()
    assert train(causal_cache, tmp_path, "out", *AUTO, **MORE) == 0
    assert "already finished" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_a_seal_is_of_the_text_above_it() -> None:
    data = sealed("text")
    assert is_untouched(data)
    assert not any(map(is_untouched, (data + b"x", data.replace(b"text", b"next"), b"text", b"")))
