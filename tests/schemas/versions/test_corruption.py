"""Whatever breaks in a cache's folder: a reader gets the values that were written, or an error of ours; never others.

`everything` is all that a reader, a trainer or a run takes from a version; `verified` is what `teachonce verify` does.
Any other error (of Arrow, of JSON, a panic of Delta's Rust) would fail these tests.
"""

import itertools
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from deltalake import DeltaTable

import schemas.versions.delta
from schemas import Cache, TeachonceError
from schemas.errors import CorruptionError, NoCacheError
from schemas.storage.storage import Storage
from schemas.verify import check_shard
from schemas.versions.commits import base_version, read_version
from schemas.versions.delta import entry_name
from schemas.versions.history import as_shard, orphans
from tests.schemas.battered import everything, make_battered, outcome, rewrite_one, verified
from tests.schemas.damage import flips
from tests.synthetic import causal_spec, make_cache

LOG = [entry_name(number) for number in range(3)]
CHECKPOINT = "_delta_log/00000000000000000001.checkpoint.parquet"
LAST_CHECKPOINT = "_delta_log/_last_checkpoint"
TOKENIZER = [
    "_teachonce/tokenizer/tokenizer.json",
    "_teachonce/tokenizer/additional_chat_templates/tool.jinja",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The cache; every test puts right what it has broken."""
    return make_battered(tmp_path_factory.mktemp("battered") / "cache")


@pytest.fixture(scope="module")
def good(path):
    """All its values."""
    return everything(path)


@pytest.fixture
def copy(path, tmp_path):
    """A copy, for one test to break for good."""
    return shutil.copytree(path, tmp_path / "cache")


def files(path):
    """Names of all files but the witnesses, which are empty."""
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return [name for name in names if not name.startswith("_teachonce/commits/")]


def of_kind(path, kind):
    live = [shard.name for shard in Cache.open(path).shards]
    memory = [
        name for name in files(path) if name.startswith(("_teachonce/unscored", "_teachonce/forgotten"))
    ]
    return {
        "live": live,
        "removed": [name for name in files(path) if "/" not in name and name not in live],
        "log": LOG,
        "checkpoint": [CHECKPOINT, LAST_CHECKPOINT],
        "spec": ["_teachonce/spec.json"],
        "tokenizer": TOKENIZER,
        "memory": memory,
        "index": [name for name in files(path) if name.startswith("_teachonce/index/")],
    }[kind]


def judged(path, good, version=None):
    """Whether the damage is seen, or changes nothing; that it changes something unseen fails."""
    read, checked = outcome(everything, path, version), outcome(verified, path, version)
    seen = isinstance(read, TeachonceError)
    assert "\n" not in str(read) if seen else read == good
    assert isinstance(checked, TeachonceError) == seen, (read, checked)
    return "seen" if seen else "harmless"


def test_the_cache_has_all_kinds_of_files(path, good):
    kinds = ["live", "removed", "log", "checkpoint", "spec", "tokenizer", "memory", "index"]
    assert sorted(itertools.chain(*(of_kind(path, kind) for kind in kinds))) == files(path)
    assert [len(of_kind(path, kind)) for kind in kinds] == [3, 1, 3, 2, 1, 2, 2, 3]
    assert (good[0][0], len(good[1])) == (2, 3)
    assert judged(path, good) == "harmless"


@pytest.mark.parametrize(
    ("kind", "count", "least_seen"),
    [
        ("live", 45, 1.0),
        ("removed", 10, 0.0),
        ("log", 40, 0.4),
        ("checkpoint", 30, 0.05),
        ("spec", 2_000, 1.0),
        ("tokenizer", 25, 1.0),
        ("memory", 30, 1.0),
        ("index", 20, 0.0),
    ],
)
def test_a_flipped_bit_is_seen_or_changes_nothing(path, good, kind, count, least_seen):
    """So many bits, one at a time, of each file of a kind in a `top_k` cache."""
    flip_and_judge(path, good, kind, count, least_seen)


@pytest.mark.parametrize("spec", ["threshold", "sampled"])
def test_a_flipped_bit_of_drawn_entries_is_seen_or_changes_nothing(tmp_path, spec):
    """Fewer bits of a `threshold` cache at two temperatures with own log-probabilities, and of a `sampled` one: of
    each shard 12, of each log entry 3, of each file of the checkpoint 2, of the spec 150, of each other file 3."""
    path = make_battered(tmp_path / "cache", spec=spec)
    good = everything(path)
    assert judged(path, good) == "harmless"
    few = {"live": 12, "removed": 3, "log": 3, "checkpoint": 2, "spec": 150, "tokenizer": 3, "memory": 3}
    for kind, count in {**few, "index": 3}.items():
        least = 0.0 if kind in ("removed", "log", "checkpoint", "index") else 1.0
        flip_and_judge(path, good, kind, count, least)


def flip_and_judge(path, good, kind, count, least_seen):
    found = Counter()
    for name in of_kind(path, kind):
        found.update(judged(path, good) for _ in flips(path / name, count))
    assert found.total() == count * len(of_kind(path, kind))
    assert found["seen"] >= least_seen * found.total()
    assert kind not in ("removed", "index") or found["seen"] == 0


@pytest.mark.parametrize("version", [0, 1])
def test_a_flipped_bit_in_the_log_of_an_older_version(path, version):
    good = everything(path, version)
    for name in (*LOG[: version + 1], CHECKPOINT):
        for _ in flips(path / name, 12, seed=version + 1):
            judged(path, good, version)


def test_a_file_that_is_cut_short(path, good):
    chooser, idle = random.Random(0), [*of_kind(path, "removed"), *of_kind(path, "index")]
    for name in files(path):
        may_pass = name in idle or name.startswith("_delta_log/")
        data = (path / name).read_bytes()
        for length in (0, len(data) - 2, *(chooser.randrange(len(data)) for _ in range(4))):
            (path / name).write_bytes(data[:length])
            assert judged(path, good) == "seen" or may_pass, (name, length)
        (path / name).write_bytes(data)


def test_a_file_that_is_gone(path, good):
    found = {}
    for name in files(path):
        (path / name).rename(path / "away")
        found[name] = judged(path, good)
        (path / "away").rename(path / name)
    harmless = {CHECKPOINT, LAST_CHECKPOINT, *of_kind(path, "removed"), *of_kind(path, "index")}
    assert {name for name, what in found.items() if what == "harmless"} <= harmless
    assert found[LOG[2]] == "seen"


def test_two_files_that_change_places(path, good):
    idle = {CHECKPOINT, LAST_CHECKPOINT, *of_kind(path, "removed"), *of_kind(path, "index")}
    for one, two in itertools.combinations(files(path), 2):
        a, b = (path / one).read_bytes(), (path / two).read_bytes()
        (path / one).write_bytes(b)
        (path / two).write_bytes(a)
        assert judged(path, good) == "seen" or {one, two} <= idle, (one, two)
        (path / one).write_bytes(a)
        (path / two).write_bytes(b)


def test_a_shard_under_another_name_is_nobodys(path, good):
    """Neither a reader's, nor a run's to adopt as an orphan."""
    for name in of_kind(path, "live"):
        unit, seal = name[:32], name[33:65]
        for other in (f"{'0' * 32}-{seal}.parquet", f"{unit}-{'0' * 32}.parquet"):
            shutil.copy(path / name, path / other)
            assert judged(path, good) == "harmless"
            cache = Cache.open(path)
            (orphan,) = orphans(cache.storage, base_version(cache.storage))
            assert orphan.name == other
            with pytest.raises(CorruptionError):
                check_shard(cache.storage, cache.header, as_shard(orphan, 8))
            (path / other).unlink()


@pytest.mark.parametrize("number", range(3))
def test_a_log_entry_that_stands_twice_is_seen(path, good, number):
    twin = path / entry_name(3)
    shutil.copy(path / LOG[number], twin)
    assert judged(path, good) == "seen"
    twin.unlink()
    assert judged(path, good) == "harmless"


def test_a_later_version_that_another_hand_wrote(copy):
    live = Cache.open(copy).shards[0]
    stray = f"{'0' * 32}-{live.name[33:]}"
    shutil.copy(copy / live.name, copy / stray)
    adds = [line for line in (copy / LOG[2]).read_text().splitlines() if '"add"' in line]
    for action in (adds[0].replace(json.loads(adds[0])["add"]["path"], stray), "{}", '{"txn":{}}', "", "[1]"):
        (copy / entry_name(3)).write_text(action + "\n")
        for act in (everything, verified):
            with pytest.raises(CorruptionError):
                act(copy)
    assert everything(copy, 2)[0][0] == 2


def test_a_checkpoint_of_another_state_neither_hides_nor_adds_a_shard(path, copy, good, tmp_path):
    other = make_battered(tmp_path / "other", seed=5)
    shutil.copy(other / CHECKPOINT, copy / CHECKPOINT)
    assert judged(copy, good) == "seen"
    shutil.copy(path / CHECKPOINT, copy / CHECKPOINT.replace("1.check", "2.check"))
    text = (copy / LAST_CHECKPOINT).read_text()
    (copy / LAST_CHECKPOINT).write_text(text.replace('"version":1', '"version":2'))
    assert judged(copy, good) == "seen"


@pytest.mark.parametrize("lost", [[2], [1, 2], [0, 1, 2]])
def test_a_log_that_has_lost_its_newest_entries_is_not_that_of_an_older_version(tmp_path, lost):
    path = make_battered(tmp_path / "cache", checkpoint=False)
    before = everything(path, 1)
    for number in lost:
        (path / LOG[number]).unlink()
    for act in (everything, verified, lambda path: base_version(Storage.at(path)), rewrite_one):
        with pytest.raises(CorruptionError, match="lost its newest"):
            act(path)
    if lost == [2]:
        assert everything(path, 1) == before


def test_a_version_that_is_committed_while_the_log_is_read_is_no_loss(path, monkeypatch):
    def late(root, version, storage_options):
        return DeltaTable(root, version=1 if version is None else version, storage_options=storage_options)

    monkeypatch.setattr(schemas.versions.delta, "DeltaTable", late)
    assert read_version(Storage.at(path)).number == 1


def test_a_panic_of_the_log_reader_is_a_damaged_log(path, monkeypatch):
    """A few of ten thousand damaged checkpoints make Delta panic, never the same bits: this is how it looks here."""
    panic = type("PanicException", (BaseException,), {})
    for error, expected in (
        (panic("Executor\nhas crashed"), CorruptionError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(schemas.versions.delta, "DeltaTable", fail)
        with pytest.raises(expected):
            Cache.open(path)


def test_the_spec_of_another_cache(copy):
    other = copy.parent / "other"
    spec = copy / "_teachonce" / "spec.json"
    for changed in (causal_spec(), causal_spec(max_length=31)):
        make_cache(other, changed)
        spec.write_bytes((other / "_teachonce" / "spec.json").read_bytes())
        for act in (everything, verified):
            with pytest.raises(CorruptionError, match="committed with"):
                act(copy)
        shutil.rmtree(other)


def test_the_log_of_another_cache(copy, tmp_path):
    other = make_battered(tmp_path / "other", seed=3)
    for folder in ("_delta_log", "_teachonce/commits"):
        shutil.rmtree(copy / folder)
        shutil.copytree(other / folder, copy / folder)
    for act in (everything, verified):
        with pytest.raises(CorruptionError, match="missing"):
            act(copy)


def test_a_folder_without_anything_is_no_cache(copy):
    for folder in ("_delta_log", "_teachonce/commits"):
        shutil.rmtree(copy / folder)
    for act in (everything, verified):
        with pytest.raises(NoCacheError):
            act(copy)


def test_a_root_that_is_a_file(copy):
    for file in sorted(Path(copy).rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    copy.rmdir()
    copy.write_bytes(b"cache")
    for act in (everything, verified):
        assert isinstance(outcome(act, copy), TeachonceError)
