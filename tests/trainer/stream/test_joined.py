"""Several teachers' caches joined by example: against one cache alone, and against means by plain transformers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import LlamaForCausalLM

from schemas.cache import Cache
from schemas.errors import CorruptionError, StudentError, UsageError
from schemas.features import Feature
from schemas.policies import KeepAll, KeepPolicy, TopK
from schemas.rows.rows import Rows
from tests.trainer.caches import causal_columns, causal_spec, finished_rows, write_cache
from tests.trainer.tiny import HIDDEN, make_llama, random_examples, tiny_tokenizer
from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.batches.join import Join
from trainer.batches.pool import pooled
from trainer.losses.objective import Objective
from trainer.losses.targets import SparseTargets
from trainer.stream.beside import Beside
from trainer.stream.side import Side
from trainer.training.config import TrainConfig
from trainer.training.joining import join_caches

ROWS = 40
CODES: dict[str, Any] = {"rel": 0.05, "abs": 1e-4}
"""Half a code's step, 1/32 nat, half of a top's, 1/128, and what dividing by their sum makes of that."""
KL = Objective.parse(["kl=1"], 1.0, "mse")
Made = Callable[..., tuple[Cache, LlamaForCausalLM]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A tiny teacher, by a seed, and its cache over one corpus, of some of its rows."""

    def build(
        seed: int, keep: KeepPolicy | None = None, chosen: Any = None, **changes: Any
    ) -> tuple[Cache, LlamaForCausalLM]:
        name = f"{seed}-{len(list(tmp_path.iterdir()))}"
        model = LlamaForCausalLM.from_pretrained(make_llama(tmp_path / f"{name}-model", seed=seed)).eval()
        writing = {key: changes.pop(key) for key in ("group_rows", "shards", "tokenizer") if key in changes}
        spec = causal_spec(keep or KeepAll(), **changes)
        rows = finished_rows(spec, causal_columns(model, random_examples(ROWS), spec))
        rows = rows if chosen is None else rows.take(np.asarray(chosen))
        return write_cache(tmp_path / f"{name}-cache", rows, **writing), model

    return build


def batches(
    caches: list[Cache], join: Join, temperature: float = 1.0, features: tuple[Feature, ...] = ()
) -> list[tuple[Rows, Batch]]:
    side = Side(cache=caches[0], eval_fraction=0.3, is_eval=False, beside=Beside.of(caches))
    collation = Collation(
        student_vocab=200, pad_id=0, temperature=temperature, join=join, features=features, stored=join.needs
    )
    found = []
    for group in np.flatnonzero(side.counts()).tolist():
        held = side.counted(group, int(side.counts()[group]))
        pool = pooled([(held, np.arange(len(held.chosen)))])
        cuts = np.array_split(np.arange(len(pool)), 2)
        rows = held.rows.take(held.chosen)
        found += [
            (rows.take(cut), batch) for cut, batch in zip(cuts, collation.batches(pool, cuts), strict=True)
        ]
    return found


def dense(batch: Batch) -> np.ndarray:
    """The targets as `[N, V]`."""
    targets = batch.targets
    assert isinstance(targets, SparseTargets)
    found = torch.zeros(len(targets.tail), 200, dtype=torch.float64)
    found[targets.position, targets.ids] = targets.weights.double()
    return found.numpy()


@torch.no_grad()
def said(model: LlamaForCausalLM, rows: Rows, temperature: float = 1.0) -> np.ndarray:
    """By plain transformers, a row at a time."""
    parts = []
    for place in range(len(rows)):
        ids = torch.from_numpy(rows.input_ids.row(place).copy()).long()[None]
        parts.append((model(input_ids=ids).logits[0, :-1].double() / temperature).softmax(-1))
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.2)])
def test_the_mean_of_whole_caches_is_that_of_the_distributions(
    made: Made, temperature: float, shares: tuple[float, float]
) -> None:
    """Row groups of other sizes: the same row stands elsewhere in the other cache."""
    (a, one), (b, two) = made(1), made(2, group_rows=5, shards=3)
    for rows, batch in batches([a, b], Join(weights=shares), temperature):
        wanted = shares[0] * said(one, rows, temperature) + shares[1] * said(two, rows, temperature)
        assert dense(batch) == pytest.approx(wanted, **CODES)
        assert dense(batch).sum(1) == pytest.approx(1, abs=1e-5)
        targets = batch.targets
        assert isinstance(targets, SparseTargets)
        best = targets.ids[torch.from_numpy(batch.entry_offsets[:-1])].numpy()
        assert (np.take_along_axis(wanted, best[:, None], 1)[:, 0] >= wanted.max(1) * 0.93).all()
        entropy = -(wanted * np.log(wanted)).sum(1)
        assert -targets.negentropy.numpy() == pytest.approx(entropy, abs=0.05)


def test_of_cut_distributions_the_union_is_kept_and_the_whole_weighs_one(made: Made) -> None:
    (a, one), (b, two) = made(1, TopK(k=8)), made(2, TopK(k=8))
    for rows, batch in batches([a, b], Join(weights=(0.25, 0.75))):
        targets = batch.targets
        assert isinstance(targets, SparseTargets)
        parts = [said(one, rows), said(two, rows)]
        kept = [p >= np.sort(p, 1)[:, -8][:, None] for p in parts]
        wanted = 0.25 * parts[0] * kept[0] + 0.75 * parts[1] * kept[1]
        found = dense(batch)
        assert found == pytest.approx(wanted, **CODES)
        assert found.sum(1) + targets.tail.numpy() == pytest.approx(1, abs=1e-5)
        tail = 0.25 * (parts[0] * ~kept[0]).sum(1) + 0.75 * (parts[1] * ~kept[1]).sum(1)
        assert targets.tail.numpy() == pytest.approx(tail, abs=0.03)
        assert (np.diff(batch.entry_offsets) == (kept[0] | kept[1]).sum(1)).all()


@pytest.mark.parametrize("keep", [KeepAll(), TopK(k=8)])
@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.5, 0.5)])
def test_with_itself_or_weighed_alone_it_is_the_one_cache(
    made: Made, keep: KeepPolicy, shares: tuple[float, float]
) -> None:
    a, _ = made(1, keep)
    b, _ = made(2 if shares == (1.0, 0.0) else 1, keep, group_rows=7)
    alone = batches([a, a], Join(weights=(1.0, 0.0)))
    side = Side(cache=a, eval_fraction=0.3, is_eval=False)
    plain = Collation(student_vocab=200, pad_id=0)
    for (rows, batch), (_, same) in zip(batches([a, b], Join(weights=shares)), alone, strict=True):
        wanted = plain.batch(rows)
        for found in (batch, same):
            assert dense(found) == pytest.approx(dense(wanted), abs=1e-6)
            assert found.targets.tail.numpy() == pytest.approx(wanted.targets.tail.numpy(), abs=1e-6)  # type: ignore[union-attr]
            assert found.targets.negentropy.numpy() == pytest.approx(  # type: ignore[union-attr]
                wanted.targets.negentropy.numpy(),
                abs=1e-5,  # type: ignore[union-attr]
            )
            assert torch.equal(found.input_ids, wanted.input_ids)
    assert sum(side.counts()) == sum(len(rows) for rows, _ in alone)


@pytest.mark.parametrize("pick", ["loss", "entropy"])
def test_one_teacher_is_picked_at_each_position(made: Made, pick: str) -> None:
    """By its stored codes: ties within their steps may go either way."""
    (a, one), (b, two) = made(1), made(2, group_rows=5)
    for rows, batch in batches([a, b], Join(weights=(0.5, 0.5), pick=pick)):
        parts = np.stack([said(one, rows), said(two, rows)])
        if pick == "entropy":
            nats = -(parts * np.log(parts)).sum(-1)
        else:
            gold = batch.targets.gold.numpy().astype(int)
            nats = -np.log(parts[:, np.arange(len(gold)), gold])
        clear = np.abs(nats[0] - nats[1]) > 1 / 16
        assert clear.any()
        wanted = parts[nats.argmin(0), np.arange(parts.shape[1])]
        assert dense(batch)[clear] == pytest.approx(wanted[clear], **CODES)


def test_features_stand_one_behind_the_other(made: Made) -> None:
    (a, _), (b, _) = made(1), made(2, group_rows=5)
    joined = join_caches([a, b], [1.0, 1.0], None, KL)
    assert [feature.width for feature in joined.view.spec.features] == [2 * HIDDEN] * 2
    theirs = {
        key: row
        for rows in b.read_all()
        for key, row in zip(rows.example_ids, rows.feature(b.spec.features[0]), strict=True)
    }
    for rows, batch in batches([a, b], joined.join, features=joined.view.spec.features):
        ours = rows.feature(a.spec.features[0])
        wanted = np.concatenate([ours, np.stack([theirs[key] for key in rows.example_ids])], 1)
        assert batch.features[0].numpy() == pytest.approx(wanted)


def test_what_only_one_has_is_counted_and_left_out(made: Made) -> None:
    (a, _), (b, _) = made(1, chosen=range(30)), made(2, chosen=range(10, ROWS))
    joined = join_caches([a, b], [1.0, 1.0], None, KL)
    assert joined.beside.left_out == {a.storage.root: 10, b.storage.root: 10}
    assert "20 rows are in all caches" in joined.lines()[0]
    ids = {key for rows, _ in batches([a, b], joined.join) for key in rows.example_ids}
    assert ids < {key for rows in a.read_all() for key in rows.example_ids} & {
        key for rows in b.read_all() for key in rows.example_ids
    }
    with pytest.raises(UsageError, match="no example in common"):
        join_caches([made(1, chosen=range(9))[0], made(2, chosen=range(20, 30))[0]], [1.0, 1.0], None, KL)


def test_what_cannot_be_joined_is_told_field_by_field(made: Made) -> None:
    a, _ = made(1)
    other, _ = made(2, TopK(k=4), temperatures=(1.0, 4.0), tokenizer=tiny_tokenizer(190))
    with pytest.raises(UsageError, match=r"--keep.*--temperatures.*tokenizer tokenizer\.json"):
        join_caches([a, other], [1.0, 1.0], None, KL)
    alike, _ = made(2)
    with pytest.raises(StudentError, match="mse_logits needs what a mean of several teachers has not"):
        join_caches([a, alike], [1.0, 1.0], None, Objective.parse(["mse_logits=1"], 1.0, "mse"))


def test_one_id_with_other_tokens_is_an_error(made: Made) -> None:
    a, _ = made(1)
    rows = Rows.concatenate(list(a.read_all()))
    ids = rows.input_ids.values.copy()
    ids[0] = (ids[0] + 1) % 200
    forged = replace(rows, data={**rows.data, "input_ids": replace(rows.input_ids, values=ids)})
    b = write_cache(Path(a.storage.root).parent / "forged", forged)
    side = Side(cache=a, eval_fraction=0.0, is_eval=False, beside=Beside.of([a, b]))
    with pytest.raises(CorruptionError, match="one example's id with other input_ids"):
        side.whole(0)


def test_a_run_goes_on_to_the_same_weights_and_another_join_is_another_run(
    made: Made, run: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    (a, _), (b, _) = made(1), made(2)
    usual: dict[str, Any] = {"cache": a, "losses": ["kl=1", "feature=0.1"], "join": "example"}
    usual |= {"max_steps": 12, "eval_strategy": "steps", "eval_steps": 6}

    def train(name: str, first: float, **changes: Any) -> Path:
        caches = [f"{a.storage.root}={first}", f"{b.storage.root}={1 - first}"]
        told = usual | {"caches": caches} | changes
        return run(name, **{key: value for key, value in told.items() if value is not None})

    whole, part = train("whole", 0.5), train("part", 0.5)
    again = train("again", 0.5, resume_from_checkpoint=str(part / "checkpoint-6"))
    weights = [load_file(folder / "model.safetensors") for folder in (whole, again)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(UsageError, match="another weight"):
        train("other", 0.25, resume_from_checkpoint=str(part / "checkpoint-6"))
    single = run("single", cache=a, losses=["kl=1"], max_steps=12)
    alone = train("alone", 1.0, losses=["kl=1"], eval_strategy="no", eval_steps=None)
    pairs = [load_file(folder / "model.safetensors") for folder in (single, alone)]
    assert all(np.allclose(pairs[0][name], pairs[1][name], atol=1e-4) for name in pairs[0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cache": ["a", "b"], "join": "document"}, "--join must be example"),
        ({"cache": ["a"], "join": "example"}, "two caches or more"),
        ({"cache": ["a", "b"], "join_pick": "loss"}, "--join example and one of"),
        ({"cache": ["a=1", "b=1"], "join": "example", "join_pick": "loss"}, "no weights where one is picked"),
        ({"cache": ["a=0", "b=0"], "join": "example"}, "weights above 0"),
        ({"cache": ["a=1", "b=0"]}, "weights above 0"),
        ({"cache": ["a", "b"], "join": "example", "where": ["length<=5"]}, "--where does not go with --join"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        TrainConfig(student="s.json", **changes)


def test_the_lower_loss_is_known_at_declared_temperatures_alone(made: Made) -> None:
    pair = [made(seed, KeepAll())[0] for seed in (1, 2)]
    warm = Objective.parse(["kl=1"], 3.0, "mse")
    with pytest.raises(UsageError, match="--join_pick loss needs a temperature that the caches declare"):
        join_caches(pair, [1.0, 1.0], "loss", warm)
