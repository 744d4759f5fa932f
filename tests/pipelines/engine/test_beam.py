"""Beam only wires: outputs never cross a stage, bundles may run twice, and a wrong option is an error."""

import json
from collections.abc import Iterable
from typing import get_type_hints

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import SetupOptions, StandardOptions
from apache_beam.pipeline import PipelineVisitor

from pipelines.corpus.examples import Example
from pipelines.engine.beam_options import parse_beam_options
from pipelines.job import pipeline as job_module
from pipelines.job.outcome import RunSummary
from pipelines.job.pipeline import build, commit_run, members
from pipelines.job.run import prepare
from pipelines.scoring import handler
from pipelines.scoring.handler import TeacherHandler
from pipelines.scoring.units import ShardLine, UnitScorer
from schemas import Cache
from schemas.errors import TeachonceError, UsageError
from tests.pipelines.helpers import config, read, run


def test_bundles_that_run_twice_give_the_same_rows_each_once(tmp_path, corpus, teacher, whole, monkeypatch):
    score, scored = UnitScorer.score, []

    def counted(self, unit, examples):
        scored.append(unit)
        return score(self, unit, examples)

    monkeypatch.setattr(UnitScorer, "score", counted)
    twice = run(
        corpus, teacher, tmp_path / "c", beam_options=("--direct_runner_bundle_repeat=2",), unit_tokens=400
    )
    cache, once = whole
    assert len(scored) > len(set(scored)) == twice.shards
    assert read(tmp_path / "c").keys() == read(cache).keys()
    assert Cache.open(tmp_path / "c").verify().examples == once.totals.examples
    assert (twice.documents, twice.new_documents, twice.totals.tokens) == (24, 24, once.totals.tokens)


def test_threads_of_one_process_open_the_teacher_once(tmp_path, corpus, teacher, whole, monkeypatch):
    open_scorer, opened = handler.open_scorer, []

    def counted(job):
        opened.append(job.run)
        return open_scorer(job)

    monkeypatch.setattr(handler, "open_scorer", counted)
    threads = ("--direct_num_workers=4", "--direct_running_mode=multi_threading")
    run(corpus, teacher, tmp_path / "c", beam_options=threads, unit_tokens=50)
    assert len(opened) == 1
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()


@pytest.mark.parametrize(
    "flags",
    [
        ("--direct_num_workers=2", "--direct_running_mode=multi_threading"),
        ("--runner=FnApiRunner", "--no_such_thing=1"),
        ("--runner", "DaskRunner"),
        ("--runner=apache_beam.runners.dask.dask_runner.DaskRunner",),
        ("--direct_num_workers=many",),
        ("--direct_num_worker=2",),
        ("--cache=elsewhere",),
        ("stray",),
        ("--runner",),
    ],
)
def test_options_of_beam_are_known_or_refused(flags):
    if flags[0].startswith("--direct_num_workers=2"):
        assert parse_beam_options(flags).get_all_options()["direct_num_workers"] == 2
        return
    with pytest.raises(UsageError) as caught:
        parse_beam_options(flags)
    assert "\n" not in str(caught.value)


def test_a_misspelt_option_gets_a_suggestion_and_dask_its_reason():
    with pytest.raises(UsageError, match="Did you mean --direct_num_workers"):
        parse_beam_options(("--direct_num_worker=2",))
    with pytest.raises(UsageError, match=r"DaskRunner is refused: got .* loses elements of grouped data"):
        parse_beam_options(("--runner=DaskRunner",))


def test_the_default_engine_is_pinned_and_no_main_session_is_pickled():
    options = parse_beam_options(())
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    for flags in ((), ("--save_main_session",)):
        assert parse_beam_options(flags).view_as(SetupOptions).save_main_session is False
    flink = parse_beam_options(("--runner=FlinkRunner", "--flink_master=host:8081", "--parallelism=4"))
    assert flink.get_all_options()["flink_master"] == "host:8081"


class Steps(PipelineVisitor):
    """Every leaf transform, in the order of the graph."""

    def __init__(self):
        self.found = []

    def visit_transform(self, node):
        self.found.append(node)


@pytest.fixture(scope="module", params=[True, False], ids=["prune", "keep all"])
def graph(request, tmp_path_factory, corpus, teacher):
    cache = tmp_path_factory.mktemp("graph") / "c"
    job, options = prepare(config(corpus, teacher, cache, prune=request.param))
    pipeline = beam.Pipeline(options=options)
    build(pipeline, job)
    steps = Steps()
    pipeline.visit(steps)
    return pipeline, steps.found


def read_by(step):
    """Main and side inputs of a step."""
    return {*step.main_inputs.values(), *(side.pvalue for side in step.side_inputs)}


def test_the_teachers_output_goes_to_the_commit_and_nowhere_else(graph, request):
    _, steps = graph
    inference = [step for step in steps if step.full_label.startswith("ask the teacher")]
    found, edge = set(), {output for step in inference for output in step.outputs.values()}
    while edge:
        readers = [step for step in steps if edge & read_by(step)]
        found |= {step.full_label.split("/")[0] for step in readers}
        edge = {output for step in readers for output in step.outputs.values()}
    spared = {
        "name what was not scored",
        "meet what was not scored",
        "spare old rows",
        "group by shard",
        "rewrite",
    }
    if request.node.callspec.params["graph"] is False:  # where nothing may leave, no step looks for it
        spared = set()
    assert found == {"await lines", "meet lines", "commit", *spared}
    assert get_type_hints(TeacherHandler.run_inference)["return"] == Iterable[ShardLine | int]


def test_what_leaves_the_teachers_step_does_not_grow_with_its_tokens(tmp_path, corpus, teacher, monkeypatch):
    finish, sizes = job_module.finish, []

    def weighed(run, lines, *rest):
        sizes.append([len(json.dumps(line, default=bytes.hex)) for line in lines])
        return finish(run, lines, *rest)

    monkeypatch.setattr(job_module, "finish", weighed)
    for unit_tokens in (300, 10**6):
        run(corpus, teacher, tmp_path / str(unit_tokens), unit_tokens=unit_tokens)
    small, whole = sizes
    assert (len(small) > 3, len(whole)) == (True, 1)
    assert max(small + whole) < 1000


def test_the_graph_has_one_inference_and_no_batching(graph):
    """That nothing is pickled from `__main__` is seen in `test_dataflow.py`, which unpacks the payloads."""
    pipeline, steps = graph
    assert not [step.full_label for step in steps if "BatchElements" in step.full_label]
    names = [one.unique_name for one in pipeline.to_runner_api().components.transforms.values()]
    assert [name for name in names if name.endswith("BeamML_RunInference")] == [
        "ask the teacher/BeamML_RunInference"
    ]


def test_a_units_members_are_sorted_and_each_id_once():
    def example(key, index=0):
        return Example(key, b"d", index, 1, b"\0" * 8, None, None, None, None, None, None, "f", 0)

    unit = (3, [tuple(example(key)) for key in (b"c", b"a", b"b", b"a", b"c")])
    assert [e.id for e in members(unit)] == [b"a", b"b", b"c"]


def test_the_last_step_takes_lines_as_an_engine_hands_them_on(tmp_path, corpus, teacher):
    """Beam's coders return named tuples as plain ones, and tuples inside as lists or tuples."""
    job, _ = prepare(config(corpus, teacher, tmp_path / "c"))
    found = commit_run(None, job.run, [], {"documents": 3, "known_documents": 3}, [])
    assert isinstance(found, RunSummary)
    assert (found.committed, found.version, found.known_documents) == (False, -1, 3)


def test_an_error_of_an_engine_is_told_in_one_line(corpus, teacher, tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("something\nwith lines")

    monkeypatch.setattr(job_module, "pass_gate", fail)
    with pytest.raises(TeachonceError, match="the pipeline failed; nothing was committed") as caught:
        run(corpus, teacher, tmp_path / "c")
    assert "\n" not in str(caught.value)
