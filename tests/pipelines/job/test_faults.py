"""No commit after a failure: whatever stage fails, the cache opens as before, and the next run makes it whole."""

import errno
import json
import shutil

import pytest

from pipelines.job import outcome
from pipelines.job import pipeline as job
from pipelines.job.run import run_once
from pipelines.scoring import handler
from schemas import Cache
from schemas.errors import (
    CacheError,
    ConflictError,
    CorruptionError,
    MismatchError,
    NoCacheError,
    TeachonceError,
    TooManyRejectsError,
    TruncatedFileError,
)
from schemas.storage import local_files
from schemas.versions import commits
from tests.pipelines import models
from tests.pipelines.helpers import compress, config, documents, read, run, write_jsonl


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """The session's 24 documents and 6 new ones."""
    return write_jsonl(tmp_path_factory.mktemp("more") / "more.jsonl", documents(30))


@pytest.fixture
def copy(tmp_path, whole):
    return shutil.copytree(whole[0], tmp_path / "copy")


def full_disk(monkeypatch, part):
    """A store that refuses every object whose name holds `part`, as a full disk does."""
    write = local_files.write

    def refuse(root, name, data, *, replace):
        if part in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(root, name, data, replace=replace)

    monkeypatch.setattr(local_files, "write", refuse)


def fail(*_, **__):
    raise RuntimeError("a fault")


def in_the_corpus(monkeypatch, corpus):
    path = compress(corpus, ".gz")
    path.write_bytes(path.read_bytes()[:-20])
    return path, TruncatedFileError, path.name


def at_the_gate(monkeypatch, corpus):
    corpus.write_bytes(corpus.read_bytes() + b"{}\n{}\n")
    return corpus, TooManyRejectsError, "2 of 32 documents"


def when_the_teacher_opens(monkeypatch, corpus):
    monkeypatch.setattr(handler, "open_teacher", fail)
    return corpus, TeachonceError, "a fault"


def when_the_shard_is_stored(monkeypatch, corpus):
    full_disk(monkeypatch, ".parquet")
    return corpus, CacheError, "No space left on device"


def when_the_summary_is_stored(monkeypatch, corpus):
    full_disk(monkeypatch, "_teachonce/runs")
    return corpus, CacheError, "No space left on device"


def in_the_last_step(monkeypatch, corpus):
    monkeypatch.setattr(outcome, "record_after", fail)
    return corpus, TeachonceError, "a fault"


def in_the_commit(monkeypatch, corpus):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(commits, "_write", refuse)
    return corpus, CacheError, "No space left on device"


STAGES = [
    in_the_corpus,
    at_the_gate,
    when_the_teacher_opens,
    when_the_shard_is_stored,
    when_the_summary_is_stored,
    in_the_last_step,
    in_the_commit,
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_fails_leaves_the_cache_as_it_was(copy, tmp_path, more, teacher, monkeypatch, stage):
    before = read(copy)
    corpus, kind, words = stage(monkeypatch, shutil.copy(more, tmp_path / "more.jsonl"))
    with pytest.raises(kind, match=words) as caught:
        run(corpus, teacher, copy)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    opened = Cache.open(copy)
    assert opened.version == 0
    assert read(opened).keys() == before.keys()
    opened.verify()


@pytest.mark.parametrize("stage", [when_the_shard_is_stored, when_the_summary_is_stored, in_the_commit])
def test_a_first_run_that_fails_leaves_no_cache_and_the_next_makes_it_whole(
    tmp_path, corpus, teacher, whole, monkeypatch, stage
):
    file, kind, words = stage(monkeypatch, corpus)
    with pytest.raises(kind, match=words):
        run(file, teacher, tmp_path / "c")
    with pytest.raises(NoCacheError):
        Cache.open(tmp_path / "c")
    monkeypatch.undo()
    assert run(corpus, teacher, tmp_path / "c").version == 0
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()
    Cache.open(tmp_path / "c").verify()


def runs_meanwhile(monkeypatch, *runs):
    """Before each of the next commits, another whole run."""
    finish, waiting = outcome.finish, list(runs)

    def meanwhile(*arguments):
        if waiting:
            monkeypatch.setattr(job, "finish", finish)
            waiting.pop(0)()
            monkeypatch.setattr(job, "finish", meanwhile)
        return finish(*arguments)

    monkeypatch.setattr(job, "finish", meanwhile)


def test_of_two_runs_that_began_at_one_version_the_second_is_told(copy, more, teacher, monkeypatch):
    runs_meanwhile(monkeypatch, lambda: run(more, teacher, copy))
    with pytest.raises(ConflictError, match="expected version 0, got version 1"):
        run_once(config(more, teacher, copy))
    assert Cache.open(copy).version == 1
    assert run(more, teacher, copy).committed is False


def test_the_second_of_two_runs_starts_again_by_itself_and_adopts_its_own_shards_less_what_is_live(
    tmp_path, copy, teacher, monkeypatch
):
    part = write_jsonl(tmp_path / "part.jsonl", documents(27))
    every = write_jsonl(tmp_path / "every.jsonl", documents(40))
    runs_meanwhile(monkeypatch, lambda: run(part, teacher, copy))
    scored = handler.UnitScorer.score
    asked = []
    monkeypatch.setattr(
        handler.UnitScorer,
        "score",
        lambda self, unit, members: asked.append(unit) or scored(self, unit, members),
    )
    summary = run(every, teacher, copy, unit_tokens=2000)
    assert (summary.version, summary.adopted_documents, summary.new_documents) == (2, 13, 0)
    assert summary.totals.examples == 0 < summary.adopted_examples
    assert len(asked) == 2  # once by each run: nothing was scored again
    assert Cache.open(copy).verify().examples == len(read(copy))
    assert run(every, teacher, copy).committed is False


def test_a_run_that_is_overtaken_twice_fails(tmp_path, copy, more, teacher, monkeypatch):
    others = [write_jsonl(tmp_path / f"{n}.jsonl", documents(n)) for n in (25, 26)]
    runs_meanwhile(monkeypatch, *(lambda file=file: run(file, teacher, copy) for file in others))
    with pytest.raises(ConflictError, match="expected version 1, got version 2"):
        run(more, teacher, copy)
    assert Cache.open(copy).verify().examples == len(read(copy))


def test_a_commit_step_that_runs_twice_commits_once(copy, more, teacher, monkeypatch):
    """What an engine does that loses a worker after its work was done."""
    finish = outcome.finish
    monkeypatch.setattr(job, "finish", lambda *arguments: (finish(*arguments), finish(*arguments))[1])
    summary = run(more, teacher, copy)
    assert (summary.version, summary.committed, Cache.open(copy).version) == (1, True, 1)
    assert Cache.open(copy).verify().examples == len(read(copy))


def test_a_unit_that_was_sealed_twice_enters_once(copy, more, teacher, monkeypatch):
    finish = outcome.finish
    monkeypatch.setattr(job, "finish", lambda run, lines, *rest: finish(run, [*lines, *lines[::-1]], *rest))
    summary = run(more, teacher, copy, unit_tokens=60)
    assert summary.shards > 1
    Cache.open(copy).verify()


def test_a_header_of_another_run_that_never_committed_is_refused_before_the_teacher(
    tmp_path, corpus, teacher, monkeypatch
):
    in_the_commit(monkeypatch, corpus)
    with pytest.raises(CacheError):
        run(corpus, teacher, tmp_path / "c")
    monkeypatch.undo()
    monkeypatch.setattr(handler, "open_teacher", fail)
    with pytest.raises(MismatchError, match=r"--max_length: cache 24, run 30"):
        run(corpus, teacher, tmp_path / "c", max_length=30)


def test_another_teacher_that_begins_the_same_new_cache_is_refused_at_the_commit(
    tmp_path, corpus, teacher, monkeypatch
):
    other = models.causal_teacher(tmp_path / "other", seed=3)
    finish = outcome.finish

    def meanwhile(*arguments):
        monkeypatch.setattr(job, "finish", finish)
        run(corpus, other, tmp_path / "c")
        return finish(*arguments)

    monkeypatch.setattr(job, "finish", meanwhile)
    with pytest.raises(MismatchError, match="another run has begun this cache"):
        run(corpus, teacher, tmp_path / "c")
    assert Cache.open(tmp_path / "c").verify().examples > 0


def test_a_shard_that_is_not_where_the_commit_says_stops_it(copy, more, teacher, monkeypatch):
    """A worker that wrote to a disk of its own, or a vacuum that came between."""
    finish = outcome.finish

    def lose(run, lines, *rest):
        for line in lines:
            (copy / line.name).unlink()
        return finish(run, lines, *rest)

    monkeypatch.setattr(job, "finish", lose)
    with pytest.raises(CacheError, match="1 of 1 finished shards are not there; nothing was committed"):
        run(more, teacher, copy)
    assert Cache.open(copy).version == 0


def test_a_tokenizer_that_a_killed_first_run_left_is_replaced_by_ones_own(tmp_path, corpus, teacher):
    left = tmp_path / "c" / "_teachonce" / "tokenizer" / "tokenizer.json"
    left.parent.mkdir(parents=True)
    left.write_text("another teacher's")
    run(corpus, teacher, tmp_path / "c")
    Cache.open(tmp_path / "c").verify()


def test_a_cache_whose_ids_are_damaged_stops_the_run(copy, more, teacher):
    shard = next(copy.glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[4 : len(data) // 2] = b"\0" * len(data[4 : len(data) // 2])
    shard.write_bytes(data)
    with pytest.raises(CorruptionError, match=shard.name):
        run(more, teacher, copy)
    assert Cache.open(copy).version == 0


def test_a_runs_summary_stays_in_the_cache(whole):
    cache, summary = whole
    stored = json.loads((cache / "_teachonce" / "runs" / f"{summary.run}.json").read_text())
    assert type(summary).from_json(stored) == summary
