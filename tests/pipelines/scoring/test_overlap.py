"""Units beside each other: one is sealed while the teacher is at the next; what fails, fails the run, and nothing of it
goes on."""

import functools
import threading

import pytest

from pipelines.scoring import overlap
from pipelines.scoring.units import UnitScorer
from schemas import Cache
from schemas.errors import TeachonceError
from tests.pipelines import models
from tests.pipelines.helpers import documents, read, run, write_jsonl

UNITS = {"unit_tokens": 400}
LONG = 30.0


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return models.causal_teacher(tmp_path_factory.mktemp("overlap") / "teacher")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("overlap") / "corpus.jsonl", documents(24))


class Scored:
    """What units are at: how many are in work at once, and which were asked of the teacher."""

    def __init__(self, monkeypatch):
        self.asked, self.stored, self.most, self._inside = [], [], 0, 0
        self.next_is_asked = threading.Event()
        self._score, self._asked, self._store = UnitScorer.score, UnitScorer._asked, UnitScorer._store
        for name, own in {"score": self.score, "_asked": self.ask, "_store": self.store}.items():
            monkeypatch.setattr(UnitScorer, name, functools.partialmethod(_called, own))

    def score(self, scorer, unit, examples):
        self._inside += 1
        self.most = max(self.most, self._inside)
        try:
            return self._score(scorer, unit, examples)
        finally:
            self._inside -= 1

    def ask(self, *given):
        if self.asked:
            self.next_is_asked.set()
        self.asked.append(threading.get_ident())
        return self._asked(*given)

    def store(self, scorer, unit, encoded):
        self.stored.append(unit)
        return self._store(scorer, unit, encoded)


@pytest.fixture
def scored(monkeypatch):
    return Scored(monkeypatch)


def test_a_unit_is_stored_while_the_teacher_is_at_the_next_and_two_are_in_work(
    tmp_path, corpus, teacher, scored, monkeypatch
):
    met = []

    def store(scorer, unit, encoded):
        if not scored.stored:
            met.append(scored.next_is_asked.wait(LONG))
        return Scored.store(scored, scorer, unit, encoded)

    monkeypatch.setattr(UnitScorer, "_store", store)
    summary = run(corpus, teacher, tmp_path / "c", **UNITS)
    assert met == [True]
    assert (len(scored.asked), summary.shards) == (summary.shards, len(scored.stored))
    assert summary.shards > 3
    assert scored.most == overlap.IN_WORK
    monkeypatch.undo()
    whole = run(corpus, teacher, tmp_path / "whole")
    assert read(tmp_path / "c").keys() == read(tmp_path / "whole").keys()
    assert Cache.open(tmp_path / "c").verify().examples == whole.totals.examples
    assert not units_in_work()


def test_a_write_that_fails_is_raised_and_no_unit_goes_on(tmp_path, corpus, teacher, scored, monkeypatch):
    """The next unit is with the teacher when the first cannot be written: it ends at its next batch."""
    may_go_on = threading.Event()

    def fail(*_):
        assert scored.next_is_asked.wait(LONG)
        raise OSError(28, "No space left on device")

    def ask(scorer, side, examples, work, rejects):
        if scored.asked:
            scored.ask(scorer, side, examples[:1], work, rejects)
            assert may_go_on.wait(LONG)
        return scored.ask(scorer, side, examples, work, rejects)

    def ended(run):
        overlap._RUNS[run]._ended.set()
        may_go_on.set()
        end_units(run)

    end_units = overlap.end_units
    monkeypatch.setattr(UnitScorer, "_store", fail)
    monkeypatch.setattr(UnitScorer, "_asked", ask)
    monkeypatch.setattr("pipelines.job.run.end_units", ended)
    with pytest.raises(TeachonceError, match="No space left on device"):
        run(corpus, teacher, tmp_path / "c", **UNITS)
    assert scored.stored == []
    assert not (tmp_path / "c" / "_delta_log").exists()
    assert [path.name for path in (tmp_path / "c").glob("*.parquet")] == []
    assert not units_in_work()
    monkeypatch.undo()
    assert run(corpus, teacher, tmp_path / "c", **UNITS).committed


def test_a_unit_that_was_begun_is_refused_where_its_run_has_ended():
    threads = overlap.threads_of("a run")
    threads.refuse_more()
    overlap.end_units("a run")
    with pytest.raises(TeachonceError, match="the run has ended"):
        threads.refuse_more()
    assert overlap.threads_of("a run") is not threads
    overlap.end_units("a run")


def _called(scorer, own, *given):
    return own(scorer, *given)


def units_in_work():
    return [thread for thread in threading.enumerate() if thread.name.startswith("teachonce-unit")]
