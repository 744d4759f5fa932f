"""The recipes of `docs/recipes` run: cron's script, the workflow's steps, and what the Beam provider starts.

With `TEACHONCE_AIRFLOW=/path/to/python`, of an environment with apache-airflow and its Beam provider, a real Airflow
runs the DAG too.
"""

import ast
import contextlib
import json
import os
import re
import shlex
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
import zstandard

from schemas import Cache
from tests.docs import blocks
from tests.docs.inputs import language_model
from tests.pipelines.helpers import compress

RECIPES = blocks.DOCS / "recipes"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A shell's environment in which `teachonce` is this checkout's."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "teachonce"
    own = (
        f"import sys; sys.path.insert(0, {str(blocks.ROOT)!r}); import teachonce; sys.exit(teachonce.main())"
    )
    command.write_text(f"#!{sys.executable}\n{own}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(blocks.ROOT)}


def shell(text, here, environment, **more):
    done = subprocess.run(
        ["bash", "-ec", text],
        cwd=here,
        env=environment | more,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{text}: {done.stdout} {done.stderr}"
    return done.stdout


def script_of(page):
    """The page's script for cron, as a file would hold it."""
    (found,) = re.findall(r"```sh\n(#!/bin/sh\n.*?)```", (blocks.DOCS / page).read_text(), re.DOTALL)
    return found


def listing(folder):
    """Every file of a cache but what runs tell of themselves."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.parent.name != "runs"]
    return sorted((path, path.stat().st_mtime_ns) for path in files)


def test_crons_second_night_writes_nothing(tmp_path, environment):
    """`docs/recipes/cron.md` twice, then `docs/nightly.md`, on one corpus."""
    language_model(tmp_path)
    (tmp_path / "nightly").write_text(script_of("recipes/cron.md"))
    shell("sh ./nightly", tmp_path, environment, TEACHONCE_HOME=str(tmp_path))
    assert json.loads((tmp_path / "report.json").read_text())["outcome"] == "done"
    before = listing(tmp_path / "cache")
    shell("sh ./nightly", tmp_path, environment, TEACHONCE_HOME=str(tmp_path))
    assert json.loads((tmp_path / "report.json").read_text())["outcome"] == "nothing new"
    assert listing(tmp_path / "cache") == before
    assert len(Cache.open(tmp_path / "cache").versions()) == 1
    shell(f"exec 9> nightly.lock; flock 9; sh -c {shlex.quote(script_of('recipes/cron.md'))}", tmp_path,
          environment, TEACHONCE_HOME=str(tmp_path))  # fmt: skip
    (tmp_path / "other").write_text(script_of("nightly.md"))
    shell("sh ./other", tmp_path, environment)
    assert listing(tmp_path / "cache") == before


def test_crontabs_are_crontabs():
    for page in ("recipes/cron.md", "nightly.md"):
        (table,) = re.findall(r"```cron\n(.*?)```", (blocks.DOCS / page).read_text(), re.DOTALL)
        lines = [line for line in table.splitlines() if not line.startswith("#")]
        assert all(re.match(r"(\d+|\*) +(\d+|\*) +\* \* (\*|\d) +\S", line) for line in lines)
        for words in blocks.ours_in(blocks.Block(page, 0, "sh", table.replace("&&", "\n"), "", "")):
            blocks.parse(words)


def test_the_workflows_steps_run(tmp_path, environment):
    """On the shortest documents of the demo's corpus, one epoch."""
    workflow = yaml.safe_load((RECIPES / "distil.yml").read_text())
    assert set(workflow[True]) == {"schedule", "workflow_dispatch"}, "YAML reads `on` as true"
    (job,) = workflow["jobs"].values()
    assert set(job["env"]) == {"EPOCHS"}
    examples = blocks.ROOT / "examples"
    with zstandard.open(examples / "corpus.jsonl.zst", "rt", encoding="utf-8") as lines:
        shortest = sorted(lines, key=len)[:24]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "demo.jsonl").write_text("".join(shortest), encoding="utf-8")
    compress(tmp_path / "corpus" / "demo.jsonl", ".zst")
    (tmp_path / "teacher").symlink_to(examples / "teacher")
    (tmp_path / "student.json").symlink_to(examples / "student.json")
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        if step.get("name") == "Install":
            blocks.check_pip(shlex.split(step["run"]))
        elif "run" in step:
            shell(step["run"], tmp_path, environment, EPOCHS="1")
    assert json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["positions"] > 0
    assert json.loads((tmp_path / "report.json").read_text())["outcome"] == "done"
    assert (tmp_path / "student" / "model.safetensors").exists()


def constants_of(file):
    """The texts that a Python file gives names to."""
    tree = ast.parse((RECIPES / file).read_text())
    named = [node for node in tree.body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in named}


def pipeline_options():
    """What the operator hands to the file that it starts: `--name=value` each, and the runner."""
    calls = [
        node
        for node in ast.walk(ast.parse((RECIPES / "airflow_dag.py").read_text()))
        if isinstance(node, ast.Call)
    ]
    (call,) = [one for one in calls if getattr(one.func, "id", "") == "BeamRunPythonPipelineOperator"]
    given = {word.arg: word.value for word in call.keywords}
    runner = ast.literal_eval(given["runner"])
    options = ast.literal_eval(given["pipeline_options"])
    return [f"--runner={runner}", *(f"--{name}={value}" for name, value in options.items())]


def test_airflows_commands_are_ours():
    constants = constants_of("airflow_dag.py")
    for name in ("VERIFY", "TRAIN", "EVALUATE"):
        blocks.parse(shlex.split(constants[name].replace("{{ ds_nodash }}", "20261130"))[1:])
    ours = constants_of("precompute_for_beam.py")["OURS"].split()
    blocks.parse(["precompute", *ours, "--", *pipeline_options()])


def test_what_the_beam_provider_starts_runs(tmp_path, environment):
    language_model(tmp_path)
    started = (
        f"{sys.executable} {RECIPES / 'precompute_for_beam.py'} --runner=FnApiRunner --direct_num_workers=1"
    )
    shell(started, tmp_path, environment, TEACHONCE_HOME=str(tmp_path))
    assert Cache.open(tmp_path / "cache").version == 0


@pytest.mark.skipif(
    "TEACHONCE_AIRFLOW" not in os.environ, reason="needs apache-airflow, in an environment of its own"
)
def test_a_real_airflow_runs_the_dag(tmp_path, environment):
    """Every task of it, by `airflow dags test`: as copied, but for the folder, the engine and no retries."""
    language_model(tmp_path)
    dags = tmp_path / "dags"
    dags.mkdir()
    shutil.copy(RECIPES / "precompute_for_beam.py", dags)
    text = (RECIPES / "airflow_dag.py").read_text()
    for ours, theirs in {
        "/srv/teachonce": str(tmp_path),
        'py_interpreter="python3"': f'py_interpreter="{sys.executable}"',
        '"FlinkRunner"': '"FnApiRunner"',
        '"retries": 2': '"retries": 0',
        "--num_train_epochs 3": "--num_train_epochs 1 --use_cpu true",
    }.items():
        assert ours in text
        text = text.replace(ours, theirs)
    text, replaced = re.subn(
        r"pipeline_options=\{.*?\}", 'pipeline_options={"direct_num_workers": "1"}', text, flags=re.DOTALL
    )
    assert replaced == 1
    (dags / "airflow_dag.py").write_text(text)
    python = Path(os.environ["TEACHONCE_AIRFLOW"])
    own = {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "TEACHONCE_HOME": str(tmp_path),
        "PATH": f"{environment['PATH']}:{python.parent}",
    }
    airflow = f"{python} -m airflow"
    shell(f"{airflow} db migrate; {airflow} dags test teachonce 2026-11-30", tmp_path, environment, **own)
    with contextlib.closing(sqlite3.connect(tmp_path / "airflow" / "airflow.db")) as metadata:
        told = dict(metadata.execute("SELECT task_id, state FROM task_instance"))
    assert told == dict.fromkeys(("precompute", "verify", "train", "evaluate"), "success")
    assert Cache.open(tmp_path / "cache").version == 0
    assert (tmp_path / "student-20261130" / "model.safetensors").exists()
