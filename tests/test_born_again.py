"""A student is a teacher for the same command: born-again networks and teacher assistants, by the commands alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import teachonce
from schemas.cache import Cache
from schemas.rows.rows import Rows
from tests.trainer.tiny import STUDENT, make_llama

KEEP = ("--keep", "all", "--max_length", "24", "--no_progress")
TRAINING = (
    *(
        "--losses",
        "kl=1",
        "--max_steps",
        "30",
        "--per_device_train_batch_size",
        "8",
        "--learning_rate",
        "3e-3",
    ),
    *("--use_cpu", "true", "--save_strategy", "no", "--eval_fraction", "0.2", "--disable_tqdm", "true"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, a teacher, and two configs of students: one as large as the teacher, and a smaller one."""
    found = tmp_path_factory.mktemp("generations")
    make_llama(found / "teacher")
    rng = np.random.default_rng(0)
    lines = [" ".join(f"t{word}" for word in rng.integers(3, 200, rng.integers(6, 20))) for _ in range(60)]
    (found / "corpus.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (found / "alike.json").write_text(json.dumps(STUDENT))
    (found / "small.json").write_text(json.dumps(STUDENT | {"hidden_size": 16, "num_hidden_layers": 1}))
    return found


def command(*words: object) -> int:
    return teachonce.main([str(word) for word in words])


def generation(folder: Path, teacher: str, student: str, number: int) -> int:
    """One turn of the loop that `docs/several.md` tells."""
    asked = ("--corpus", folder / "corpus.jsonl", "--teacher", folder / teacher, "--task", "causal-lm")
    cache = folder / f"cache-{number}"
    return command("precompute", *asked, *KEEP, "--cache", cache) or command(
        "train",
        "--cache",
        cache,
        "--student",
        folder / student,
        "--output_dir",
        folder / f"student-{number}",
        *TRAINING,
    )


@pytest.fixture(scope="module")
def trained(folder):
    assert generation(folder, "teacher", "alike.json", 1) == 0
    assert generation(folder, "student-1", "small.json", 2) == 0
    return folder


def test_the_second_cache_says_what_the_first_student_says(trained):
    cache = Cache.open(trained / "cache-2")
    assert cache.fingerprint.weights != Cache.open(trained / "cache-1").fingerprint.weights
    assert command("verify", trained / "cache-2", "--teacher", trained / "student-1") == 0
    model = AutoModelForCausalLM.from_pretrained(trained / "student-1").eval()
    rows = Rows.concatenate(list(cache.read_all()))
    with torch.no_grad():
        ids = torch.from_numpy(rows.input_ids.row(0).copy()).long()[None]
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).numpy()
    kept = rows.kept_ids.reshape(-1, 200)[: len(logprobs)]
    told = rows.kept_logprobs().reshape(-1, 200)[: len(logprobs)]
    assert told == pytest.approx(np.take_along_axis(logprobs, kept, 1), abs=1 / 24)


def test_a_student_does_not_write_into_its_teachers_cache(trained, capsys):
    asked = ("--corpus", trained / "corpus.jsonl", "--teacher", trained / "student-1", "--task", "causal-lm")
    assert command("precompute", *asked, *KEEP, "--cache", trained / "cache-1") == 1
    assert "weights" in capsys.readouterr().err


def test_teacher_and_assistant_teach_together(trained, capsys):
    """Their caches are of one corpus and one tokenizer: joined without a word more."""
    caches = (
        "--cache",
        f"{trained / 'cache-1'}=0.5",
        "--cache",
        f"{trained / 'cache-2'}=0.5",
        "--join",
        "example",
    )
    out = trained / "student-3"
    assert command("train", *caches, "--student", trained / "small.json", "--output_dir", out, *TRAINING) == 0
    assert "60 rows are in all caches" in capsys.readouterr().err
    AutoModelForCausalLM.from_pretrained(out)
    students = ("--students", trained / "student-2", out)
    compared = (
        "evaluate",
        "--cache",
        trained / "cache-1",
        *students,
        "--speed_seconds",
        "0",
        "--device",
        "cpu",
        "--json",
    )
    assert command(*compared) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(one["student"]).name for one in told["students"]] == ["student-2", "student-3"]
