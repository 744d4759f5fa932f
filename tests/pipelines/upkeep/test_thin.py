"""`thin` by the command: a smaller cache in one commit, an image of the larger, and never anything in between."""

import json
import re

import numpy as np
import pytest

import teachonce
from pipelines import CompactConfig, ForgetConfig, ThinConfig, compact, forget, thin
from pipelines.keep.servable import thinned_spec
from pipelines.upkeep import derived, thin_steps
from schemas import Cache
from schemas.errors import ConflictError, CorruptionError, MismatchError, UsageError
from schemas.policies import KeepAll, Threshold, TopK, TopP, default_keep, parse_keep
from schemas.rows.rows import Rows
from schemas.versions.commits import read_version
from schemas.versions.history import LEASES_FOLDER, orphans
from tests.pipelines.distributions import shapes, spec_of, whole_rows
from tests.pipelines.helpers import all_rows, column, documents, read, run, same_columns, write_jsonl
from tests.synthetic import TOKENIZER_FILES, add, begin
from tests.trainer.tiny import STUDENT
from trainer import StudentArguments, TrainConfig, train

FEATURES = {"features": ("mean:-1", "last:0"), "keep_text": True}


def config(cache, out, keep, **changes):
    return ThinConfig(cache=str(cache), out=str(out), keep=keep, **changes)


@pytest.fixture(scope="module")
def caches(tmp_path_factory, teacher, corpus):
    """Caches of the real precompute over one corpus, by policy."""
    made = {}

    def cache_of(keep):
        if str(keep) not in made:
            path = tmp_path_factory.mktemp("kept") / "cache"
            run(corpus, teacher, path, keep=keep, scalars=("entropy", "gold"), unit_tokens=400, **FEATURES)
            made[str(keep)] = Cache.open(path)
        return made[str(keep)]

    return cache_of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (KeepAll(), TopK(k=5)),
        (TopK(k=20), TopK(k=5)),
        (TopP(p=0.9, k=20), TopP(p=0.9, k=5)),
    ],
    ids=str,
)
def test_the_largest_are_row_for_row_those_of_a_precompute(tmp_path, capsys, caches, old, new):
    larger, expected = caches(old), caches(new)
    root = larger.storage.root
    assert teachonce.main(["thin", root, f"--keep={new}", f"--out={tmp_path / 'out'}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = Cache.open(tmp_path / "out")
    assert found.header.to_json() == expected.header.to_json()
    assert found.verify().examples == larger.totals.examples == told["examples"]
    # the teacher's own features differ in their last bit from run to run
    features = [name for name in all_rows(found).data if name.startswith("feature_")]
    same_columns(found, expected, but=features)
    for name in features:
        np.testing.assert_array_equal(column(all_rows(found), name), column(all_rows(larger), name))
    assert (told["size_bytes_before"], told["size_bytes"]) == (larger.size_bytes, found.size_bytes)
    assert told["size_bytes"] < told["size_bytes_before"]
    assert len(found.shards) == len(larger.shards) == told["added_shards"] > 1
    for name in ("tokens", "positions", "entries", "length_histogram"):
        assert getattr(found.totals, name) == getattr(expected.totals, name)
    assert found.totals.entropy_sum_nats == pytest.approx(expected.totals.entropy_sum_nats, rel=0.02)
    assert found.totals.kept_mass_sum == pytest.approx(expected.totals.kept_mass_sum, rel=0.02)
    provenance = found.record.provenance
    assert (provenance["thinned_from"], provenance["thinned_version"]) == (root, "0")
    assert provenance["device"] == "cpu"
    assert found.storage.names(LEASES_FOLDER) == []
    assert orphans(found.storage, read_version(found.storage)) == []


def test_a_student_trains_from_it_and_a_chain_goes_on(tmp_path, capsys, caches):
    """all -> threshold -> threshold by the verb; and a training run from what came out of `all`."""
    root = caches(KeepAll()).storage.root
    one, two = tmp_path / "one", tmp_path / "two"
    assert teachonce.main(["thin", root, "--keep=threshold:1/32,k=2", f"--out={one}"]) == 0
    assert teachonce.main(["thin", str(one), "--keep=threshold:1/8", f"--out={two}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("thinned: all, ")
    assert "to threshold:0.03125,k=2, " in lines[0]
    assert all(line.endswith(f"version 0 of {out}") for line, out in zip(lines, (one, two), strict=True))
    first, second = Cache.open(one), Cache.open(two)
    assert second.verify().examples == first.verify().examples
    assert second.totals.entries < first.totals.entries < caches(KeepAll()).totals.entries
    rows = all_rows(second)
    weights = np.exp(rows.kept_logprobs().astype(float)).sum() + rows.sampled_counts.sum() / 8
    assert weights / rows.num_positions == pytest.approx(1, abs=0.03)
    small = tmp_path / "small"
    thin(config(root, small, TopK(k=8)))
    student = {**STUDENT, "vocab_size": first.spec.vocab_size}
    (tmp_path / "student.json").write_text(json.dumps(student))
    done = train(
        TrainConfig(cache=str(small), student=str(tmp_path / "student.json"), losses=["kl=1.0"]),
        StudentArguments(output_dir=str(tmp_path / "trained"), max_steps=2, use_cpu=True),
    )
    assert done.steps == 2


def test_nights_are_followed_and_what_left_leaves(tmp_path, capsys, teacher):
    """A second call thins only new shards; pruned rows leave; forgotten ones stay out; a compaction changes no row."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    corpora = [
        write_jsonl(
            tmp_path / f"{night}.jsonl", [{**d, "id": d["text"][:2]} for d in documents(4, start=4 * night)]
        )
        for night in range(2)
    ]
    named = {"id_field": "id", "scalars": ("entropy",)}
    run(corpora[0], teacher, cache, **named)
    asked = config(cache, out, Threshold(tau=1 / 16))
    assert thin(asked).added_shards == 1
    run(corpora[1], teacher, cache, **named)
    done = thin(asked)
    assert (done.committed, done.version, done.source_version, done.added_shards, done.shards) == (
        True,
        1,
        1,
        1,
        2,
    )
    before = Cache.open(out)
    again = thin(asked)
    assert (again.committed, again.version, again.added_shards) == (False, 1, 0)
    flags = ["thin", str(cache), "--keep=threshold:1/16", f"--out={out}"]
    assert teachonce.main(flags) == 0
    assert capsys.readouterr().out == f"nothing new: version 1 of {out} is thinned from version 1\n"
    compact(CompactConfig(cache=str(cache)))
    assert (thin(asked).shards, Cache.open(out).verify().examples) == (1, before.totals.examples)
    same_columns(Cache.open(out), before)
    gone = all_rows(before).array("document_id")[0]
    assert forget(ForgetConfig(cache=str(out), ids=(gone,))).examples > 0
    kept = Cache.open(out).totals.examples
    thin(asked)
    assert gone in all_rows(Cache.open(cache)).array("document_id")
    assert gone not in all_rows(Cache.open(out)).array("document_id")
    assert Cache.open(out).verify().examples == kept
    run(corpora[1], teacher, cache, prune=True, max_prune_fraction=1.0, **named)
    thin(asked)
    expected = read(cache).keys() - {e for e, d in read(cache).items() if d["document_id"] == gone}
    assert read(out).keys() == expected


@pytest.fixture
def larger(tmp_path):
    """A cache of two shards, made by hand."""
    spec = spec_of(KeepAll())
    rows = whole_rows(shapes(40, count=14), spec)
    storage = begin(tmp_path / "cache", spec)
    half = len(rows) // 2
    add(storage, None, [rows.take(np.arange(half)), rows.take(np.arange(half, len(rows)))], run="first")
    return Cache.open(storage.root)


def task_of(larger, out):
    """What the steps of one call are told."""
    tasks, real = [], thin_steps.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pipelines.upkeep.thin.build", lambda p, task, *rest: (tasks.append(task), real(p, task, *rest))
        )
        thin(config(larger.storage.root, out, Threshold(tau=1 / 8)))
    return tasks[0]


def test_a_bundle_that_runs_twice_stores_the_same_bytes(tmp_path, larger):
    task = task_of(larger, tmp_path / "out")
    found = Cache.open(tmp_path / "out")
    names = {shard.name for shard in found.shards}
    for shard in larger.shards:
        unit, _ = thin_steps.name_unit(tuple(shard), task)
        line = thin_steps.thin_unit((unit, {"source": [tuple(shard)], "there": []}), task)
        assert line.name in names
    assert {file.name for file in found.storage.files()} == names
    assert found.verify().examples == larger.totals.examples
    assert found.save_tokenizer(tmp_path / "tokenizer")
    assert {name: found.tokenizer_file(name) for name in found.header.tokenizer} == TOKENIZER_FILES
    assert found.header.teacher == larger.header.teacher


def test_a_call_that_died_is_made_good_by_the_next(tmp_path, monkeypatch, larger):
    out = tmp_path / "out"
    asked = config(larger.storage.root, out, TopK(k=3))

    def die(*_, **__):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(derived, "commit_change", die)
        with pytest.raises(Exception, match="killed"):
            thin(asked)
    left = orphans(Cache.open(larger.storage.root).storage.at(out), None)
    assert len(left) == 2
    done = thin(asked)
    assert (done.committed, done.version, done.shards) == (True, 0, 2)
    assert {file.name for file in left} == {shard.name for shard in Cache.open(out).shards}
    assert Cache.open(out).storage.names(LEASES_FOLDER) == []


def test_a_broken_shard_commits_nothing(tmp_path, larger):
    path = tmp_path / "cache" / larger.shards[1].name
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(CorruptionError, match=larger.shards[1].name):
        thin(config(larger.storage.root, tmp_path / "out", TopK(k=3)))
    assert not (tmp_path / "out" / "_teachonce" / "spec.json").exists()


def test_rows_that_go_missing_commit_nothing(tmp_path, larger):
    task = task_of(larger, tmp_path / "out")
    with pytest.raises(CorruptionError, match="do not hold what was committed"):
        thin_steps.commit_thinned([tuple(thin_steps.no_shard("u", read_examples=1))], task)


@pytest.mark.parametrize("times", [1, 2])
def test_another_call_that_commits_meanwhile_is_met(tmp_path, monkeypatch, larger, times):
    """Once it begins again by itself, and finds that all is there; twice it is told."""
    out, real, left = tmp_path / "out", derived.commit_change, [times]

    def late(storage, header, base, change, **fields):
        if left[0]:
            left[0] -= 1
            part = change._replace(added=change.added[:1]) if times == 2 else change
            real(storage, header, base, part, **{**fields, "run": f"thin-other-{left[0]}"})
        return real(storage, header, base, change, **fields)

    monkeypatch.setattr(derived, "commit_change", late)
    asked = config(larger.storage.root, out, TopK(k=3))
    if times == 2:
        with pytest.raises(ConflictError, match="moved on"):
            thin(asked)
        return
    assert (thin(asked).committed, Cache.open(out).verify().shards) == (False, 2)


def test_what_is_no_image_of_this_cache_is_left_alone(tmp_path, larger):
    root, out = larger.storage.root, tmp_path / "out"
    begin(tmp_path / "other", larger.spec)
    with pytest.raises(MismatchError, match=r"--keep: cache all, run top_k:3"):
        thin(config(root, tmp_path / "other", TopK(k=3)))
    thin(config(root, out, TopK(k=3)))
    twin = begin(tmp_path / "twin", larger.spec)
    rows = whole_rows(shapes(40, count=7, seed=5), larger.spec)
    add(twin, None, [rows], run="another")
    with pytest.raises(MismatchError, match=rf"not thinned from this cache.*got {root}"):
        thin(config(twin.root, out, TopK(k=3)))
    small = Cache.open(out)
    more = Rows(spec=small.spec, data=all_rows(small).data).take(np.arange(1))
    add(
        small.storage,
        read_version(small.storage),
        [more],
        run="20990101-a-precompute",
        header_hash=small.record.header_hash,
        provenance=small.record.provenance,
    )
    with pytest.raises(MismatchError, match="run 20990101-a-precompute"):
        thin(config(root, out, TopK(k=3)))


def test_the_helps_first_example_serves_on_a_cache_of_the_default_policy(capsys):
    with pytest.raises(SystemExit):
        teachonce.main(["thin", "--help"])
    keep = re.search(r"teachonce thin \./cache --keep (\S+)", capsys.readouterr().out)[1]
    assert thinned_spec(spec_of(default_keep(True), 49_152), parse_keep(keep)).keep == parse_keep(keep)


def test_a_wrong_flag_is_one_line(tmp_path, capsys, larger):
    root = larger.storage.root
    for flags, words in (
        (["--keep=top_k:3", f"--out={root}"], "--out is the cache itself"),
        (["--keep=best", "--out=o"], "--keep names no policy"),
        (["--keep=all", "--out=o"], "nothing would change"),
        (["--keep=top_k:100000", "--out=o"], "keeps every score"),
        (["--keep=top_k:3", "--out=o", "--scalars=gold"], "does not store gold"),
        (["--keep=top_k:3", "--out=o", "--temperatures", "1", "2"], "not asked at temperatures 2.0"),
        (["--keep=top_k:3", "--out=o", "--own_logits"], "make no spec"),
        (["--keep=top_k:3"], "--out"),
        (["--keep=top_k:3", "--out=o", "--", "--runner=DaskRunner"], "DaskRunner is refused"),
    ):
        assert teachonce.main(["thin", root, *flags]) == 2
        err = capsys.readouterr().err
        assert (words in err, err.count("\n")) == (True, 1), err
    assert teachonce.main(["thin", str(tmp_path / "nothing"), "--keep=top_k:3", "--out=o"]) == 2
    with pytest.raises(ValueError, match="row_group_tokens"):
        config("c", "o", TopK(k=3), row_group_tokens=0)
    small = tmp_path / "small"
    thin(config(root, small, TopK(k=3)))
    with pytest.raises(UsageError, match="tail is not stored"):
        thin(config(small, tmp_path / "o", Threshold(tau=0.1)))
