"""The pipeline as Dataflow gets it: translated by the real runner up to the request, which is never sent.

A `localhost` endpoint keeps Beam from asking the network about buckets, and `--template_location` ends the run once the
graph, the packages and the job's description are staged, here in a folder.
"""

import base64
import bz2
import json
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.portability.api import beam_runner_api_pb2 as protos
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.pipeline_context import PipelineContext

import schemas
from pipelines.engine.beam_options import parse_beam_options
from pipelines.job import pipeline as job_module
from pipelines.job.existing_rows import live_windows
from pipelines.job.pipeline import build
from pipelines.job.run import prepare
from schemas import Cache
from schemas.errors import UsageError
from tests.pipelines.helpers import config, run

ROOT = Path(schemas.__file__).parents[1]
IMAGE = "europe-west4-docker.pkg.dev/project-1/teachonce/worker:1"
ACCELERATOR = "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"
HINTS = {
    "beam:resources:accelerator:v1": ACCELERATOR.encode(),
    "beam:resources:min_ram_bytes:v1": b"64000000000",
}
TEACHER_STEPS = {"unpack units", "ask the teacher/BeamML_RunInference"}


def translate(folder, corpus, teacher, extra=None, **changes):
    """What the runner stages and would send: packages, the graph, the job."""
    source, staging = folder / "source", folder / "staging"
    staging.mkdir(parents=True)
    source.mkdir()
    for package in ("schemas", "pipelines", "trainer"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "teachonce.py", "README.md"):
        shutil.copy(ROOT / file, source / file)
    flags = (
        "--runner=DataflowRunner",
        "--project=project-1",
        "--region=europe-west4",
        "--job_name=nightly",
        f"--staging_location={staging}",
        f"--temp_location={folder / 'temp'}",
        f"--setup_file={source / 'setup.py'}",
        f"--sdk_container_image={IMAGE}",
        "--sdk_location=container",
        "--experiments=no_use_multiple_sdk_containers",
        "--number_of_worker_harness_threads=2",
        "--machine_type=n2-standard-4",
        "--save_main_session",
        "--no_auth",
        "--dataflow_endpoint=http://localhost:1",
    )
    # a local cache, which no store has to answer for; on Dataflow itself it is refused
    job, _ = prepare(config(corpus, teacher, folder / "cache", **changes))
    provenance = {**job.run.provenance, "runner": "DataflowRunner"}
    job = replace(job, run=replace(job.run, provenance=provenance))
    options = parse_beam_options(flags)
    options.view_as(GoogleCloudOptions).template_location = str(folder / "job.json")
    pipeline = beam.Pipeline(options=options)
    assert isinstance(pipeline.runner, DataflowRunner)
    build(pipeline, job)
    if extra:
        extra(pipeline)
    pipeline.run()
    graph = protos.Pipeline.FromString((staging / "pipeline.pb").read_bytes())
    return SimpleNamespace(
        staging=staging,
        components=graph.components,
        job=json.loads((folder / "job.json").read_text()),
        steps={step.unique_name: step for step in graph.components.transforms.values()},
        coders=PipelineContext(graph.components).coders,
    )


@pytest.fixture(scope="module")
def dataflow(tmp_path_factory, corpus, teacher):
    return translate(
        tmp_path_factory.mktemp("dataflow"),
        corpus,
        teacher,
        accelerator=ACCELERATOR,
        min_ram="64GB",
        prune=True,
    )


def leaves(translated):
    """The steps that workers run, by name."""
    return {name: step for name, step in translated.steps.items() if step.environment_id}


def environment(translated, step):
    return translated.components.environments[step.environment_id]


def element_coder(translated, step):
    """The coder of a step's only output."""
    (name,) = step.outputs.values()
    return translated.coders.get_by_id(translated.components.pcollections[name].coder_id)


def test_hints_stand_on_the_teachers_step_alone(dataflow):
    hinted = {name: dict(environment(dataflow, s).resource_hints) for name, s in leaves(dataflow).items()}
    assert len(hinted) > 20
    ours = {name: hints for name, hints in hinted.items() if hints}
    leaf = {name for name in ours if not dataflow.steps[name].subtransforms}
    assert leaf == TEACHER_STEPS
    assert all(hints == HINTS for hints in ours.values())


def test_without_flags_there_are_no_hints(tmp_path, corpus, teacher):
    found = translate(tmp_path, corpus, teacher)
    assert [dict(e.resource_hints) for e in found.components.environments.values()] == [{}]


def test_the_workers_run_our_image_one_process_a_machine(dataflow):
    images = {
        protos.DockerPayload.FromString(e.payload).container_image
        for e in dataflow.components.environments.values()
    }
    (pool,) = dataflow.job["environment"]["workerPools"]
    assert images == {i["containerImage"] for i in pool["sdkHarnessContainerImages"]} == {IMAGE}
    assert (pool["machineType"], pool["numThreadsPerWorker"]) == ("n2-standard-4", 2)
    experiments = dataflow.job["environment"]["experiments"]
    assert "no_use_multiple_sdk_containers" in experiments
    assert "use_multiple_sdk_containers" not in experiments


def test_the_package_is_staged_whole_and_no_session_with_it(dataflow):
    staged = {file.name for file in dataflow.staging.iterdir()}
    assert staged == {"workflow.tar.gz", "pipeline.pb", "submission_environment_dependencies.txt"}
    for each in dataflow.components.environments.values():
        roles = [
            protos.ArtifactStagingToRolePayload.FromString(d.role_payload).staged_name
            for d in each.dependencies
        ]
        assert set(roles) == staged - {"pipeline.pb"}
    with tarfile.open(dataflow.staging / "workflow.tar.gz") as package:
        packed = {name.partition("/")[2] for name in package.getnames()}
    ours = {f for p in ("schemas", "pipelines", "trainer") for f in (ROOT / p).rglob("*.py")}
    assert packed >= {str(f.relative_to(ROOT)) for f in ours} | {"teachonce.py", "setup.py"}
    assert not [name for name in packed if name.startswith(("tests", "benchmarks"))]


def pickled(translated):
    """Every pickled value of the graph, unpacked: (where, pickle's bytes)."""
    specs = [(name, step.spec) for name, step in translated.steps.items()]
    specs += [(name, coder.spec) for name, coder in translated.components.coders.items()]
    for name, spec in specs:
        payload = spec.payload
        if spec.urn == "beam:transform:pardo:v1":
            payload = protos.ParDoPayload.FromString(payload).do_fn.payload
        elif spec.urn.startswith("beam:transform:combine"):
            payload = protos.CombinePayload.FromString(payload).combine_fn.payload
        try:
            yield name, bz2.decompress(base64.b64decode(payload))
        except (ValueError, OSError):
            assert spec.urn != "beam:transform:pardo:v1", name


def from_main(translated):
    return sorted(name for name, data in pickled(translated) if b"__main__" in data)


def test_nothing_is_pickled_from_main(dataflow):
    names = {name for name, _ in pickled(dataflow)}
    work = {"tokenise/ParDo(Tokenise)", "assign units", "commit", *TEACHER_STEPS}
    assert names >= work
    assert from_main(dataflow) == []


def test_a_step_from_main_would_be_seen(tmp_path, corpus, teacher, monkeypatch):
    main = sys.modules["__main__"]
    source = "class Stray(beam.DoFn):\n    def process(self, element):\n        yield element\n"
    scope = {"__name__": "__main__", "beam": beam}
    exec(source, scope)
    monkeypatch.setattr(main, "Stray", scope["Stray"], raising=False)
    found = translate(
        tmp_path,
        corpus,
        teacher,
        lambda pipeline: pipeline | beam.Create([1]) | "stray" >> beam.ParDo(scope["Stray"]()),
    )
    assert from_main(found) == ["stray"]


def readers(translated, pcollections):
    return {
        n: s
        for n, s in translated.steps.items()
        if not s.subtransforms and pcollections & {*s.inputs.values()}
    }


def test_units_go_to_the_teacher_and_lines_to_the_commit(dataflow):
    """Between machines of two kinds stand only grouped inputs on one side and lines on the other."""
    made_by = {o: n for n, s in dataflow.steps.items() if not s.subtransforms for o in s.outputs.values()}
    entering = {made_by[i] for name in TEACHER_STEPS for i in dataflow.steps[name].inputs.values()}
    assert entering - TEACHER_STEPS == {"group units"}
    found, edge = [], {*dataflow.steps["ask the teacher/BeamML_RunInference"].outputs.values()}
    assert sorted(readers(dataflow, edge)) == ["meet lines", "name what was not scored"]
    while edge:
        next_steps = readers(dataflow, edge)
        found += next_steps
        edge = {o for step in next_steps.values() for o in step.outputs.values()}
    names = {
        "name what was not scored",
        "meet what was not scored",
        "spare old rows",
        "group by shard",
        "rewrite",
    }
    assert {name.split("/")[0] for name in found} == {"meet lines", "commit", *names}


def test_what_leaves_the_teacher_is_a_line_however_large_the_shard(
    tmp_path, corpus, teacher, dataflow, monkeypatch
):
    coder = element_coder(dataflow, dataflow.steps["ask the teacher/BeamML_RunInference"])
    finish, seen = job_module.finish, []

    def weighed(run, lines, *rest):
        lines = list(lines)
        seen.append([(len(coder.encode(line)), line.size_bytes) for line in lines])
        return finish(run, lines, *rest)

    monkeypatch.setattr(job_module, "finish", weighed)
    for unit_tokens in (300, 10**6):
        run(corpus, teacher, tmp_path / str(unit_tokens), unit_tokens=unit_tokens)
    small, whole = seen
    assert len(small) > 3
    assert len(whole) == 1
    assert max(size for size, _ in small + whole) < 1500
    assert max(size for size, _ in whole) - max(size for size, _ in small) < 50
    assert whole[0][1] > 15 * whole[0][0]


@pytest.mark.parametrize(("may_leave", "size_bytes"), [(False, 40), (True, 134)])
def test_a_known_window_is_a_few_bytes_in_the_join(may_leave, size_bytes, whole, dataflow):
    """What `docs/dataflow.md` says that a known example costs: key and value, as the shuffle's coder writes them."""
    opened = Cache.open(whole[0])
    tag = dataflow.steps["meet by hash/CoGroupByKeyImpl/Tag[stored]"]
    payload = protos.ParDoPayload.FromString(tag.spec.payload).do_fn.payload
    step, args, kwargs, *_ = pickler.loads(payload)
    grouped = dataflow.steps["meet by hash/CoGroupByKeyImpl/Flatten"]
    coder = element_coder(dataflow, grouped)
    sizes = []
    for shard in opened.shards:
        for window in live_windows(tuple(shard), str(whole[0]), opened.header, may_leave):
            (element,) = step.process(window, *args, **kwargs)
            sizes.append(len(coder.encode(element)))
    assert len(sizes) == opened.record.live_rows > 24
    assert max(sizes) <= size_bytes < max(sizes) + 3


@pytest.mark.parametrize(
    "changes",
    [
        {"accelerator": "nvidia-l4"},
        {"accelerator": "type:nvidia-l4;count:0"},
        {"accelerator": "type:nvidia-l4;count:1;install nvidia"},
        {"min_ram": "64"},
        {"min_ram": "much"},
    ],
)
def test_a_hint_that_beam_would_take_and_dataflow_refuse_is_refused(changes, corpus, teacher, tmp_path):
    (name,) = changes
    with pytest.raises(ValueError, match=name):
        config(corpus, teacher, tmp_path, **changes)


def test_a_template_is_refused():
    with pytest.raises(UsageError, match="template"):
        parse_beam_options(("--runner=DataflowRunner", "--template_location=gs://b/t"))
