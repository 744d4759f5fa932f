"""`forget`: what was forgotten does not come back; runs that live, crash or commit meanwhile; the verb."""

import json
import re
import threading

import pytest

import pipelines.job.run as run_module
import teachonce
from pipelines import ForgetConfig
from pipelines.fingerprint import agreement
from pipelines.job.run import prepare
from pipelines.scoring import handler
from pipelines.upkeep import forgetting
from schemas import Cache
from schemas.errors import CacheError, CorruptionError, NoCacheError, UsageError
from schemas.storage.storage import Storage
from schemas.versions import history
from schemas.versions.commits import read_version
from schemas.versions.history import end_lease, living_runs, take_lease
from schemas.versions.memory import remembered_names
from tests.pipelines.helpers import config, read, run, write_jsonl
from tests.pipelines.people import FLAGS, call, document_of, orphan_of, people, traces
from tests.synthetic import begin, causal_spec


@pytest.mark.parametrize("kind", ["id", "hash", "example", "HEX"])
def test_it_does_not_come_back(nights, teacher, kind, monkeypatch):
    cache, corpus = nights
    before = read(cache)
    digest, examples = document_of(cache, "user-2")
    assert len(examples) > 1
    wanted = {"id": "user-2", "hash": digest.hex(), "example": examples[0].hex(), "HEX": digest.hex().upper()}
    gone = {examples[0]} if kind == "example" else set(examples)
    done = call(cache, wanted[kind])
    assert (done.examples, done.documents) == (len(gone), kind != "example")

    def refuse(*_):
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(handler.UnitScorer, "score", refuse)
    summary = run(corpus, teacher, cache, **FLAGS)
    assert summary.committed is False
    assert summary.forgotten_documents == (kind != "example")
    assert read(cache).keys() == before.keys() - gone


@pytest.mark.parametrize(("kind", "back"), [("id", False), ("hash", True)])
def test_a_document_id_keeps_out_later_content_and_a_hash_does_not(nights, teacher, kind, back, tmp_path):
    cache, _ = nights
    digest, _ = document_of(cache, "user-2")
    call(cache, {"id": "user-2", "hash": digest.hex()}[kind])
    edited = write_jsonl(tmp_path / "edited.jsonl", people(18, edited=(2,)))
    summary = run(edited, teacher, cache, **FLAGS)
    assert summary.forgotten_documents == (not back)
    assert ("user-2" in {row["document_id"] for row in read(cache).values()}) == back


def test_without_ids_the_hash_tells_which_content(tmp_path, teacher):
    texts = [{"text": d["text"]} for d in people(8)]
    corpus = write_jsonl(tmp_path / "c.jsonl", texts)
    run(corpus, teacher, tmp_path / "cache", unit_tokens=60)
    rows = read(tmp_path / "cache")
    digest = next(iter(rows.values()))["document_hash"].tobytes()
    done = call(tmp_path / "cache", digest.hex(), "user-1")
    assert (done.documents, done.not_found) == (1, ("user-1",))
    assert run(corpus, teacher, tmp_path / "cache", unit_tokens=60).forgotten_documents == 1
    assert all(row["document_hash"].tobytes() != digest for row in read(tmp_path / "cache").values())


def test_what_is_found_nowhere_is_said_and_kept_out_from_the_first_day(
    nights, teacher, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(forgetting, "LINES_AT_ONCE", 10)
    cache, _ = nights
    ids = tmp_path / "ids.txt"
    ids.write_text(
        "\ufeffuser-3\r\n\nuser-20\n" + "".join(f"nobody-{i}\n" for i in range(15)), encoding="utf-8"
    )
    assert teachonce.main(["forget", str(cache), "--ids", str(ids)]) == 0
    out = capsys.readouterr().out
    assert "found nowhere, and kept out all the same: 16 ids: user-20, nobody-0" in out
    assert "and 6 more" in out
    assert "can no longer be read: versions 0 to 1" in out
    broken = {"id": "user-3", "text": 7}
    later = write_jsonl(tmp_path / "later.jsonl", [*people(22), broken])
    summary = run(later, teacher, cache, **FLAGS)
    assert (summary.forgotten_documents, summary.new_documents, dict(summary.rejects)) == (3, 3, {})
    assert traces(cache, 'user-3"', "secret-of-3.") == set(), "nor is it named among the rejects"
    assert {"user-3", "user-20"}.isdisjoint(row["document_id"] for row in read(cache).values())
    Cache.open(cache).verify()


def test_only_salted_hashes_are_left(nights):
    cache, _ = nights
    digest, _ = document_of(cache, "user-5")
    call(cache, "user-5", digest.hex(), "other-user")
    lists = [path.read_text() for path in (cache / "_teachonce" / "forgotten").iterdir()]
    assert len(json.loads(lists[0])["hashes"]) == 4, "three as texts, one as a hash"
    assert not any(word in text for text in lists for word in ("user", digest.hex()))
    again = call(cache, "user-5", "other-user")
    assert (again.committed, again.examples, again.not_found) == (False, 0, ("user-5", "other-user"))
    assert len(list((cache / "_teachonce" / "forgotten").iterdir())) == 1, (
        "what is on the list is not added again"
    )


def test_a_run_that_lives_is_waited_for_unless_it_is_known_to_be_dead(nights):
    cache, _ = nights
    storage = Storage.at(cache)
    take_lease(storage, "nightly")
    with pytest.raises(CacheError, match=r"a run lives.*nightly.*--force"):
        call(cache, "user-3")
    assert not remembered_names(storage, "_teachonce/forgotten")
    assert Cache.open(cache).version == 1
    done = call(cache, "never-seen", force=True)
    assert (done.living_runs, done.committed, done.examples) == (("nightly",), True, 0)
    end_lease(storage, "nightly")
    assert call(cache, "user-3").living_runs == ()


def test_a_run_that_began_with_a_shorter_list_cannot_commit(nights, teacher, tmp_path, monkeypatch):
    """The list grows while a run computes: its commit is turned away, and it starts again with the longer one."""
    cache, _ = nights
    corpus = write_jsonl(tmp_path / "more.jsonl", people(20))
    real, calls, first = handler.UnitScorer.score, [], threading.Lock()

    def meanwhile(self, unit, examples):
        with first:  # units are scored beside each other, and a shard that is stored now would be an orphan's
            if not calls:
                calls.append(call(cache, "user-19", force=True))
        return real(self, unit, examples)

    monkeypatch.setattr(handler.UnitScorer, "score", meanwhile)
    summary = run(corpus, teacher, cache, **FLAGS)
    assert (calls[0].committed, calls[0].version, summary.version) == (True, 2, 3)
    assert summary.forgotten_documents == 1
    held = {row["document_id"] for row in read(cache).values()}
    assert "user-18" in held
    assert "user-19" not in held
    done = call(cache, "user-19")
    assert (done.examples, done.not_found) == (0, ()), "what the first attempt left as orphans"
    assert traces(cache, "user-19'", "secret-of-19.") == set()


@pytest.mark.parametrize("ended", [True, False])
def test_what_a_run_leaves_that_began_before_the_commit_is_found_or_told(nights, monkeypatch, ended):
    """It saw the version with the rows, and wrote some of them after the folder was listed."""
    cache, _ = nights
    storage, real = Storage.at(cache), forgetting.commit_change

    def meanwhile(*arguments, **fields):
        if fields["run"].startswith("forget") and arguments[2].number == 1:
            take_lease(storage, "late")
            orphan_of(cache, "user-3")
            if ended:
                end_lease(storage, "late")
        return real(*arguments, **fields)

    monkeypatch.setattr(forgetting, "commit_change", meanwhile)
    if ended:
        assert call(cache, "user-3").deleted_files > 1
    else:
        with pytest.raises(CacheError, match=r"began while this was under way.*got late.*the same again"):
            call(cache, "user-3")
    assert traces(cache, "secret-of-3.") == set()
    end_lease(storage, "late")
    assert call(cache, "user-3").examples == 0
    Cache.open(cache).verify()


def test_a_run_says_that_it_lives_before_it_reads_anything(nights, teacher, monkeypatch):
    cache, corpus = nights
    storage, seen = Storage.at(cache), []
    places = {"base_version": run_module, "orphans": run_module, "remembered_names": run_module}
    for name, module in (places | {"read_header": agreement}).items():
        real = getattr(module, name)

        def watched(*arguments, real=real):
            seen.append(living_runs(storage))
            return real(*arguments)

        monkeypatch.setattr(module, name, watched)
    job, _ = prepare(config(corpus, teacher, cache, **FLAGS))
    assert len(seen) >= 4
    assert all(living == [job.run.id] for living in seen)
    end_lease(storage, job.run.id)


def test_another_run_that_commits_meanwhile_is_met_by_itself(nights, monkeypatch):
    cache, _ = nights
    storage, real, waiting = Storage.at(cache), forgetting.commit_change, [1]

    def late(*arguments, **fields):
        if waiting:
            waiting.clear()
            base = read_version(storage)
            real(
                storage, Cache.open(cache).header, base, forgetting.change_of([]), run="other", provenance={}
            )
        return real(*arguments, **fields)

    monkeypatch.setattr(forgetting, "commit_change", late)
    assert call(cache, "user-3").version == 3
    assert traces(cache, "secret-of-3.") == set()
    Cache.open(cache).verify()


def test_refusals(tmp_path, nights, capsys):
    cache, _ = nights
    for ids in ((), ("",)):
        with pytest.raises(ValueError, match="ids cannot be"):
            ForgetConfig(cache="c", ids=ids)
    with pytest.raises(NoCacheError):
        call(tmp_path / "nothing", "a")
    with pytest.raises(NoCacheError, match="nothing was committed"):
        call(begin(tmp_path / "empty", causal_spec()).root, "a")
    with pytest.raises(UsageError, match="Beam knows no such option"):
        call(cache, "nobody", beam_options=("--nonsense",))
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"\xff\n")
    for file, words in (
        ("none.txt", "cannot be read"),
        ("empty.txt", "cannot be empty"),
        ("latin.txt", "no UTF-8"),
    ):
        assert teachonce.main(["forget", str(cache), "--ids", str(tmp_path / file)]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    entry = cache / "_delta_log" / f"{0:020d}.json"
    entry.write_bytes(entry.read_bytes().replace(b"record", b"rekord"))
    with pytest.raises(CorruptionError, match="log entry"):
        call(cache, "user-3")
    assert history.living_runs(Storage.at(cache)) == []


def test_the_verb_as_json(nights, tmp_path, capsys):
    cache, _ = nights
    (tmp_path / "ids.txt").write_text("user-3")
    arguments = [
        "forget",
        str(cache),
        "--ids",
        str(tmp_path / "ids.txt"),
        "--json",
        "--",
        "--direct_num_workers=1",
    ]
    assert teachonce.main(arguments) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["documents"], value["not_found"], value["unreadable_versions"]) == (1, [], [0, 1])
    assert re.fullmatch(r"forget-\d{8}T\d{6}Z-[0-9a-f]{8}", value["run"])
