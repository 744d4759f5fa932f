"""Every table that people are shown: whole in a pipe, and in a terminal of 80 columns, with no heading or value cut."""

import contextlib
import importlib
import io
import math
import os
import pty
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipelines.cli.plan import print_plan
from pipelines.cli.run_tables import summary_table
from pipelines.job.outcome import RunSummary
from pipelines.job.plan import Expected, Plan
from pipelines.scoring.sample import Measured
from schemas.cli.tables import Table, number, print_table
from schemas.shards.seal import Totals
from tests.synthetic import SPECS, make_cache
from trainer.cli import sweep_tables
from trainer.evaluation.comparison import Compared
from trainer.evaluation.evaluation import Evaluated
from trainer.evaluation.speed import ModelSize
from trainer.evaluation.tables import show, show_compared
from trainer.sweep.results import Swept, TrialResult
from trainer.sweep.study import TrialOutcome
from trainer.tasks.student_task import Goal

LONG = "s3://a-bucket-with-a-name/of/many/folders/under/each/other/that/no-line-of-80-holds/cache"
ROOT = Path(__file__).resolve().parent.parent


def at(width, print_it):
    text = io.StringIO()
    print_it(Console(file=text, width=width, markup=False, highlight=False, emoji=False))
    return text.getvalue()


def is_whole(text, words=(), width=80):
    """Nothing cut; and of what was to be seen all is there, wherever it was folded."""
    assert "\u2026" not in text
    assert max(map(cell_len, text.splitlines())) <= width, text
    cells = [re.split("[\u2502\u2503]", line) for line in text.splitlines()]
    columns = {}
    for line in cells:
        for index, cell in enumerate(line):
            columns[len(line), index] = columns.get((len(line), index), "") + cell.strip()
    joined = " ".join(columns.values())
    for word in words:
        assert word in text or word.replace(" ", "") in joined.replace(" ", ""), (word, text)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "-"),
        (0, "0"),
        (-1234567, "-1,234,567"),
        (0.0, "0.0000"),
        (1.0, "1.0000"),
        (0.123456789, "0.12346"),
        (2.5, "2.5000"),
        (36.3178, "36.318"),
        (9999.94, "9,999.9"),
        (9999.99, "10,000"),
        (12345.6, "12,346"),
        (-98765.4, "-98,765"),
        (1.5e-7, "1.5000e-07"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_one_format_of_numbers(value, told):
    assert number(value) == told


def test_a_pipe_has_a_row_a_line():
    table = Table(title=LONG, names=("name", "n", "text"), rows=((LONG, 1, LONG * 3), ("b", 2.0, "c")))
    lines = at(2**20, lambda out: print_table(table, out)).splitlines()
    assert lines[0] == LONG
    assert [line for line in lines if LONG in line][1].count(LONG) == 4
    assert "n " in lines[2]


@pytest.mark.parametrize("columns", [1, 2, 6, 7, 12, 40])
@pytest.mark.parametrize("rows", [1, 4, 30])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_any_table_is_whole_at_any_width(columns, rows, width):
    names = ("student", *(f"heading {index:04d}" for index in range(columns)))
    values = [[1000 * row + column / 7 for column in range(columns)] for row in range(rows)]
    told = tuple((f"row{row}", *values[row]) for row in range(rows))
    text = at(width, lambda out: print_table(Table(title="t", names=names, rows=told), out))
    wanted = {number(value) for row in values for value in row} | {row[0] for row in told} | set(names)
    assert "\u2026" not in text
    assert max(map(len, text.splitlines())) <= width
    assert [word for word in wanted if word not in text] == [], "and no number is folded"


def test_a_table_that_is_too_wide_is_turned_over():
    names = ("student", *(f"a long metric {index}" for index in range(7)))
    table = Table(title="t", names=names, rows=tuple((name, *range(7)) for name in "ab"))
    text = at(80, lambda out: print_table(table, out))
    assert re.search(r"student\s+\u2503\s+a \u2503 b", text)
    assert re.search(r"a long metric 6 \u2502 6 \u2502 6", text)
    assert "\u2503 a long metric 6" in at(2**20, lambda out: print_table(table, out))


def test_rows_of_unlike_lengths_are_no_table():
    with pytest.raises(ValueError, match="rows of"):
        Table(title="t", names=("a", "b"), rows=((1,),))


def evaluated(name):
    metrics = {"positions": 123456789, "cross_entropy_nats": 3.59241, "perplexity": 36.3178,
               "teacher_cross_entropy_nats": 3.1, "kl_nats": 0.4123, "top1_agreement": 0.71234,
               "a_metric_with_quite_a_long_name": None, "confusion_matrix": [[10, 2], [3, 40]]}  # fmt: skip
    size = ModelSize(name=name, parameters=1234567890, megabytes=4938.2, tokens_per_second=123456.7)
    models = (size, replace(size, name="teacher", tokens_per_second=None))
    return Evaluated(task="t", student=name, cache=LONG, cache_version=3, eval_fraction=0.05, where=["a=1"] * 30,
                     classes=("yes", "no"), metrics=metrics, models=models, device="cpu", batch_size=16)  # fmt: skip


@pytest.mark.parametrize(
    "names", [["a"], ["a", "b", "c"], [f"student-{n:02d}" for n in range(12)], [LONG, "b"]]
)
def test_what_was_evaluated(names):
    found = [evaluated(name) for name in names]
    compared = Compared(students=tuple(found), ensemble=None)
    words = ("36.318", "0.41230", "a_metric_with_quite_a_long_name", "123,456,789", "1,234,567,890", *names)
    is_whole(at(80, lambda out: show_compared(compared, out)), words)
    is_whole(at(80, lambda out: show(found[0], out)), (*words[:5], "tokens/s", "123,457"))


def swept():
    def trial(n):
        outcome = TrialOutcome(state="complete", value=3.0 + n / 7, parameters=10**9 + n, metrics={"a": 1})
        drawn = {"learning_rate": 0.00123456 * n, "losses": "kl=1 ce=0.5 feature=1", "student": LONG}
        return TrialResult(number=n, outcome=outcome, drawn=drawn, flags={}, measured={}, folder=LONG)

    goal = Goal(metric="teacher_cross_entropy_nats", is_maximised=False)
    return Swept(study="study", cache=LONG, cache_version=0, goal=goal, trials=tuple(map(trial, range(40))),
                 importance={"learning_rate": 0.7, "losses": 0.3})  # fmt: skip


def test_what_a_sweep_found(monkeypatch):
    def shown(out):
        monkeypatch.setattr(sweep_tables, "console", lambda: out)
        sweep_tables.show(swept())

    text = at(80, shown)
    tables = [line for line in text.splitlines() if line[:1] in "\u2502\u2503\u250f\u2521\u2514"]
    is_whole("\n".join(tables), ("teacher_cross_entropy_nats", "1,000,000,001", "0.70000", "trial-0000"))
    assert "\u2026" not in text


def filled(kind, **told):
    """A value of `kind` whose every count is large, and that which is told."""
    kinds = {"int": 10**9, "float": 12345.678, "bool": True, "str": LONG}
    return kind(**{f.name: kinds[f.type] for f in fields(kind) if f.type in kinds} | told)


REJECTS = {"not_json": 1200, "a_reason_of_a_name_that_is_longer_than_others": 3}


def test_what_a_run_did():
    summary = filled(
        RunSummary, rejects=REJECTS, totals=filled(Totals), labels={"names": 10**9}, provenance={}
    )
    text = at(80, lambda out: summary_table(summary, LONG, out))
    is_whole(text, (*REJECTS, "1,000,000,000", "names 1,000,000,000", "12,346", LONG))


def test_what_a_run_would_do():
    sample = Measured(*[12345] * len(Measured._fields))
    plan = filled(
        Plan,
        rejects=REJECTS,
        labels={},
        refusals=(),
        sample=sample,
        expected=filled(Expected, students=7),
        cost=None,
    )
    text = at(80, lambda out: print_plan(plan, LONG, out))
    is_whole(text, (*REJECTS, "1,000,000,000", "for whom it is cheaper"))


@pytest.mark.parametrize("name", ["demo", "wordnet"])
def test_what_the_examples_end_with(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = importlib.import_module(f"examples.{name}")
    metrics = {"cross_entropy_nats": 3.59241, "perplexity": 36.3178, "top1_agreement": 0.71234, "kl_nats": 0.4,
               "teacher_cross_entropy_nats": 3.0, "labelled": 9999, "accuracy": 0.81234, "macro_f1": 0.79,
               "agreement": 0.9}  # fmt: skip
    told = {"metrics": metrics, "models": [{"parameters": 22_713_216, "tokens_per_second": 123456.7}]}
    if name == "demo":
        own = [example.Result(student, told, 60.0, []) for student in example.students("teacher")]
    else:
        own = [example.Result(n, told, 60.0) for n in ("teacher", "kl+feature", "ce", "small, kl")]
    table = example.table(own)
    is_whole(at(80, lambda out: print_table(table, out)), (*table.names, "22,713,216", "60.000"))


def test_what_inspect_shows_in_a_terminal_and_in_a_pipe(tmp_path):
    """The command itself, on a terminal of 80 columns; and piped, where no row is broken over lines."""
    root = tmp_path / "a-folder-whose-name-is-rather-long" / "and-one-more-below-it-that-is-long-as-well"
    make_cache(root, SPECS["texts"], num_rows=6)
    command = [sys.executable, "-m", "teachonce", "inspect", str(root), "--rows", "2"]
    told = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "80"}
    master, slave = pty.openpty()
    with subprocess.Popen(command, cwd=ROOT, env=told, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        read = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(master, 2**16):
                read += part
    os.close(master)
    assert process.returncode == 0
    is_whole(re.sub(r"\x1b\[[0-9;]*m|\r", "", read.decode()), ("largest entries", "kept entries a position"))
    piped = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, check=True).stdout
    assert "\u2026" not in piped
    assert f"{root}, version 0" in piped.splitlines()
    assert max(map(len, piped.splitlines())) > 80
