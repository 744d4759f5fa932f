"""The house's own laws, read from its source: small files and functions, one-way imports, promised names."""

import ast
import re
import runpy
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import setuptools

import pipelines
import schemas
import trainer
from pipelines.tasks.tasks import TEACHER_TASKS
from schemas.tasks import TASKS
from trainer.tasks.tasks import STUDENT_TASKS

ROOT = Path(schemas.__file__).parents[1]
HALVES = ("schemas", "pipelines", "trainer")
COMMAND = ROOT / "teachonce.py"
OURS = [COMMAND, *(file for half in HALVES for file in sorted((ROOT / half).rglob("*.py")))]
WRITTEN = [
    *OURS,
    *(file for name in ("tests", "benchmarks", "examples") for file in (ROOT / name).rglob("*.py")),
]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

EXPORTED = {
    schemas: {
        "Cache",
        "Feature",
        "Fingerprint",
        "Header",
        "Repaired",
        "Spec",
        "TeachonceError",
        "Vacuumed",
        "Verified",
        "repair",
        "vacuum",
    },
    pipelines: {
        "CompactConfig",
        "Compacted",
        "CorpusConfig",
        "Erased",
        "ForgetConfig",
        "MergeConfig",
        "Merged",
        "PrecomputeConfig",
        "RunSummary",
        "TeacherConfig",
        "ThinConfig",
        "Thinned",
        "compact",
        "forget",
        "merge",
        "precompute",
        "thin",
    },
    trainer: {
        "Compared",
        "EvaluateConfig",
        "Evaluated",
        "Loss",
        "StudentArguments",
        "TasksConfig",
        "TrainConfig",
        "Trained",
        "Outcome",
        "train_students",
        "train_tasks",
        "compare",
        "evaluate",
        "train",
    },
}

MAY_IMPORT = {
    "schemas": {"numpy", "pyarrow", "deltalake", "obstore", "jaxtyping", "rich", "zstandard", "schemas"}
    | {"altair", "vl_convert"},
    "pipelines": {"pipelines", "schemas", "apache_beam", "jinja2", "torch", "transformers", "tokenizers"}
    | {"numpy", "pyarrow", "zstandard", "jaxtyping", "rich", "safetensors", "huggingface_hub"},
    "trainer": {
        "trainer",
        "schemas",
        "torch",
        "transformers",
        "tokenizers",
        "accelerate",
        "sklearn",
        "scipy",
        "yaml",
        "optuna",
    }
    | {"numpy", "pyarrow", "jaxtyping", "rich", "safetensors", "huggingface_hub"},
}


DRAWING = {"altair", "vl_convert"}
"""What a report is drawn with: an extra of its own, for one room and its verb."""


def name_of(file):
    return str(file.relative_to(ROOT))


@cache
def tree(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def functions(file):
    return [node for node in ast.walk(tree(file)) if isinstance(node, FUNCTIONS)]


def lines_of(function):
    return function.end_lineno - function.lineno + 1


def imported(node):
    """Top-level names that an import brings."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def test_no_file_is_longer_than_300_lines():
    lengths = {name_of(file): len(file.read_text(encoding="utf-8").splitlines()) for file in WRITTEN}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_every_module_says_why_it_exists():
    assert [name_of(file) for file in OURS if not ast.get_docstring(tree(file))] == []


def test_functions_are_short():
    every = {f"{name_of(file)}: {f.name}": lines_of(f) for file in OURS for f in functions(file)}
    assert {name: length for name, length in every.items() if length > 60} == {}
    lengths = [lines_of(function) for file in OURS for function in functions(file)]
    assert statistics.median(lengths) <= 8
    assert sum(length <= 30 for length in lengths) >= 0.9 * len(lengths)


def test_imports_stand_at_the_head():
    """Only the command imports late: a verb's half, when it is asked for."""
    late = [
        f"{name_of(file)}: {ast.unparse(node)}"
        for file in OURS
        if file != COMMAND
        for function in functions(file)
        for node in ast.walk(function)
        if imported(node)
    ]
    assert late == []


def test_reports_alone_draw():
    drawing = {name_of(f) for f in OURS for node in ast.walk(tree(f)) if imported(node) & DRAWING}
    assert drawing
    assert {name for name in drawing if not name.startswith("schemas/reports/")} == set()
    users = {name_of(f) for f in OURS for line in f.read_text().splitlines() if "schemas.reports.p" in line}
    assert {name for name in users if not name.startswith("schemas/reports/")} == {"schemas/cli/report.py"}


def task_names_in(source):
    """Lines of a source that name a task: as a constant, or by comparing what is called `task`."""
    for node in ast.walk(ast.parse(source)):
        named = isinstance(node, ast.Constant) and node.value in TASKS
        compared = (
            [node.left, *node.comparators]
            if isinstance(node, ast.Compare)
            else [node.subject]
            if isinstance(node, ast.Match)
            else []
        )
        by_name = any(isinstance(one, ast.Attribute) and one.attr == "task" for one in compared)
        if named or (by_name and not (isinstance(node, ast.Compare) and is_membership(node))):
            yield node.lineno


def is_membership(comparison):
    """`task in TASKS` asks whether there is such a task, and not which."""
    return all(isinstance(one, ast.Name) and one.id == "TASKS" for one in comparison.comparators)


def test_nothing_outside_the_tasks_knows_a_task_by_its_name():
    places = [ROOT / "schemas" / "tasks.py", ROOT / "pipelines" / "tasks", ROOT / "trainer" / "tasks"]
    others = [f for f in OURS if not any(place in (f, *f.parents) for place in places)]
    assert len(others) > 150
    found = {name_of(file): list(task_names_in(file.read_text())) for file in others}
    assert not {name: lines for name, lines in found.items() if lines}
    bad = (
        "spec.task == name",
        "if 'causal-lm' == x: pass",
        "match spec.task:\n  case _: pass",
        "x.task in ('a',)",
    )
    assert all(list(task_names_in(source)) for source in bad)
    assert not list(task_names_in("config.task in TASKS"))


def test_each_side_has_every_task():
    assert set(TASKS) == set(TEACHER_TASKS) == set(STUDENT_TASKS)
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("half", HALVES)
def test_a_half_imports_only_what_it_may(half):
    files = [file for file in OURS if file != COMMAND and file.relative_to(ROOT).parts[0] == half]
    found = {name for file in files for node in ast.walk(tree(file)) for name in imported(node)}
    assert found - sys.stdlib_module_names <= MAY_IMPORT[half]
    assert "pickle" not in found


@pytest.mark.parametrize("package", EXPORTED, ids=lambda package: package.__name__)
def test_exported_names(package):
    """What people may build on. A name that goes, or comes, is a decision."""
    assert set(package.__all__) == EXPORTED[package]
    assert all(hasattr(package, name) for name in package.__all__)
    assert list(package.__all__) == sorted(package.__all__)


def test_no_file_knows_the_machine_or_the_day_it_was_written():
    foreign = re.compile(r"/(?:work|root|home|Users)/\w+|(?i:\b(?:issue|session) ?#?\d+)|#\d{2,}\b")
    texts = {name_of(file): file.read_text(encoding="utf-8") for file in WRITTEN if file != Path(__file__)}
    assert {name: foreign.findall(text) for name, text in texts.items() if foreign.search(text)} == {}


@pytest.fixture(scope="module")
def packaging():
    """What `setup.py` tells setuptools."""
    told = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **keywords: told.update(keywords))
        runpy.run_path(str(ROOT / "setup.py"))
    return told


def required(requirements):
    return {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def test_packaging_keeps_the_halves_apart(packaging):
    folders = {file.parent for file in OURS if file != COMMAND}
    assert sorted(packaging["packages"]) == sorted(name_of(folder).replace("/", ".") for folder in folders)
    assert packaging["py_modules"] == ["teachonce"]
    extras = {name: required(values) for name, values in packaging["extras_require"].items()}
    assert "apache-beam" not in extras["trainer"]
    assert "accelerate" not in extras["pipelines"]
    base = required(packaging["install_requires"])
    assert not base & {"torch", "transformers", "apache-beam", "accelerate"}
    for half in HALVES:
        wanted = {name.replace("_", "-") for name in MAY_IMPORT[half] - DRAWING}
        missing = wanted - set(HALVES) - base - extras.get(half, set())
        others = {"sklearn", "yaml"} | required(packaging["extras_require"]["sweep"])
        assert missing <= others, "the first two come as scikit-learn and pyyaml"
    assert {"scikit-learn", "pyyaml"} <= extras["trainer"]
    assert extras["report"] == {"altair", "vl-convert-python"}


def test_what_an_import_brings_with_it():
    """A reader of caches needs no torch, a trainer no Beam; asked of fresh interpreters."""
    forbidden = {
        "schemas, teachonce": ["torch", "transformers", "apache_beam", "pipelines", "trainer"],
        "trainer": ["apache_beam", "pipelines"],
    }
    show = "import sys; print([name for name in {1!r} if name in sys.modules])"
    started = {
        half: subprocess.Popen(
            [sys.executable, "-c", f"import {half}\n{show.format(half, names)}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for half, names in forbidden.items()
    }
    assert {half: process.communicate()[0].strip() for half, process in started.items()} == dict.fromkeys(
        forbidden, "[]"
    )
