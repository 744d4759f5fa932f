"""The flex template's files: its parameters are flags, its program stages a job as the launcher calls it."""

import importlib.util
import json
import re

import pytest

from pipelines.cli import run_flags
from pipelines.job import run as run_module
from schemas.errors import UsageError
from tests.docs.blocks import DOCS, ROOT
from tests.pipelines.helpers import documents, write_jsonl
from tests.pipelines.models import causal_teacher

FOLDER = DOCS / "recipes" / "flex_template"
PARAMETERS = json.loads((FOLDER / "metadata.json").read_text())["parameters"]
EXAMPLES = {
    "corpus": "gs://my-corpus/*.jsonl.zst",
    "teacher": "/opt/teacher",
    "task": "causal-lm",
    "cache": "gs://my-cache/teacher-1",
    "keep": "threshold:1/16",
    "id_field": "id",
    "text_field": "text",
    "label_field": "label",
    "dtype": "bfloat16",
    "max_length": "512",
    "unit_tokens": "4194304",
    "accelerator": "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver",
    "min_ram": "24GB",
}


@pytest.fixture(scope="module")
def program():
    """The launcher's program, as a module."""
    spec = importlib.util.spec_from_file_location("flex_template_main", FOLDER / "main.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parameters_are_flags_with_values():
    assert {one["name"] for one in PARAMETERS} == set(EXAMPLES)
    assert all(one["label"] and one["helpText"] for one in PARAMETERS)
    arguments, _ = run_flags.precompute([f"--{name}={value}" for name, value in EXAMPLES.items()])
    assert all(getattr(arguments, name) for name in EXAMPLES)
    for one in PARAMETERS:
        for pattern in one.get("regexes", ()):
            assert re.search(pattern, EXAMPLES[one["name"]])


def test_what_must_be_said_is_what_precompute_needs():
    needed = {one["name"] for one in PARAMETERS if not one.get("isOptional")}
    run_flags.precompute([f"--{name}={EXAMPLES[name]}" for name in needed])
    for name in needed:
        with pytest.raises(UsageError, match=f"--{name}"):
            run_flags.precompute([f"--{other}={EXAMPLES[other]}" for other in needed - {name}])


def test_the_dockerfile_copies_what_is_there():
    text = (FOLDER / "Dockerfile").read_text()
    (copied,) = re.findall(r"^COPY (docs/.*) /template/$", text, re.MULTILINE)
    assert {ROOT / file for file in copied.split()} == {FOLDER / "main.py", FOLDER / "metadata.json"}
    assert "ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/main.py\n" in text
    (launcher,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', text, re.MULTILINE)
    assert f"COPY --from=launcher {launcher} {launcher}\n" in text


def test_the_page_gives_parameters_that_there_are():
    page = (DOCS / "recipes" / "dataflow-template.md").read_text()
    ours, beams = re.findall(r"--parameters=(\S+)", page)
    named = re.findall(r"(?:^|,)(\w+)=", ours)
    assert set(named) == {one["name"] for one in PARAMETERS if not one.get("isOptional")}
    assert re.findall(r"(?:^|,)(\w+)=", beams) == ["sdk_container_image", "sdk_location"]


def test_the_program_stages_a_job(tmp_path, monkeypatch, program):
    """As the launcher calls it; the service itself is not there, and a local folder stands for gs://."""
    monkeypatch.setattr(run_module, "_refuse_own_disks", lambda *_: None)
    causal_teacher(tmp_path / "teacher")
    write_jsonl(tmp_path / "corpus.jsonl", documents(6))
    for bucket in ("staging", "staged"):
        (tmp_path / bucket).mkdir()
    program.stage(
        [
            *("--runner=DataflowRunner", "--project=p", "--region=europe-west4", "--job_name=nightly"),
            f"--template_location={tmp_path / 'staged' / 'job.json'}",
            *(f"--staging_location={tmp_path / 'staging'}", f"--temp_location={tmp_path / 'temp'}"),
            *("--sdk_container_image=pkg.dev/p/worker:1", "--sdk_location=container"),
            *("--experiments=use_unified_worker", "--no_auth", "--dataflow_endpoint=http://localhost:1"),
            *(f"--corpus={tmp_path / 'corpus.jsonl'}", f"--teacher={tmp_path / 'teacher'}"),
            *(f"--cache={tmp_path / 'cache'}", "--task=causal-lm", "--max_length=24", "--min_ram=24GB"),
        ]
    )
    job = json.loads((tmp_path / "staged" / "job.json").read_text())
    assert (job["name"], job["type"]) == ("nightly", "JOB_TYPE_BATCH")
    assert (tmp_path / "staging" / "pipeline.pb").stat().st_size > 10_000
    assert not list((tmp_path / "cache").glob("*.parquet")), "nothing was scored here"


def test_a_wrong_parameter_is_refused(program, tmp_path):
    with pytest.raises(UsageError, match="causal-ml"):
        program.stage(
            ["--corpus=c", "--teacher=t", "--task=causal-ml", f"--cache={tmp_path}", "--template_location=x"]
        )
