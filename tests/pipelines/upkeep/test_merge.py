"""`merge` by the command: what its cache says is what the join of its caches says; one commit, and no second."""

import json

import numpy as np
import pytest
import torch
import transformers

import teachonce
from pipelines import ForgetConfig, MergeConfig, forget, merge
from pipelines.upkeep import merge_steps
from schemas import Cache
from schemas.errors import MismatchError, UsageError
from schemas.policies import KeepAll, parse_keep
from tests.pipelines import models
from tests.pipelines.helpers import all_rows, documents, run, write_jsonl
from tests.trainer.tiny import STUDENT
from trainer import StudentArguments, TrainConfig, train
from trainer.batches.collate import Collation
from trainer.batches.join import Join
from trainer.batches.pool import pooled
from trainer.losses.targets import SparseTargets
from trainer.stream.beside import Beside
from trainer.stream.side import Side

KEPT = ("all", "top_k:5", "top_p:0.9,k=20", "threshold:1/8", "sampled:9")
CODES = {"rel": 0.06, "abs": 1e-4}
"""Half a code's step of the sources, half a step of the merged, and of their tops."""
SCALARS = ("entropy", "gold", "logsumexp")


@pytest.fixture(scope="module")
def caches(tmp_path_factory, teacher, corpus):
    """Two teachers' caches of the real precompute over one corpus, by policy; the second has two documents less."""
    folder, made = tmp_path_factory.mktemp("two"), {}
    other = models.causal_teacher(folder / "other", seed=7)
    fewer = write_jsonl(folder / "fewer.jsonl", documents(22))

    def of(keep):
        if keep not in made:
            made[keep] = [folder / f"{place}-{len(made)}" for place in "ab"]
            for path, text, model, unit in zip(
                made[keep], (corpus, fewer), (teacher, other), (400, 300), strict=True
            ):
                told = {
                    "scalars": SCALARS,
                    "features": ("mean:-1",),
                    "unit_tokens": unit,
                    "row_group_tokens": 90,
                }
                run(text, model, path, keep=parse_keep(keep), **told)
        return [Cache.open(path) for path in made[keep]]

    return of


def say(*words):
    return teachonce.main(["merge", *map(str, words), "--no_progress"])


def replayed(caches, join=None):
    """What a training reads of each example: its targets as `[N, V]`, by its id."""
    beside = None if join is None else Beside.of(caches)
    side = Side(cache=caches[0], eval_fraction=0.0, is_eval=False, beside=beside)
    needs = frozenset() if join is None else join.needs
    collation = Collation(student_vocab=300, pad_id=0, join=join, stored=needs)
    found = {}
    for group in np.flatnonzero(side.counts()).tolist():
        held = side.counted(group, int(side.counts()[group]))
        pool = pooled([(held, np.arange(len(held.chosen)))])
        (batch,) = collation.batches(pool, [np.arange(len(pool))])
        targets = batch.targets
        assert isinstance(targets, SparseTargets)
        dense = torch.zeros(len(targets.gold), 300, dtype=torch.float64)
        dense[targets.position, targets.ids] = targets.weights.double()
        rows = held.rows.take(held.chosen)
        parts = torch.split(dense, np.diff(rows.position_offsets).tolist())
        found |= dict(zip(rows.example_ids, (part.numpy() for part in parts), strict=True))
    return found


def same_replay(caches, merged, join, **within):
    ours, theirs = replayed([merged]), replayed(caches, join)
    assert ours.keys() == theirs.keys()
    for example, said in ours.items():
        assert said == pytest.approx(theirs[example], **within), example.hex()


@pytest.mark.parametrize("pick", ["entropy", "loss"])
@pytest.mark.parametrize("keep", KEPT)
def test_of_one_teacher_at_each_position_all_is_copied(tmp_path, caches, keep, pick):
    two, out = caches(keep), tmp_path / "out"
    assert say(*(cache.storage.root for cache in two), "--pick", pick, "--out", out) == 0
    merged = Cache.open(out)
    same_replay(two, merged, Join(weights=(0.5, 0.5), pick=pick), abs=0)
    for rows in merged.read_all():
        rows.check("merged", deep=True)
    assert (merged.spec.keep, merged.spec.scalars) == (two[0].spec.keep, two[0].spec.scalars)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.2)])
def test_a_mean_is_what_the_join_says_and_what_plain_models_say(tmp_path, caches, capsys, shares):
    two, out = caches("all"), tmp_path / "out"
    named = [f"{cache.storage.root}={share}" for cache, share in zip(two, shares, strict=True)]
    assert say(*named, "--out", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    merged = Cache.open(out)
    assert told["committed"]
    assert told["examples"] == merged.totals.examples == two[1].totals.examples
    assert list(told["left_out"].values()) == [two[0].totals.examples - two[1].totals.examples, 0]
    same_replay(two, merged, Join(weights=shares), **CODES)
    rows = all_rows(merged)
    rows.check("merged", deep=True)
    mass = np.exp(rows.kept_logprobs().astype(np.float64)).reshape(-1, 300)
    entropy = -(mass * np.log(mass)).sum(1) / mass.sum(1)
    assert rows.entropy() == pytest.approx(entropy, abs=0.06)
    assert rows.logsumexp() == pytest.approx(0, abs=1e-5)
    ids = rows.kept_ids.reshape(-1, 300)
    gold = np.log(mass[ids == rows.gold_ids().values[:, None]])
    assert rows.gold_logprob().values == pytest.approx(gold, abs=0.06)


def test_features_stand_one_behind_the_other(tmp_path, caches):
    two, out = caches("all"), tmp_path / "out"
    merge(MergeConfig(caches={cache.storage.root: None for cache in two}, out=str(out), show_progress=False))
    merged = Cache.open(out)
    (feature,), (own,) = merged.spec.features, two[0].spec.features
    assert feature.width == 2 * own.width
    rows, first, second = all_rows(merged), all_rows(two[0]), all_rows(two[1])
    kept = np.isin([*map(bytes, first.example_ids)], [*map(bytes, rows.example_ids)])
    wanted = np.concatenate([first.take(np.flatnonzero(kept)).feature(own), second.feature(own)], 1)
    step = np.abs(wanted).max(1, keepdims=True) / 127
    assert (np.abs(rows.feature(feature) - wanted) <= step).all()


def test_a_second_call_writes_nothing_and_a_grown_corpus_is_followed(tmp_path, teacher, capsys):
    other, paths = models.causal_teacher(tmp_path / "other", seed=7), [tmp_path / "a", tmp_path / "b"]
    for count in (10, 16):
        corpus = write_jsonl(tmp_path / f"{count}.jsonl", documents(count))
        for path, model in zip(paths, (teacher, other), strict=True):
            run(corpus, model, path, keep=KeepAll(), unit_tokens=200)
        assert say(*paths, "--out", tmp_path / "out") == 0
        merged = Cache.open(tmp_path / "out")
        assert merged.totals.examples == Cache.open(paths[0]).totals.examples
        before = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert say(*paths, "--out", tmp_path / "out") == 0
        assert "nothing new" in capsys.readouterr().out
        assert Cache.open(tmp_path / "out").version == merged.version == (0 if count == 10 else 1)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def config_of(two, out, **changes):
    caches = {cache.storage.root: None for cache in two}
    return MergeConfig(caches=caches, out=str(out), show_progress=False, **changes)


def test_what_was_forgotten_stays_out(tmp_path, caches):
    told = config_of(caches("top_k:5"), tmp_path / "out", pick="loss")
    merge(told)
    gone = bytes(all_rows(Cache.open(told.out)).array("document_hash")[0]).hex()
    forget(ForgetConfig(cache=told.out, ids=(gone,), show_progress=False))
    left = Cache.open(told.out)
    merge(told)
    hashes = {bytes(row).hex() for row in all_rows(Cache.open(told.out)).array("document_hash")}
    assert gone not in hashes
    assert Cache.open(told.out).totals.examples == left.totals.examples


def test_a_killed_call_is_made_up_for(tmp_path, caches, monkeypatch):
    out = tmp_path / "out"
    told = config_of(caches("top_k:5"), out, pick="loss")

    def dies(*arguments, **named):
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(merge_steps, "commit_merged", dies)
        with pytest.raises(Exception, match="killed here"):
            merge(told)
    names = {path.name for path in out.glob("*.parquet")}
    assert names
    merge(told)
    assert (
        {shard.name for shard in Cache.open(out).shards} == names == {p.name for p in out.glob("*.parquet")}
    )


def test_a_mean_of_classifiers_is_that_of_plain_models(tmp_path):
    rows = [row | {"label": n % 3} for n, row in enumerate(documents(9))]
    corpus, paths, folders = write_jsonl(tmp_path / "c.jsonl", rows), [], []
    for seed in (0, 1):
        folders.append(models.classifier(tmp_path / f"t{seed}", seed=seed))
        paths.append(tmp_path / f"c{seed}")
        told = {
            "task": "sequence-classification",
            "label_field": "label",
            "max_length": 24,
            "scalars": SCALARS,
        }
        run(corpus, folders[-1], paths[-1], **told)
    merge(
        MergeConfig(
            caches={str(paths[0]): 3.0, str(paths[1]): 1.0}, out=str(tmp_path / "out"), show_progress=False
        )
    )
    found = all_rows(Cache.open(tmp_path / "out"))
    found.check("merged", deep=True)
    each = [
        transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval() for folder in folders
    ]
    labels, gold = found.ragged("labels"), found.gold_logprob()
    for row in range(len(found)):
        ids = torch.from_numpy(found.input_ids.row(row).astype(np.int64))[None]
        types = torch.from_numpy(found.ragged("token_type_ids").row(row).astype(np.int64))[None]
        with torch.no_grad():
            said = [
                model(input_ids=ids, token_type_ids=types).logits[0].softmax(-1).numpy() for model in each
            ]
        wanted = 0.75 * said[0] + 0.25 * said[1]
        order = found.kept_ids.reshape(-1, 3)[row]
        assert np.exp(found.kept_logprobs().reshape(-1, 3)[row]) == pytest.approx(wanted[order], **CODES)
        assert gold.row(row)[0] == pytest.approx(np.log(wanted[labels.row(row)[0]]), abs=0.06)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_of_classes_apart_and_of_values_the_mean_is_of_each(tmp_path, corpus, kind):
    paths = [tmp_path / "a", tmp_path / "b"]
    for seed, path in enumerate(paths):
        made = models.classifier(tmp_path / f"t{seed}", seed=seed, num_labels=2, problem_type=kind)
        run(corpus, made, path, task="sequence-classification", max_length=24)
    merge(
        MergeConfig(
            caches={str(paths[0]): 3.0, str(paths[1]): 1.0}, out=str(tmp_path / "out"), show_progress=False
        )
    )
    first, second, merged = (all_rows(Cache.open(path)) for path in (*paths, tmp_path / "out"))
    a, b, found = (rows.ragged("logits").values.astype(np.float64) for rows in (first, second, merged))
    if kind == "regression":
        assert found == pytest.approx(0.75 * a + 0.25 * b, rel=1e-5, abs=1e-6)
    else:
        sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
        assert sigmoid(found) == pytest.approx(0.75 * sigmoid(a) + 0.25 * sigmoid(b), rel=1e-5)
        merge(config_of([Cache.open(path) for path in paths], tmp_path / "surer", pick="entropy"))
        picked = all_rows(Cache.open(tmp_path / "surer")).ragged("logits").values.reshape(-1, 2)
        nats = [-(sigmoid(z) * np.log(sigmoid(z)) + sigmoid(-z) * np.log(sigmoid(-z))) for z in (a, b)]
        surer = np.stack([each.reshape(-1, 2).sum(1) for each in nats]).argmin(0)
        assert np.array_equal(
            picked, np.where(surer[:, None] == 0, a.reshape(-1, 2), b.reshape(-1, 2)).astype("f4")
        )


@pytest.mark.parametrize("keep", KEPT[1:])
def test_a_mean_of_what_is_cut_or_drawn_is_refused(tmp_path, caches, capsys, keep):
    assert say(*(cache.storage.root for cache in caches(keep)), "--out", tmp_path / "out") == 2
    assert "a mean of distributions that are cut or drawn is under no policy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_refused(tmp_path, caches, capsys):
    (a, b), (c, _), out = caches("all"), caches("top_k:5"), tmp_path / "out"
    weighed = [f"{a.storage.root}=1", f"{b.storage.root}=1"]
    for words, message in (
        ((a, c), "two caches cannot be joined: they differ"),
        ((a,), "two caches or more are merged"),
        ((a, a), "a cache stands there twice"),
        ((weighed[0], b), "all caches have a weight, or none has"),
        ((weighed[0], f"{b.storage.root}=0"), "weights are above 0"),
        ((*weighed, "--pick", "loss"), "caches have no weights where one is picked"),
    ):
        roots = [word if isinstance(word, str) else word.storage.root for word in words]
        assert say(*roots, "--out", out) == 2, message
        assert message in capsys.readouterr().err
    assert say(a.storage.root, b.storage.root, "--out", a.storage.root) == 2
    merge(config_of((a, b), out))
    told = {a.storage.root: 0.9, b.storage.root: 0.1}
    with pytest.raises(MismatchError, match="other teachers, other weights"):
        merge(MergeConfig(caches=told, out=str(out), show_progress=False))


def test_caches_without_a_common_example_are_refused(tmp_path, teacher):
    paths = [tmp_path / "a", tmp_path / "b"]
    for number, path in enumerate(paths):
        run(write_jsonl(tmp_path / f"{number}.jsonl", documents(3, start=9 * number)), teacher, path)
    with pytest.raises(UsageError, match="no example in common"):
        merge(config_of([Cache.open(path) for path in paths], tmp_path / "out", pick="loss"))


def test_a_student_learns_from_it(tmp_path, caches):
    told = config_of(caches("threshold:1/8"), tmp_path / "out", pick="entropy")
    merge(told)
    (tmp_path / "student.json").write_text(json.dumps(STUDENT))
    student = TrainConfig(cache=told.out, student=str(tmp_path / "student.json"), losses=["kl=1"])
    arguments = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1.0}
    assert train(student, StudentArguments(output_dir=str(tmp_path / "s"), **arguments)).steps == 2
