"""A student of another tokenizer that is killed and goes on ends in the bits of the run that was not."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.test_another_tokenizer import precompute, student_folder
from tests.trainer.reading.tokenizers import byte_level

LOOP = (
    "--max_steps",
    "8",
    "--save_steps",
    "2",
    "--save_total_limit",
    "9",
    "--use_cpu",
    "--disable_tqdm",
    "true",
)
LOSSES = ("alm=1", "projected_kl=1", "ce=0.5", "feature=0.1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher's cache, and a student with dropout whose tokenizer begins and ends a text."""
    place = tmp_path_factory.mktemp("resumed")
    made = models.causal_teacher(place / "teacher")
    precompute(place, made, "--keep", "threshold:1/8", "--features", "mean:-1", "--max_length", "24")
    student_folder(place / "student", byte_level(420, bos=True, eos=True), attention_dropout=0.1)
    return place


def train(place, out, *more):
    named = (
        "--cache",
        place / "cache",
        "--student",
        place / "student",
        "--output_dir",
        out,
        "--losses",
        *LOSSES,
    )
    batch = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2")
    status, said = teachonce_main("train", *named, *batch, *LOOP, *more)
    assert status == 0, said
    return out


@pytest.fixture(scope="module")
def whole(place):
    return train(place, place / "whole")


@pytest.mark.parametrize("step", [2, 6])
def test_it_goes_on_to_the_same_weights(place, whole, tmp_path, step):
    """Step 6 lies in the second epoch, whose texts are held from the first."""
    shutil.copytree(whole / f"checkpoint-{step}", tmp_path / "out" / f"checkpoint-{step}")
    out = train(place, tmp_path / "out", "--resume_from_checkpoint", "auto")
    for name in ("model.safetensors", "projections.safetensors"):
        ours, theirs = load_file(out / name), load_file(whole / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    assert (out / "tokenizer.json").read_bytes() == (place / "student/tokenizer.json").read_bytes()
