"""What a smaller cache was told to forget stays out of it, also beside a `forget` that runs meanwhile."""

import pytest

from pipelines import ThinConfig, thin
from pipelines.upkeep import thin as thin_run
from schemas import Cache
from schemas.errors import CacheError, CorruptionError
from schemas.policies import TopK
from schemas.storage.storage import Storage
from schemas.versions.history import living_runs
from tests.pipelines.helpers import read, run, write_jsonl
from tests.pipelines.people import FLAGS, call, document_of, people, traces


@pytest.fixture
def small(nights, tmp_path):
    """The call that keeps a smaller cache of two nights, and that cache."""
    asked = ThinConfig(cache=str(nights[0]), out=str(tmp_path / "small"), keep=TopK(k=3))
    assert thin(asked).committed
    return asked, tmp_path / "small"


def test_forget_waits_for_a_thinning_that_lives_and_else_turns_its_commit_away(
    small, teacher, tmp_path, monkeypatch
):
    asked, out = small
    run(write_jsonl(tmp_path / "more.jsonl", people(20)), teacher, asked.cache, **FLAGS)
    digest, examples = document_of(asked.cache, "user-19")
    real, forced = thin_run.remembered_names, []

    def meanwhile(storage, folder):
        names = real(storage, folder)
        if not forced:
            with pytest.raises(CacheError, match=r"a run lives.*thin-"):
                call(out, "user-19")
            forced.append(call(out, "user-19", force=True))
        return names

    monkeypatch.setattr(thin_run, "remembered_names", meanwhile)
    done = thin(asked)
    assert (forced[0].version, forced[0].examples, done.version) == (1, 0, 2)
    assert read(out).keys() == read(asked.cache).keys() - set(examples)
    assert living_runs(Storage.at(out)) == []
    call(out, "user-19")
    assert traces(out, digest, "secret-of-19.") == set(), "as `forget` says: again, once the run has ended"


def test_a_list_that_is_lost_lets_nobody_back(small):
    asked, out = small
    before = read(out).keys()
    (name,) = Cache.open(out, call(out, "user-9").version).record.memory
    text = (out / name).read_bytes()
    (out / name).unlink()
    with pytest.raises(CorruptionError, match=rf"memory are missing.*{name}"):
        thin(asked)
    assert living_runs(Storage.at(out)) == []
    (out / name).write_bytes(text)
    assert not thin(asked).committed
    assert before > read(out).keys()
