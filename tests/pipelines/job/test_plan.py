"""A plan says what the run that follows does, and writes nothing into the cache."""

import json
import random
import shutil
from pathlib import Path

import pytest

import pipelines.job.run as run_module
import pipelines.scoring.sample
import teachonce
from pipelines.cli.plan import plan_lines
from pipelines.corpus.examples import Example
from pipelines.job.cost import break_even, expect
from pipelines.job.plan import plan
from pipelines.scoring.sample import Measured, SmallestIds, smallest
from schemas.errors import MismatchError, TooManyMissingError, TooManyRejectsError, UsageError
from tests.pipelines.helpers import config, documents, run, write_jsonl

UNITS = {"unit_tokens": 400, "row_group_tokens": 100}
SAME = (
    *("documents", "blank_lines", "duplicates", "known_documents", "new_documents", "adopted_documents"),
    *("remembered_documents", "forgotten_documents", "truncated_pairs", "rejects", "adopted_examples"),
    *("pruned_examples", "replaced_examples", "prune_withheld"),
)


def listing(folder):
    """Every file, its bytes and when it was written."""
    every = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in every]


def planned_and_run(corpus, teacher, cache, **changes):
    """A plan and the run that follows; the plan has changed nothing."""
    before = listing(cache)
    planned = plan(config(corpus, teacher, cache, **UNITS, **changes))
    assert listing(cache) == before
    assert Path(cache).exists() == bool(before)
    done = run(corpus, teacher, cache, **UNITS, **changes)
    assert {name: getattr(planned, name) for name in SAME} == {name: getattr(done, name) for name in SAME}
    assert (planned.examples, planned.tokens) == (done.totals.examples, done.totals.tokens)
    return planned, done


@pytest.fixture
def nightly(tmp_path):
    """A corpus with repeats, blank lines and a record that is rejected."""
    records = [*documents(30), *documents(5), b"", {"text": ""}]
    return write_jsonl(tmp_path / "corpus.jsonl", records)


def test_a_new_cache(tmp_path, nightly, teacher):
    planned, done = planned_and_run(nightly, teacher, tmp_path / "c", max_reject_fraction=0.1)
    assert (planned.base, planned.refusals) == (-1, ())
    assert (planned.duplicates, planned.blank_lines, sum(planned.rejects.values())) == (5, 1, 1)
    assert planned.positions == done.totals.positions
    assert (planned.sample.tokens, planned.sample.entries) == (done.totals.tokens, done.totals.entries)
    assert planned.sample.padded_tokens == done.padded_tokens
    assert abs(planned.expected.shards - done.shards) <= 1 + 0.1 * done.shards
    assert planned.expected.size_bytes == pytest.approx(done.size_bytes, rel=0.02)
    assert planned.expected.wall_seconds > planned.sample.unit_seconds > planned.sample.teacher_seconds > 0
    assert planned.plan_seconds > planned.sample.open_seconds > 0


def test_a_small_sample_tells_shards_and_bytes_within_a_fifth(tmp_path, nightly, teacher):
    planned = plan(
        config(nightly, teacher, tmp_path / "c", **UNITS, max_reject_fraction=1.0), sample_tokens=200
    )
    done = run(nightly, teacher, tmp_path / "c", **UNITS, max_reject_fraction=1.0)
    assert 200 <= planned.sample.tokens < 200 + 24 < planned.tokens
    assert planned.expected.shards == pytest.approx(done.shards, rel=0.2)
    assert planned.expected.size_bytes == pytest.approx(done.size_bytes, rel=0.2)


def test_a_night_with_an_orphan_an_edit_and_what_is_pruned(tmp_path, teacher):
    first = [{"id": f"d{i}", **document} for i, document in enumerate(documents(24))]
    cache = tmp_path / "c"
    run(write_jsonl(tmp_path / "first.jsonl", first), teacher, cache, id_field="id", **UNITS)
    added = [{"id": f"e{i}", **document} for i, document in enumerate(documents(8, start=24))]
    run(write_jsonl(tmp_path / "e.jsonl", added[:4]), teacher, tmp_path / "crashed", id_field="id", **UNITS)
    for shard in (tmp_path / "crashed").glob("*.parquet"):
        shutil.copy(shard, cache)
    edited = [*first[2:22], {"id": "d22", "text": "d22 says something else tonight"}, *added]
    tonight = write_jsonl(tmp_path / "tonight.jsonl", edited)
    flags = {"id_field": "id", "prune": True, "max_prune_fraction": 0.5}
    planned, done = planned_and_run(tonight, teacher, cache, **flags)
    assert planned.base == 0
    assert (planned.known_documents, planned.adopted_documents, planned.new_documents) == (20, 4, 5)
    assert min(planned.adopted_examples, planned.pruned_examples, planned.replaced_examples) > 0
    assert planned.moved_shards + planned.expected.shards >= done.shards > planned.expected.shards
    assert any("examples to prune" in name for name, _ in plan_lines(planned))


def test_nothing_new_opens_no_teacher(whole, corpus, teacher, monkeypatch):
    def refuse(*_):
        raise AssertionError("the teacher was opened for nothing")

    monkeypatch.setattr(pipelines.scoring.sample, "open_scorer", refuse)
    before = listing(whole[0])
    planned = plan(config(corpus, teacher, whole[0], beam_options=("--direct_runner_bundle_repeat=2",)))
    assert listing(whole[0]) == before
    assert (planned.documents, planned.known_documents, planned.examples) == (24, 24, 0)
    assert (planned.sample, planned.expected, planned.refusals) == (None, None, ())


def test_what_the_run_would_refuse_is_told_by_worker_processes_too(tmp_path, teacher, whole, monkeypatch):
    few = write_jsonl(tmp_path / "few.jsonl", [*documents(3), {"text": "new tonight"}, b"{broken", b"[]"])
    claims, forgotten = [], run_module.forget_claims
    monkeypatch.setattr(run_module, "forget_claims", lambda run: claims.append(run) or forgotten(run))
    planned = plan(config(few, teacher, whole[0], prune=True, workers=2), sample_tokens=1)
    assert (planned.workers, planned.sample.examples, len(claims)) == (2, 1, 1)
    rejected, missing = planned.refusals
    assert "2 of 6 documents are rejected" in rejected
    assert "--prune would remove" in missing
    copy = shutil.copytree(whole[0], tmp_path / "copy")
    with pytest.raises(TooManyRejectsError, match="2 of 6 documents are rejected"):
        run(few, teacher, copy, prune=True)
    good = write_jsonl(tmp_path / "good.jsonl", documents(3))
    with pytest.raises(TooManyMissingError) as caught:
        run(good, teacher, copy, prune=True)
    assert str(caught.value).split(":")[0] == missing.split(":")[0]
    with pytest.raises(MismatchError, match="--max_length: cache 24, run 12"):
        plan(config(good, teacher, whole[0], max_length=12))


def test_an_engine_elsewhere_needs_a_place_that_both_see(tmp_path, corpus, teacher):
    flags = ("--runner=FlinkRunner", "--flink_master=localhost:1")
    with pytest.raises(UsageError, match="--temp_location"):
        plan(config(corpus, teacher, tmp_path / "c", beam_options=flags))
    assert not (tmp_path / "c").exists()


def test_the_command(tmp_path, corpus, teacher, capsys):
    flags = ["--corpus", str(corpus), "--teacher", str(teacher), "--task", "causal-lm", "--max_length", "24"]
    flags += [
        "--cache",
        str(tmp_path / "c"),
        "--json",
        "--epochs",
        "2",
        "--report",
        str(tmp_path / "plan.json"),
    ]
    flags += ["--no_progress", "--", f"--temp_location={tmp_path / 'temp'}"]
    assert teachonce.main(["plan", *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    report = json.loads((tmp_path / "plan.json").read_text())
    assert {name: report[name] for name in told} == told
    assert (report["outcome"], report["status"], report["reason"]) == ("planned", 0, None)
    assert (told["new_documents"], told["epochs"], told["sample"]["tokens"]) == (24, 2, told["tokens"])
    assert list((tmp_path / "temp").iterdir()) == []
    assert not (tmp_path / "c").exists()


def test_its_help_has_three_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        teachonce.main(["plan", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.count("teachonce plan --corpus") == 3
    assert "--sample_tokens" in text
    assert "--prune" in text


def examples(count):
    chooser = random.Random(0)
    return [
        tuple(
            Example(chooser.randbytes(16), b"", 0, 1, bytes(4 * chooser.randrange(2, 9)), *[None] * 6, "", 0)
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("tokens", [1, 40, 300, 10_000])
def test_the_sample_is_the_same_however_it_is_gathered(tokens):
    every = examples(60)
    once = smallest(every, tokens)
    assert [example[0] for example in once] == sorted(example[0] for example in every)[: len(once)]
    counts = [Example(*example).num_tokens for example in once]
    assert sum(counts[:-1]) < tokens
    assert sum(counts) >= tokens or len(once) == len(every)
    combine, chooser = SmallestIds(tokens), random.Random(1)
    for _ in range(5):
        parts = [combine.create_accumulator() for _ in range(4)]
        for example in chooser.sample(every, len(every)) + every[:7]:
            place = chooser.randrange(4)
            parts[place] = combine.add_input(parts[place], example)
        assert combine.extract_output(combine.merge_accumulators(parts)) == once


def test_break_even_is_the_smallest_number_of_students():
    for job, forward, replay, epochs in (
        (100.0, 10.0, 1.0, 1),
        (90.0, 10.0, 1.0, 1),
        (100.0, 10.0, 1.0, 3),
        (0.5, 10.0, 1.0, 1),
    ):
        n = break_even(job, forward_seconds=forward, replay_seconds=replay, epochs=epochs)
        assert n == next(n for n in range(1, 99) if job + n * epochs * replay < n * epochs * forward)
    assert break_even(1.0, forward_seconds=2.0, replay_seconds=2.0, epochs=1) is None
    assert break_even(1.0, forward_seconds=1.0, replay_seconds=2.0, epochs=9) is None


def test_a_sample_is_scaled():
    """8,192 tokens in one row group, of a run of a million: four shards, 32 row groups."""
    fields = dict.fromkeys(Measured._fields, 0) | {"tokens": 2**13, "entries": 2**13, "row_groups": 1}
    fields |= {"row_group_bytes": 2**13 * 20, "footer_bytes": 1000}
    fields |= {"teacher_seconds": 1.0, "unit_seconds": 2.0, "decode_seconds": 0.125}
    given = {"tokens": 2**20, "num_units": 4, "row_group_tokens": 2**15, "overhead_seconds": 50.0}
    given |= {"workers": 1}
    found = expect(Measured(**fields), examples=10_000, epochs=2, **given)
    assert (found.shards, found.size_bytes) == (4, 2**20 * 20 + 36 * 1000)
    assert found.wall_seconds == 50 + 128 * 2
    assert (found.tokens_per_second, found.teacher_tokens_per_second) == (2**12, 2**13)
    assert found.students == 306 // (2 * (128 - 16)) + 1
    assert expect(Measured(**fields), examples=2, epochs=2, **given).shards == 2
    three = expect(Measured(**fields), examples=10_000, epochs=2, **given | {"workers": 3})
    assert three.wall_seconds == 50 + 128 * 2 / 2, "one of three has two of the four shards"
    assert three.students == found.students, "what it costs is the same"
