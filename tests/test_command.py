"""The command: every mistake one line and its status, `--help` with examples, a run from flags to a report."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

import teachonce
from schemas import Cache
from schemas.errors import TooManyRejectsError, UsageError
from tests.pipelines import models
from tests.pipelines.helpers import compress, documents, write_jsonl

ROOT = Path(teachonce.__file__).parent


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    return models.causal_teacher(tmp_path_factory.mktemp("command") / "teacher")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("command") / "corpus.jsonl", documents(8))


@pytest.fixture
def flags(tmp_path, teacher, corpus):
    """Flags of a run that works; the last of equal ones counts, so a test adds its own."""
    given = {"corpus": corpus, "teacher": teacher, "task": "causal-lm", "cache": tmp_path / "cache"}
    return [f"--{name}={value}" for name, value in (given | {"max_length": 24}).items()] + ["--no_progress"]


def told(capsys, *arguments):
    """Exit status, stdout and stderr of one call."""
    status = teachonce.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def refused(capsys, *arguments):
    """The one line that a call with status 2 leaves."""
    status, out, err = told(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    return err


def test_a_call_without_a_verb_shows_the_verbs(capsys):
    status, out, _ = told(capsys)
    assert (status, "precompute" in out) == (2, True)
    status, out, _ = told(capsys, "--help")
    assert status == 0
    assert all(verb in out for verb in teachonce.VERBS)
    assert "no such verb: expected precompute" in refused(capsys, "precomputes")


@pytest.mark.parametrize("verb", teachonce.VERBS)
def test_help_has_two_examples_and_an_unknown_flag_is_refused(capsys, verb):
    with pytest.raises(SystemExit) as exit_:
        teachonce.main([verb, "--help"])
    assert exit_.value.code == 0
    assert len(re.findall(rf"^ +teachonce {verb} ", capsys.readouterr().out, re.MULTILINE)) >= 2
    assert verb in refused(capsys, verb, "--no_such_flag=1")


def test_verify_with_a_teacher_has_a_help_of_its_own(capsys):
    with pytest.raises(SystemExit):
        teachonce.main(["verify", "--teacher", "t", "--help"])
    assert "--max_mean_kl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
        (["--max_len=3"], "unrecognized arguments: --max_len=3"),
        (["--", "--no_such_flag"], "Beam knows no such option"),
        (["--", "--runner=DaskRunner"], "DaskRunner is refused"),
        (["--", "--max_length=3"], "stand before `--`"),
        (["--max_length=0"], "expected a whole number from 1"),
        ([f"--max_length={'9' * 100_000}"], "a number of at most 15 digits"),
        (["--max_length=1"], "max_length (2 tokens at least)"),
        (["--stride=-1"], "expected a whole number from 0"),
        (["--stride=24"], "leaves no room"),
        (["--task=translation"], "invalid choice"),
        (["--keep=best"], "--keep names no policy"),
        (["--keep=top_p:2,k=3"], "--keep is out of range"),
        (["--keep=top_k:3", "--own_logits"], "only threshold and sampled draw entries"),
        (["--keep=sampled:5", "--temperatures", "1", "2"], "draws serve temperature 1 alone"),
        (["--features=middle:1"], "mean:L, cls:L or last:L"),
        (["--keep="], "--keep names no policy"),
        (["--keep=threshold:1/0"], "is no number"),
        (["--keep=threshold:1e-320"], "a tau from 2^-40 on"),
        (["--temperatures", "1", "0"], "temperatures (from 0.1 on) cannot be (1.0, 0.0)"),
        (["--temperatures", "1", "0.05"], "temperatures (from 0.1 on)"),
        (["--temperatures", "1", "nan"], "temperatures (from 0.1 on)"),
        (["--temperatures", "1", "inf"], "temperatures (from 0.1 on)"),
        (["--temperatures", "2"], "temperatures (1 first, each once"),
        (["--features", "mean:-1", "mean:2"], "features (each once)"),
        (["--max_reject_fraction=2"], "max_reject_fraction cannot be 2.0"),
        (["--max_reject_fraction=nan"], "max_reject_fraction"),
        (["--prompt_field=p"], "completion_field"),
        (["--corpus=nothing-here.jsonl"], "--corpus matches no file"),
        (["--corpus=pyproject.toml"], "tells no format"),
        (["--teacher=./nothing-here"], "--teacher: no such folder"),
        (["--teacher=tests"], "config or tokenizer cannot be opened"),
        (["--teacher=no-such-org/no-such-model"], "neither a folder nor a model of the hub"),
        (["--teacher=no such name"], "neither a folder nor a model of the hub"),
        (["--cache=nothing://x"], "no place for a cache"),
        (["--report=nothing-here/report.json"], "--report: no such folder"),
    ],
)
def test_a_wrong_flag_path_or_model_is_one_line(capsys, monkeypatch, flags, extra, words):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert words in refused(capsys, "precompute", *flags, *extra)


def test_a_folder_without_a_whole_model_is_one_line(capsys, tmp_path, flags, teacher):
    for name, content in (
        ("config.json", None),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "nothing"}'),
        ("tokenizer.json", b"{"),
        ("model.safetensors", None),
    ):
        folder = shutil.copytree(teacher, tmp_path / "broken")
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        assert "broken" in refused(capsys, "precompute", *flags, f"--teacher={folder}"), (name, content)
        shutil.rmtree(folder)


def test_flags_that_are_missing_are_named(capsys):
    assert "--corpus, --teacher, --task, --cache" in refused(capsys, "precompute")
    assert "CACHE" in refused(capsys, "verify")


def test_a_run_prints_a_table_writes_a_report_and_does_nothing_twice(capsys, tmp_path, flags):
    report = tmp_path / "report.json"
    status, out, err = told(
        capsys, "precompute", *flags, f"--report={report}", "--features", "mean:1", "last:-1"
    )
    assert (status, err) == (0, "")
    value = json.loads(report.read_text())
    opened = Cache.open(tmp_path / "cache")
    assert [feature.name for feature in opened.spec.features] == ["mean:1", "last:2"]
    assert (value["committed"], value["version"], value["documents"]) == (True, 0, 8)
    assert value["totals"]["tokens"] == opened.totals.tokens
    assert f"{opened.totals.tokens:,}" in out
    status, out, _ = told(
        capsys, "precompute", *flags, f"--report={report}", "--features", "mean:1", "last:-1"
    )
    assert status == 0
    assert "nothing new: 8 documents, all known" in out.replace("\n", " ")
    assert json.loads(report.read_text())["committed"] is False
    assert told(capsys, "verify", tmp_path / "cache")[0] == 0


def test_flags_reach_the_spec(capsys, tmp_path, flags, teacher):
    records = [{"p": f"{i} Say: ", "c": d["text"], "k": i, "x": "y"} for i, d in enumerate(documents(5))]
    file = write_jsonl(tmp_path / "in" / "c.data", records)
    more = ["--format=jsonl", "--prompt_field=p", "--completion_field=c", "--id_field=k", "--keep_text"]
    more += [
        "--keep=top_p:0.9,k=7",
        "--temperatures",
        "1",
        "2",
        "--feature_dtype=float32",
        "--features",
        "mean:0",
    ]
    more += [
        "--stride=4",
        "--dtype=bfloat16",
        "--unit_tokens=99",
        "--row_group_tokens=50",
        "--batch_tokens=64",
    ]
    assert (
        told(capsys, "precompute", *flags, f"--corpus={file}", *more, "--", "--direct_num_workers=1")[0] == 0
    )
    opened = Cache.open(tmp_path / "cache")
    spec = opened.spec
    assert (str(spec.keep), spec.temperatures, spec.supervise) == ("top_p:0.9,k=7", (1.0, 2.0), "assistant")
    assert (spec.stride, spec.max_length, opened.fingerprint.dtype) == (4, 24, "bfloat16")
    assert (spec.has_document_id, spec.has_text, spec.features[0].dtype) == (True, True, "float32")
    assert len(opened.shards) > 1


def test_too_many_rejects_are_status_3_and_say_where_they_are(capsys, tmp_path, flags):
    file = write_jsonl(tmp_path / "blank.jsonl", [{"text": "a text"}, {"text": " "}])
    status, out, err = told(capsys, "precompute", *flags, f"--corpus={file}")
    assert (status, out, err.count("\n")) == (3, "", 1)
    assert f"{tmp_path}/cache/_teachonce/rejects/" in err


def test_another_teacher_for_the_same_cache_is_status_1(capsys, tmp_path, flags):
    assert told(capsys, "precompute", *flags)[0] == 0
    status, _, err = told(capsys, "precompute", *flags, "--keep=top_k:3")
    assert (status, err.count("\n"), "--keep: cache threshold:0.03125,k=1, run top_k:3" in err) == (
        1,
        1,
        True,
    )


def test_a_policy_that_cuts_nothing_is_refused_unless_the_cache_has_it(capsys, tmp_path, flags):
    for keep in ("top_k:5000", "top_k:300", "threshold:1/8,k=300"):
        told_ = refused(capsys, "precompute", *flags, f"--keep={keep}")
        assert "--keep keeps every score of every position" in told_
        assert "Say --keep all" in told_
    assert told(capsys, "precompute", *flags, "--keep=top_k:299")[0] == 0


def test_the_default_of_a_language_model_is_a_threshold_at_every_size(capsys, tmp_path, flags):
    assert told(capsys, "plan", *flags, "--json")[0] == 0
    status, out, _ = told(capsys, "plan", *flags)
    assert (status, "threshold:0.03125,k=1" in out) == (0, True)
    assert told(capsys, "precompute", *flags)[0] == 0
    assert str(Cache.open(tmp_path / "cache").spec.keep) == "threshold:0.03125,k=1"


def test_a_cache_of_the_former_default_is_gone_on_with_by_the_same_command(capsys, tmp_path, flags):
    assert told(capsys, "precompute", *flags, "--keep=all")[0] == 0
    more = write_jsonl(tmp_path / "more.jsonl", documents(10))
    assert told(capsys, "precompute", *flags, f"--corpus={more}")[0] == 0
    opened = Cache.open(tmp_path / "cache")
    assert (str(opened.spec.keep), opened.version, opened.spec.scalars[-1]) == ("all", 1, "logsumexp")


def test_any_other_policy_must_be_said_again(capsys, tmp_path, flags):
    assert told(capsys, "precompute", *flags, "--keep=top_k:5")[0] == 0
    status, _, err = told(capsys, "precompute", *flags)
    assert (status, "--keep: cache top_k:5, run threshold:0.03125,k=1" in err) == (1, True)


def test_traceback_raises_the_error_itself(flags):
    with pytest.raises(UsageError, match="no_such_flag"):
        teachonce.main(["precompute", *flags, "--traceback", "--no_such_flag"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [(UsageError("x"), 2), (TooManyRejectsError("x"), 3), (KeyboardInterrupt(), 130)],
)
def test_an_error_has_its_status(capsys, monkeypatch, error, expected):
    def fail(*_):
        raise error

    monkeypatch.setattr(teachonce, "run", fail)
    status, _, err = told(capsys, "inspect", "c")
    assert (status, err) == (expected, f"teachonce inspect: {str(error) or 'interrupted'}\n")


def test_a_half_that_is_not_installed_is_named(capsys, monkeypatch):
    monkeypatch.setattr(teachonce.importlib, "import_module", missing)
    assert "pip install 'teachonce[pipelines]'" in refused(capsys, "precompute")


def missing(name):
    raise ModuleNotFoundError("No module named 'apache_beam'", name="apache_beam")


def test_as_a_process_a_run_is_quiet_and_a_failure_is_one_line(tmp_path, corpus, flags):
    """The real command, in processes of their own: what a shell, cron and people see."""
    cut = compress(shutil.copy(corpus, tmp_path / "c.jsonl"), ".gz")
    cut.write_bytes(cut.read_bytes()[:-9])
    calls = {
        "fine": ["precompute", *flags],
        "cut": ["precompute", *flags, f"--corpus={cut}", f"--cache={tmp_path}/other"],
        "traced": ["--traceback", "precompute", *flags, "--no_such_flag"],
    }
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", "teachonce", *call],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, call in calls.items()
    }
    done = {name: (*process.communicate(), process.returncode) for name, process in started.items()}
    out, err, status = done["fine"]
    assert (status, err) == (0, "")
    assert "kept mass" in out
    out, err, status = done["cut"]
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert f"ends inside a frame: {cut}" in err
    _, err, status = done["traced"]
    assert (status, "Traceback" in err, "UsageError" in err) == (1, True, True)
