"""DistilBERT's recipe by the documented commands; what is trained and measured is what plain transformers says."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForMaskedLM

import teachonce
from schemas import Cache
from tests.pipelines.families import masked_teacher, teachonce_main
from tests.pipelines.helpers import documents, write_jsonl
from trainer.batches.collate import Collation
from trainer.evaluation.held_out import HeldOut
from trainer.losses.objective import Objective
from trainer.tasks.masked_lm import pseudo_perplexity
from trainer.tasks.student_task import Measured
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.distiller import Distiller

ROOT = Path(teachonce.__file__).parent
SMALL = {
    "precompute": ["--no_progress", "--max_length", "24", "--views", "2", "--keep", "all"],
    "train": [
        "--use_cpu",
        "--max_steps",
        "40",
        "--learning_rate",
        "2e-3",
        "--logging_steps",
        "10",
        "--eval_fraction",
        "0.3",
    ],
    "evaluate": ["--speed_seconds", "0", "--json"],
}


def documented():
    """The commands of the page, by verb."""
    text = (ROOT / "docs" / "masked-lm.md").read_text()
    (block,) = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    return {words[2]: words[2:] for words in (shlex.split(line) for line in lines)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything that the recipe makes, of a teacher of four layers."""
    made = tmp_path_factory.mktemp("recipe")
    masked_teacher(made / "bert-base", num_hidden_layers=4)
    write_jsonl(made / "corpus" / "a.jsonl", documents(40))
    return made


@pytest.fixture(scope="module")
def told(folder):
    """What each command said."""
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, words in documented().items():
            small = [word.replace("layers=6", "layers=2").replace(".zst", "") for word in words]
            status, said[verb] = teachonce_main(*small, *SMALL[verb])
            assert status == 0, said[verb]
    return said


@pytest.fixture(scope="module")
def cache(folder, told):
    return Cache.open(folder / "cache")


def plain(folder):
    return AutoModelForMaskedLM.from_pretrained(folder).eval()


def texts(rows):
    """Each row's tokens as the teacher saw them, places and gold ids."""
    for row in range(len(rows)):
        parts = (rows.input_ids.row(row), rows.ragged("position_index").row(row), rows.gold_ids().row(row))
        ids, places, gold = (torch.from_numpy(part.astype(np.int64)) for part in parts)
        yield ids[None], places, gold


def test_the_student_is_the_teachers_class_with_every_other_layer(folder, told):
    model = plain(folder / "distilbert")
    assert type(model).__name__ == "BertForMaskedLM"
    assert model.config.num_hidden_layers == 2


@torch.no_grad()
def test_what_is_measured_is_what_plain_transformers_says(folder, told, cache):
    metrics = json.loads(told["evaluate"][told["evaluate"].index("{") :])["metrics"]
    model, teacher = plain(folder / "distilbert"), plain(folder / "bert-base")
    held_out = [*HeldOut(cache=cache, eval_fraction=0.3, batch_size=8).rows()]
    losses, agree, kl, alone = [], [], [], []
    for rows in held_out:
        for number, (ids, places, gold) in enumerate(texts(rows)):
            ours, theirs = model(ids).logits[0, places], teacher(ids).logits[0, places]
            losses.append(functional.cross_entropy(ours, gold, reduction="none"))
            agree.append((ours.argmax(-1) == theirs.argmax(-1)).float())
            q, p = ours.log_softmax(-1), theirs.log_softmax(-1)
            kl.append((p.exp() * (p - q)).sum(-1))
            if rows.array("view_index")[number] == 0:
                alone += [masked_alone(model, ids, places, gold, place) for place in range(len(places))]
    assert metrics["cross_entropy_nats"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert metrics["top1_agreement"] == pytest.approx(torch.cat(agree).mean().item(), abs=0.02)
    assert metrics["kl_nats"] == pytest.approx(torch.cat(kl).mean().item(), abs=0.01)
    assert metrics["pseudo_perplexity_tokens"] == len(alone)
    assert metrics["pseudo_perplexity"] == pytest.approx(np.exp(np.mean(alone)), rel=1e-4)
    assert metrics["positions"] == sum(map(len, losses))


def masked_alone(model, ids, places, gold, place):
    """-log p of one token of a text in which nothing else is hidden."""
    written = ids.clone()
    written[0, places] = gold
    written[0, places[place]] = 300
    return -model(written).logits[0, places[place]].log_softmax(-1)[gold[place]].item()


def test_pseudo_perplexity_stops_after_so_many_tokens(folder, cache):
    held_out = HeldOut(cache=cache, eval_fraction=0.3, batch_size=8)
    model, rest = plain(folder / "distilbert"), {"held_out": held_out, "device": torch.device("cpu")}
    words = type("Words", (), {"mask_token_id": 300})()
    collation = Collation(student_vocab=301, pad_id=0)
    asked = Measured(model=model, tokenizer=words, spec=cache.spec, collation=collation, **rest)
    assert pseudo_perplexity(asked, 7)["pseudo_perplexity_tokens"] == 7


def test_the_student_has_learned(told):
    for term in ("kl", "feature"):
        logged = [float(value) for value in re.findall(rf" {term} ([\d.]+)", told["train"])]
        assert len(logged) == 4
        assert logged[-1] < 0.9 * logged[0]


@pytest.mark.parametrize("name", ["ce", "kl"])
def test_loss_and_every_gradient_are_those_of_the_models_own_forward(folder, cache, name):
    """Head in chunks, body apart: with all entries kept the dense textbook form, to the codec's step for `kl`."""
    rows = cache.read(cache.row_groups[0])
    rows = rows.take(np.arange(6))
    student, ours, teacher = (plain(folder / n) for n in ("distilbert", "distilbert", "bert-base"))
    distiller = Distiller(
        ours, Objective.parse([f"{name}=1"], 1.0), score="softmax", task=STUDENT_TASKS["masked-lm"]
    ).eval()
    distiller(Collation(student_vocab=301, pad_id=0).batch(rows))["loss"].backward()
    total, count = torch.zeros(()), rows.num_positions
    for ids, places, gold in texts(rows):
        logits = student(ids).logits[0, places].log_softmax(-1)
        if name == "ce":
            total = total - logits.gather(1, gold[:, None]).sum() / count
        else:
            p = teacher(ids).logits[0, places].log_softmax(-1).detach()
            total = total + (p.exp() * (p - logits)).sum() / count
    total.backward()
    rounding = 1e-5 if name == "ce" else 5e-2
    for (key, own), (_, found) in zip(student.named_parameters(), ours.named_parameters(), strict=True):
        if own.grad is None:
            assert found.grad is None or not found.grad.any(), key
            continue
        assert (own.grad - found.grad).abs().max() <= rounding * own.grad.abs().max() + 1e-7, key
