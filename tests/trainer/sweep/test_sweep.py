"""A sweep: what it draws, what its trials are, which it gives up, and what it leaves behind."""

import json
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import teachonce
from tests.trainer.outputs import same
from tests.trainer.sweep.sweeping import USUAL, Sweeping, told
from trainer.checkpoints import output_folder
from trainer.sweep import trials as trials_module

SPACE = {"losses": {"kl": 1, "ce": {"uniform": [0, 1]}}, "learning_rate": {"log": [1e-4, 1e-2]}}
ROUNDS = ("--trials", "4", "--parallel", "2", "--sampler", "random", "--seed", "3")


def test_the_best_is_what_train_gives_and_evaluate_says(sweeping: Sweeping, capsys: Any) -> None:
    """To the last bit, though it was trained beside another, and measured on its way."""
    space = SPACE | {"student": [sweeping.student("small"), sweeping.student("wide")]}
    found = sweeping.found(capsys, "study", *ROUNDS, **space)
    study, best = sweeping.folder / "study", found["trials"][found["best"]]
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 4
    assert best["value"] == min(trial["value"] for trial in found["trials"])
    assert set(best["measured"]) == {"0.25", "0.5", "0.75"}
    again = sweeping.folder / "again"
    assert teachonce.main(["train", str(study / "best.yaml"), "--output_dir", str(again)]) == 0
    assert same(study / "best", again)
    assert same(Path(best["folder"]), again)
    assert {path.name for path in again.iterdir() if path.is_file()} == {
        path.name for path in (study / "best").iterdir()
    }
    capsys.readouterr()
    evaluate = ["evaluate", "--cache", sweeping.cache.storage.root, "--student", str(again), "--json"]
    assert teachonce.main([*evaluate, "--speed_seconds", "0", "--device", "cpu"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["metrics"]["cross_entropy_nats"] == best["value"]
    assert alone["models"][0]["parameters"] == best["parameters"]
    kept = {path.name for path in study.iterdir() if path.is_dir() and not path.is_symlink()}
    assert kept == {f"trial-{number:04d}" for number in found["front"]}


def test_the_same_seed_gives_the_same_trials(sweeping: Sweeping, capsys: Any) -> None:
    """Also where the study ends on the way, and is gone on with."""
    flags = ("--parallel", "2", "--sampler", "random", "--pruner", "none")
    space = SPACE | {"max_steps": 2, "save_steps": 500}
    one = sweeping.found(capsys, "one", "--trials", "4", *flags, **space)
    sweeping.found(capsys, "other", "--trials", "2", *flags, **space)
    check_alike(one, sweeping.found(capsys, "other", "--trials", "4", *flags, **space), 4)


def test_what_tpe_has_learnt_stands_in_the_study(sweeping: Sweeping, capsys: Any) -> None:
    """Gone on with in two places from its tenth trial, which is the last that it draws without a model."""
    flags = ("--parallel", "2", "--sampler", "tpe", "--pruner", "none")
    space = SPACE | {"max_steps": 1, "save_steps": 500}
    sweeping.found(capsys, "one", "--trials", "10", *flags, **space)
    shutil.copytree(sweeping.folder / "one", sweeping.folder / "other", symlinks=True)
    one, other = (
        sweeping.found(capsys, name, "--trials", "12", *flags, **space) for name in ("one", "other")
    )
    check_alike(one, other, 12)


def check_alike(one: dict[str, Any], other: dict[str, Any], trials: int) -> None:
    assert told(one) == told(other)
    assert one["importance"] == other["importance"]
    assert len({json.dumps(trial["drawn"]) for trial in one["trials"]}) == trials


def test_trials_of_a_round_share_a_decode_where_they_can(
    sweeping: Sweeping, capsys: Any, monkeypatch: Any
) -> None:
    """Rows of a step must be alike: a grid of two batch sizes and two rates is two trainings of two students each."""
    groups: list[list[int]] = []
    real = trials_module.train_students

    def counted(students: Any, observers: Any) -> Any:
        groups.append([arguments.per_device_train_batch_size for _, arguments in students])
        return real(students, observers)

    monkeypatch.setattr(trials_module, "train_students", counted)
    space = {"per_device_train_batch_size": [8, 16], "learning_rate": [1e-3, 1e-2]}
    flags = ("--sampler", "grid", "--pruner", "none", "--parallel", "4")
    found = sweeping.found(capsys, "study", *flags, **space)
    assert sorted(groups) == [[8, 8], [16, 16]]
    drawn = {
        (t["drawn"]["per_device_train_batch_size"], t["drawn"]["learning_rate"]) for t in found["trials"]
    }
    assert drawn == {(size, rate) for size in ("8", "16") for rate in ("0.001", "0.01")}
    assert sweeping.found(capsys, "study", *flags, **space)["trials"] == found["trials"]
    assert len(groups) == 2


def test_what_fails_is_told_and_the_sweep_goes_on(sweeping: Sweeping, capsys: Any) -> None:
    """Flags that do not go together, a rate that diverges, a student that is not there; beside one that is well."""
    space = {
        "student": [sweeping.student(), str(sweeping.folder / "nowhere")],
        "losses": ["kl=1", "ce=1"],
        "temperature": [1, 2],
        "learning_rate": [0.001, 1e30],
        "warmup_steps": 0,
    }
    found = sweeping.found(capsys, "study", "--sampler", "grid", "--parallel", "4", **space)
    assert len(found["trials"]) == 16
    for trial in found["trials"]:
        drawn = trial["drawn"]
        reason = trial["reason"] or ""
        if drawn["losses"] == "ce=1" and drawn["temperature"] == "2":
            assert "--temperature has no effect" in reason
        elif "nowhere" in drawn["student"]:
            assert "nowhere" in reason
        elif drawn["learning_rate"] == "1e+30":
            assert "no longer finite" in reason
        else:
            assert trial["state"] == "complete"
            continue
        assert (trial["state"], trial["value"], trial["folder"]) == ("failed", None, None)
    assert sweeping.run("study", "--sampler", "grid", **space) == 0
    table = capsys.readouterr().out
    assert "3 of 16 trials to their end" in table
    assert max(map(len, table.splitlines())) <= 80 or "best student is in" in table


def test_all_failed_is_an_error(sweeping: Sweeping, capsys: Any) -> None:
    space = {"learning_rate": [1e29, 1e30], "warmup_steps": 0}
    assert sweeping.run("study", "--sampler", "grid", **space) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("teachonce sweep: all 2 trials failed: ")
    assert "no longer finite" in err


def test_what_is_worse_than_the_median_is_given_up(sweeping: Sweeping, capsys: Any) -> None:
    """Five trials come to their end; of the next two the bad one is given up at its first measurement, and its folder
    goes. What is given up, an independent median says."""
    flags = ("--sampler", "grid", "--seed", "58", "--prune_at", "0.5")
    rates = {"learning_rate": [1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 0.03, 0.05]}
    found = sweeping.found(capsys, "study", *flags, **rates, max_steps=20)
    before: list[float] = []
    for trial in found["trials"]:
        value = trial["measured"]["0.5"]
        is_worse = len(before) >= 5 and value > statistics.median(before)
        assert (trial["state"] == "pruned") == is_worse
        if is_worse:
            assert trial["reason"] == "given up after 50% of its steps"
            assert trial["value"] == value
            assert trial["folder"] is None
        else:
            before.append(value)
    assert {trial["state"] for trial in found["trials"]} == {"complete", "pruned"}


def test_a_trial_that_was_there_already_is_not_trained_again(sweeping: Sweeping, capsys: Any) -> None:
    flags = ("--sampler", "random", "--trials", "6", "--parallel", "3", "--pruner", "none")
    found = sweeping.found(capsys, "study", *flags, learning_rate=[1e-3, 1e-2], max_steps=2)
    first: dict[str, int] = {}
    for trial in found["trials"]:
        before = first.setdefault(trial["drawn"]["learning_rate"], trial["number"])
        assert trial["same_as"] == (None if before == trial["number"] else before)
        assert trial["value"] == found["trials"][before]["value"]
    assert found["err"].count(": training") == 1
    assert len(first) == 2


def test_a_smaller_student_stays_though_it_is_worse(sweeping: Sweeping, capsys: Any) -> None:
    """All students of the front are there; `--keep all` leaves every one."""
    space = {
        "student": [sweeping.student("small"), sweeping.student("wide")],
        "max_steps": 40,
        "learning_rate": 0.01,
    }
    for keep in ("front", "all"):
        found = sweeping.found(capsys, keep, "--sampler", "grid", "--pruner", "none", "--keep", keep, **space)
        rows = [(t["value"], t["parameters"], t["number"]) for t in found["trials"]]
        beaten = {n for v, p, n in rows if any(a <= v and b <= p and (a, b) != (v, p) for a, b, _ in rows)}
        assert set(found["front"]) == {n for *_, n in rows} - beaten
        kept = {path.name for path in (sweeping.folder / keep).glob("trial-*") if path.is_dir()}
        assert kept == {f"trial-{n:04d}" for *_, n in rows if keep == "all" or n not in beaten}
        assert not list((sweeping.folder / keep).glob("trial-*/checkpoint-*"))


def test_a_study_is_gone_on_with_as_it_was_begun(sweeping: Sweeping, capsys: Any) -> None:
    rates = {"learning_rate": [1e-3, 1e-2], "max_steps": 2}
    first = sweeping.found(capsys, "study", "--trials", "1", "--sampler", "random", **rates)
    more = sweeping.found(capsys, "study", "--trials", "2", "--sampler", "random", "--parallel", "2", **rates)
    assert more["trials"][0] == first["trials"][0] | {"folder": more["trials"][0]["folder"]}
    for flags, space, word in (
        (("--seed", "9"), {}, "another seed"),
        (("--sampler", "tpe"), {}, "another sampler"),
        (("--objective", "top1_accuracy", "--maximise"), {}, "another objective"),
        ((), {"max_steps": 3}, "another space"),
    ):
        told_flags = ("--sampler", "random", *flags)
        assert sweeping.run("study", "--trials", "3", *told_flags, **rates | space) == 2
        assert word in capsys.readouterr().err


def test_a_study_has_its_folder_alone(sweeping: Sweeping, capsys: Any) -> None:
    (sweeping.folder / "taken").mkdir()
    (sweeping.folder / "taken" / "thesis.txt").write_text("mine")
    assert sweeping.run("taken", learning_rate=[1e-3]) == 2
    assert "--study holds something else" in capsys.readouterr().err
    inside = Path(sweeping.cache.storage.root) / "study"
    assert sweeping.run(str(inside), learning_rate=[1e-3]) == 2
    assert "--study is, or lies in, a cache" in capsys.readouterr().err
    assert not inside.exists()


def test_a_dry_run_shows_and_writes_nothing(sweeping: Sweeping, capsys: Any) -> None:
    space = {"learning_rate": {"log": [1e-4, 1e-2], "points": 3}, "losses": ["kl=1", "kl=1 ce=1"]}
    assert sweeping.run("study", "--sampler", "grid", "--dry_run", **space) == 0
    out = capsys.readouterr().out
    assert "6 trials by grid" in out
    assert "kl=1 | kl=1 ce=1" in out
    assert "cross_entropy_nats, to be minimized" in out
    assert "\u2026" not in out
    assert sweeping.run("study", "--sampler", "grid", "--dry_run", "--json", "--trials", "4", **space) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == 4
    assert not (sweeping.folder / "study").exists()


def test_a_cache_that_is_damaged_is_no_trials_fault(sweeping: Sweeping, capsys: Any, tmp_path: Path) -> None:
    """The sweep ends, with one line; when the shard is there again, the same command goes on with the same trials."""
    rates = {"learning_rate": [1e-3, 1e-2], "max_steps": 2}
    flags = ("--sampler", "grid", "--parallel", "2")
    whole = sweeping.found(capsys, "whole", *flags, **rates)
    cache = shutil.copytree(sweeping.cache.storage.root, tmp_path / "copy")
    argv = sweeping.argv("study", *flags, "--json", **rates)
    argv[1] = str(cache)
    assert teachonce.main([*argv, "--trials", "1"]) == 0
    away = {path: path.read_bytes() for path in cache.glob("*.parquet")}
    for path in away:
        path.unlink()
    assert teachonce.main(argv) == 1
    assert "shard" in capsys.readouterr().err.splitlines()[-1]
    for path, data in away.items():
        path.write_bytes(data)
    assert teachonce.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert [t["value"] for t in found["trials"]] == [t["value"] for t in whole["trials"]]


def test_a_full_disk_is_no_trials_fault(sweeping: Sweeping, capsys: Any) -> None:
    """The trials are open still, and trained when there is room."""
    rates = {"learning_rate": [1e-3, 1e-2], "max_steps": 2}
    flags = ("--sampler", "grid", "--parallel", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_folder.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        assert sweeping.run("study", *flags, **rates) == 2
    assert "too full" in capsys.readouterr().err.splitlines()[-1]
    found = sweeping.found(capsys, "study", *flags, **rates)
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2


def test_the_yaml_of_a_trial_is_all_of_it(sweeping: Sweeping, capsys: Any) -> None:
    found = sweeping.found(capsys, "study", "--sampler", "grid", "--trials", "1", learning_rate=[1e-3, 1e-2])
    flags = yaml.safe_load((sweeping.folder / "study" / "trial-0000.yaml").read_text())
    assert flags == found["trials"][0]["flags"]
    assert flags.keys() == {"student", *USUAL, "learning_rate", "cache", "cache_version"}
