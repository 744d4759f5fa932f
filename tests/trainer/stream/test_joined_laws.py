"""Laws of joined caches beside those of whole distributions: draws stay unbiased, sigmoid scores are each joined, and
two ranks read what one does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, LlamaForCausalLM

from schemas.cache import Cache
from schemas.policies import KeepAll, parse_keep
from schemas.rows.rows import Rows
from schemas.spec import Spec
from tests.pipelines import models
from tests.pipelines.helpers import documents, run, write_jsonl
from tests.trainer.caches import causal_columns, causal_spec, class_columns, finished_rows, write_cache
from tests.trainer.tiny import STUDENT, make_bert, make_llama, random_examples
from tests.trainer.training.test_ranks import port, start
from trainer.batches.collate import Collation
from trainer.batches.join import Join
from trainer.batches.pool import pooled
from trainer.losses.targets import DenseTargets, SparseTargets
from trainer.stream.beside import Beside
from trainer.stream.side import Side

SEEDS = 9


def weights(caches: list[Cache], join: Join | None = None) -> dict[bytes, np.ndarray]:
    """What each position's entries weigh, `[N, V]`, by the example's id."""
    beside = None if join is None else Beside.of(caches)
    side = Side(cache=caches[0], eval_fraction=0.0, is_eval=False, beside=beside)
    collation = Collation(student_vocab=300, pad_id=0, join=join)
    found: dict[bytes, np.ndarray] = {}
    for group in np.flatnonzero(side.counts()).tolist():
        held = side.counted(group, int(side.counts()[group]))
        pool = pooled([(held, np.arange(len(held.chosen)))])
        (batch,) = collation.batches(pool, [np.arange(len(pool))])
        targets = batch.targets
        assert isinstance(targets, SparseTargets)
        dense = torch.zeros(len(targets.gold), 300, dtype=torch.float64)
        dense.index_put_(
            (targets.position.long(), targets.ids.long()), targets.weights.double(), accumulate=True
        )
        rows = held.rows.take(held.chosen)
        each = torch.split(dense, np.diff(rows.position_offsets).tolist())
        found |= dict(zip(rows.example_ids, (part.numpy() for part in each), strict=True))
    return found


@pytest.mark.parametrize("keep", ["threshold:1/8", "sampled:9"])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.2)])
def test_joined_draws_weigh_what_each_caches_draws_do(
    tmp_path: Path, keep: str, shares: tuple[float, float]
) -> None:
    """So their expectation is the mean of the distributions, for that of each cache is its teacher's."""
    corpus, made = write_jsonl(tmp_path / "c.jsonl", documents(8)), []
    for seed in (0, 7):
        teacher = models.causal_teacher(tmp_path / f"t{seed}", seed=seed)
        run(corpus, teacher, tmp_path / f"c{seed}", keep=parse_keep(keep))
        made.append(Cache.open(tmp_path / f"c{seed}"))
    joined, (one, two) = weights(made, Join(weights=shares)), (weights([cache]) for cache in made)
    assert joined.keys() == one.keys() == two.keys()
    for key, found in joined.items():
        assert found == pytest.approx(shares[0] * one[key] + shares[1] * two[key], abs=1e-6)
        assert found.sum(1) == pytest.approx(1, abs=0.2)  # within tau; never made to sum to 1


def test_the_mean_of_joined_draws_over_seeds_is_that_of_the_distributions(tmp_path: Path) -> None:
    """One document, drawn again and again: against plain transformers."""
    corpus = write_jsonl(tmp_path / "c.jsonl", documents(1))
    teachers = [models.causal_teacher(tmp_path / f"t{seed}", seed=seed) for seed in (0, 7)]
    join, sums = Join(weights=(0.75, 0.25)), 0.0
    for seed in range(SEEDS):
        made = []
        for number, teacher in enumerate(teachers):
            path = tmp_path / f"{number}-{seed}"
            run(corpus, teacher, path, keep=parse_keep("threshold:1/4"), sample_seed=2 * seed + number)
            made.append(Cache.open(path))
        (found,) = weights(made, join).values()
        sums = sums + found / SEEDS
    (rows,) = made[0].read_all()
    ids = torch.from_numpy(rows.input_ids.values.astype(np.int64))[None]
    with torch.no_grad():
        said = [
            LlamaForCausalLM.from_pretrained(t)(input_ids=ids).logits[0, :-1].softmax(-1).numpy()
            for t in teachers
        ]
    wanted = 0.75 * said[0] + 0.25 * said[1]
    deviation = np.sqrt(0.25 / SEEDS * (0.75**2 + 0.25**2) * np.maximum(wanted, 1e-3))
    assert (np.abs(sums - wanted) < 5 * deviation + 0.02).all()
    assert np.abs((sums - wanted).mean()) < 1e-3
    assert np.abs(sums - wanted).mean() < 0.6 * np.abs(found - wanted).mean()


@pytest.fixture
def sigmoids(tmp_path: Path) -> tuple[list[Cache], list[str]]:
    """Two BERTs whose classes are each there or not."""
    caches, folders = [], []
    for seed in (1, 2):
        folders.append(make_bert(tmp_path / f"t{seed}", seed=seed))
        model = BertForSequenceClassification.from_pretrained(folders[-1]).eval()
        spec = Spec(
            task="sequence-classification",
            score="sigmoid",
            vocab_size=3,
            keep=KeepAll(),
            max_length=64,
            scalars=(),
        )
        examples = random_examples(30, seed=3)
        labels = [np.array([i % 2, 1, 0], np.float32) if i % 5 else None for i in range(30)]
        rows = finished_rows(spec, class_columns(model, examples, labels, spec))
        caches.append(write_cache(tmp_path / f"c{seed}", rows, group_rows=7 * seed))
    return caches, folders


@torch.no_grad()
def logits_of(folder: str, rows: Rows) -> np.ndarray:
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    each = [
        model(input_ids=torch.from_numpy(rows.input_ids.row(i).copy()).long()[None]).logits
        for i in range(len(rows))
    ]
    return torch.cat(each).double().numpy()


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("pick", [None, "loss", "entropy"])
def test_of_sigmoid_scores_each_class_is_joined(
    sigmoids: tuple[list[Cache], list[str]], temperature: float, pick: str | None
) -> None:
    caches, folders = sigmoids
    side = Side(cache=caches[0], eval_fraction=0.0, is_eval=False, beside=Beside.of(caches))
    join = Join(weights=(0.7, 0.3), pick=pick)
    collation = Collation(student_vocab=3, pad_id=0, temperature=temperature, join=join)
    for group in np.flatnonzero(side.counts()).tolist():
        held = side.counted(group, int(side.counts()[group]))
        pool = pooled([(held, np.arange(len(held.chosen)))])
        (batch,) = collation.batches(pool, [np.arange(len(pool))])
        rows, targets = held.rows.take(held.chosen), batch.targets
        assert isinstance(targets, DenseTargets)
        a, b = (logits_of(folder, rows) for folder in folders)
        found = targets.logits.double().numpy()
        if pick is None:
            wanted = 0.7 * sigmoid(a / temperature) + 0.3 * sigmoid(b / temperature)
            assert sigmoid(found / temperature) == pytest.approx(wanted, abs=1e-5)
            continue
        gold = np.zeros_like(a)
        known = rows.ragged("labels").validity
        gold[known] = rows.ragged("labels").values.reshape(-1, 3)
        nats = []
        for z in (a, b):
            target = sigmoid(z) if pick == "entropy" else gold
            nats.append(-(target * np.log(sigmoid(z)) + (1 - target) * np.log(sigmoid(-z))).sum(1))
        second = (nats[1] < nats[0]) & (known | (pick == "entropy"))
        clear = np.abs(nats[0] - nats[1]) > 1e-4
        assert found[clear] == pytest.approx(np.where(second[:, None], b, a)[clear], abs=1e-5)


def test_two_ranks_of_joined_caches_are_one(tmp_path: Path) -> None:
    made = []
    for seed in (1, 2):
        model = LlamaForCausalLM.from_pretrained(make_llama(tmp_path / f"t{seed}", seed=seed)).eval()
        spec = causal_spec()
        rows = finished_rows(spec, causal_columns(model, random_examples(70), spec))
        made.append(write_cache(tmp_path / f"c{seed}", rows, group_rows=5 * seed))
    (tmp_path / "student.json").write_text(json.dumps(STUDENT))
    told: dict[str, Any] = {"caches": [f"{cache.storage.root}=0.5" for cache in made], "join": "example"}
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    ranks: Callable[[int], dict[str, str]] = lambda r: shared | {"RANK": str(r), "LOCAL_RANK": str(r)}  # noqa: E731
    runs = [start(tmp_path, made[0], "two", 1, ranks(r), **told) for r in range(2)]
    runs.append(start(tmp_path, made[0], "one", 2, {}, **told))
    ended = [one.communicate(timeout=300) for one in runs]
    assert [one.returncode for one in runs] == [0, 0, 0], ended
    ours, theirs = (load_file(tmp_path / out / "model.safetensors") for out in ("two", "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-3)
