"""A student's folder and a cache's tokenizer are data: no Python of theirs runs, whoever answers y, and no pickle."""

import ast
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import teachonce
from schemas.cache import Cache
from schemas.errors import TeachonceError, UsageError
from tests.trainer.caches import causal_columns, causal_spec, finished_rows, write_cache
from tests.trainer.tiny import STUDENT, make_llama, random_examples, tiny_tokenizer
from trainer.students.opening import cached_tokenizer, open_config, open_tokenizer
from trainer.students.students import open_student, open_trained

ROOT = Path(__file__).parents[3]
OPENERS = {"from_pretrained", "from_config"}
EVIL = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}


def marking(folder: Path) -> Path:
    """Puts Python into a folder that would leave a mark if it ran; returns the mark's path."""
    mark = folder.parent / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').write('ran')\nclass Evil: pass\n")
    return mark


def changed(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("path", sorted((ROOT / "trainer").rglob("*.py")), ids=lambda path: path.name)
def test_every_call_that_opens_something_says_that_no_code_is_run(path: Path) -> None:
    """A law: `trust_remote_code=False` stands in the call, or in the `options` that it is given."""
    tree = ast.parse(path.read_text())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        opens = isinstance(call.func, ast.Attribute) and call.func.attr in OPENERS
        if opens and not ast.unparse(call.func).startswith(("type(", "LogitTransform.")):
            told = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            said = told.get("trust_remote_code") == "False" or told.get(None) == "options"
            assert said, f"{path.name}:{call.lineno}"
    if path.name == "opening.py":
        assert '"trust_remote_code": False' in path.read_text()
        assert '"use_safetensors": True' in path.read_text()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("known", [True, False], ids=["known type", "unknown type"])
def test_a_folder_that_asks_for_code(causal_cache: Cache, tmp_path: Path, file: str, known: bool) -> None:
    folder = Path(make_llama(tmp_path / "student"))
    mark = marking(folder)
    if not known:
        changed(folder / "config.json", model_type="evil")
        changed(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    changed(folder / file, auto_map=EVIL)
    for opening in (open_student, open_trained):
        with pytest.raises(UsageError, match=r"auto_map|cannot be opened") as caught:
            opening(str(folder), causal_cache)
        assert known is False or "auto_map (evil.Evil)" in str(caught.value)
    with pytest.raises(UsageError):
        open_student("shrink:layers=1", causal_cache, teacher=str(folder))
    assert not mark.exists()


def test_a_config_that_asks_for_code(causal_cache: Cache, tmp_path: Path) -> None:
    for key, value in (("auto_map", EVIL), ("attn_implementation", "somebody/kernel")):
        path = tmp_path / "student.json"
        path.write_text(json.dumps(STUDENT | {key: value}))
        with pytest.raises(UsageError, match=key):
            open_student(str(path), causal_cache)


def evil_cache(folder: Path, teacher_dir: str, *, script_only: bool = False) -> Cache:
    """A cache whose seals are right and whose tokenizer names code."""
    spec = causal_spec()
    model = LlamaForCausalLM.from_pretrained(teacher_dir).eval()
    rows = finished_rows(spec, causal_columns(model, random_examples(8), spec))

    class Evil:
        def save_pretrained(self, place: Path) -> None:
            tiny_tokenizer().save_pretrained(place)
            (place / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
            if not script_only:
                (place / "evil.py").rename(place / "evil.txt")
                changed(place / "tokenizer_config.json", auto_map=EVIL)

    return write_cache(folder / "cache", rows, shards=1, tokenizer=Evil())


def test_a_caches_tokenizer_that_asks_for_code(tmp_path: Path, teacher_dir: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match=r"its tokenizer's tokenizer_config\.json.*auto_map \(evil\.Evil\)"):
        cached_tokenizer(evil_cache(tmp_path / "a", teacher_dir))
    with pytest.raises(UsageError, match=r"evil\.py"):
        cached_tokenizer(evil_cache(tmp_path / "b", teacher_dir, script_only=True))
    assert not list(tmp_path.rglob("ran"))


def test_nobody_is_asked_even_where_y_would_be_answered(tmp_path: Path, teacher_dir: str) -> None:
    """The real command on a terminal where somebody answers y to everything."""
    cache = evil_cache(tmp_path, teacher_dir)
    (tmp_path / "student.json").write_text(json.dumps(STUDENT))
    flags = ["--student", str(tmp_path / "student.json"), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    command = [sys.executable, "-m", "teachonce", "train", "--cache", cache.storage.root, *flags]
    ours, theirs = pty.openpty()
    os.write(ours, b"y\ny\ny\n")
    found = subprocess.run(
        command, stdin=theirs, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300
    )
    os.close(ours)
    os.close(theirs)
    assert found.returncode == 2
    assert "auto_map" in found.stderr
    assert "[y/N]" not in found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.rglob("ran"))


def test_pickled_weights_are_never_opened(causal_cache: Cache, tmp_path: Path) -> None:
    folder = Path(make_llama(tmp_path / "student"))
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(mark), "w"))

    (folder / "model.safetensors").unlink()
    torch.save(Bomb(), folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pickled, which is code.*pytorch_model\.bin"):
        open_student(str(folder), causal_cache)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UsageError, match="holds no weights"):
        open_trained(str(folder), causal_cache)
    assert not mark.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "weights cannot be opened"),
        (lambda folder: cut(folder / "config.json"), "config cannot be opened"),
        (lambda folder: cut(folder / "tokenizer.json"), "tokenizer cannot be opened"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config"),
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json"),
        (
            lambda folder: changed(folder / "config.json", num_hidden_layers=5),
            "lacks weights of LlamaForCausalLM",
        ),
        (lambda folder: changed(folder / "config.json", intermediate_size=7), "weights cannot be opened"),
        (lambda folder: changed(folder / "config.json", model_type="lama"), "lama"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter"),
    ],
)
def test_a_damaged_folder_is_one_line(causal_cache: Cache, tmp_path: Path, damage: Any, named: str) -> None:
    folder = Path(make_llama(tmp_path / "student"))
    damage(folder)
    for opening in (open_student, open_trained):
        with pytest.raises(TeachonceError, match=named) as caught:
            opening(str(folder), causal_cache)
        assert "\n" not in str(caught.value)


def test_what_is_no_model_folder(causal_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, named in (
        (causal_cache.storage.root, "this is a cache"),
        (str(tmp_path / "file"), "a file and no model folder"),
        (str(tmp_path), r"no config\.json"),
        (str(tmp_path / "none"), "no such model folder"),
        ("studnet", "studnet"),
    ):
        with pytest.raises(UsageError, match=named):
            open_config(name)
    with pytest.raises(UsageError, match="studnet"):
        open_tokenizer("studnet")


def evaluated(cache: Cache, *flags: str) -> int:
    return teachonce.main(["evaluate", "--cache", cache.storage.root, "--speed_seconds", "0", *flags])


@pytest.mark.parametrize("device", ["cuda:7", "bogus", "meta"])
def test_evaluate_on_a_device_that_is_not_there(
    causal_cache: Cache, teacher_dir: str, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    assert evaluated(causal_cache, "--student", teacher_dir, "--device", device) == 2
    told = capsys.readouterr().err
    assert "--device cannot be used" in told
    assert len(told.splitlines()) == 1


def test_evaluate_what_cannot_be_measured(
    causal_cache: Cache, teacher_dir: str, bert_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nan = LlamaForCausalLM.from_pretrained(teacher_dir)
    with torch.no_grad():
        nan.model.norm.weight.fill_(np.nan)
    nan.save_pretrained(tmp_path / "nan")
    tiny_tokenizer().save_pretrained(tmp_path / "nan")
    share = ["--eval_fraction", "0.3", "--device", "cpu"]
    for flags, named in (
        (["--student", str(tmp_path / "nan")], "not numbers"),
        (["--student", bert_dir], "lacks weights of BertLMHeadModel"),
        (["--student", causal_cache.storage.root], "this is a cache"),
        (["--student", str(tmp_path / "none")], "no such model folder"),
        (["--student", teacher_dir, "--teacher", str(tmp_path / "none")], "no such model folder"),
    ):
        assert evaluated(causal_cache, *flags, *share) == 2, named
        told = capsys.readouterr().err.splitlines()
        assert named in told[-1]
        assert not [line for line in told if line.startswith("Traceback")]
