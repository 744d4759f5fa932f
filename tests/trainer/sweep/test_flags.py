"""Every flag that `sweep --help` names: with a good value, and with one that is refused in one line."""

import json
import re
from typing import Any

import pytest

import teachonce
from tests.trainer.sweep.sweeping import Sweeping

GOOD = [
    *("--trials=2", "--sampler=random", "--pruner=median", "--prune_at", "0.5", "--parallel=2", "--seed=1"),
    *("--objective=top1_accuracy", "--maximise", "--keep=all"),
]
PLANNED = ["--objective=kl_nats", "--minimise", "--dry_run"]
BAD = {
    "--space": "nothing-here.yaml",
    "--study": "/dev/null/study",
    "--trials": "0",
    "--sampler": "best",
    "--pruner": "worst",
    "--prune_at": "2",
    "--parallel": "0",
    "--seed": "x",
    "--objective": "nothing_here",
    "--keep": "some",
    **dict.fromkeys(("--maximise", "--minimise", "--dry_run", "--json"), "yes"),
}
RATES = {"learning_rate": [1e-3, 1e-2], "max_steps": 2}


def test_every_flag_that_help_names_is_in_the_table(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        teachonce.main(["sweep", "--help"])
    text = capsys.readouterr().out.partition("\nexamples:")[0]
    assert set(re.findall(r"^  (--[\w-]+)", text, re.MULTILINE)) == BAD.keys()
    told = {word.partition("=")[0] for word in [*GOOD, *PLANNED] if word.startswith("--")}
    assert told | {"--space", "--study", "--json"} == BAD.keys()


def test_good_values_are_taken(sweeping: Sweeping, capsys: Any) -> None:
    found = sweeping.found(capsys, "study", *GOOD, **RATES)
    assert [t["state"] for t in found["trials"]] == ["complete"] * 2
    assert sweeping.run("other", *PLANNED, **RATES) == 0
    assert "kl_nats, to be minimized" in capsys.readouterr().out
    assert sweeping.run("other", *PLANNED, "--json", **RATES) == 0
    assert json.loads(capsys.readouterr().out)["direction"] == "minimize"


@pytest.mark.parametrize("flag", BAD)
def test_a_bad_value_is_one_line(sweeping: Sweeping, capsys: Any, flag: str) -> None:
    argv = [*sweeping.argv("study", *GOOD, **RATES), f"{flag}={BAD[flag]}"]
    assert teachonce.main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("teachonce sweep: ")
    assert not (sweeping.folder / "study").exists()
