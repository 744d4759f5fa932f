"""Workers of another build than the one that started the run are refused, in one line."""

import dataclasses
import shutil
from pathlib import Path

import apache_beam as beam
import pytest

import schemas
from pipelines.job import pipeline as job_module
from pipelines.job.pipeline import build
from pipelines.job.run import execute, prepare
from pipelines.scoring.handler import TeacherHandler
from pipelines.versions import check_versions, package_hash, shared_versions
from schemas.errors import TeacherError
from tests.pipelines.helpers import config


def changed(job, **run):
    return dataclasses.replace(job, run=dataclasses.replace(job.run, **run))


@pytest.mark.parametrize("name", ["teachonce", "apache-beam", "code"])
def test_a_worker_of_another_build_says_so_in_one_line(name, corpus, teacher, tmp_path):
    job, options = prepare(config(corpus, teacher, tmp_path / "c"))
    job = changed(job, versions={**shared_versions(), name: "0.0.1"})
    with pytest.raises(TeacherError, match=rf"expected {name} 0\.0\.1, got {name} ") as caught:
        execute(job, options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c" / "_delta_log").exists()


def test_the_teachers_own_step_asks_too(corpus, teacher, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(job_module, "TeacherHandler", lambda job: built.append(job) or TeacherHandler(job))
    job, options = prepare(config(corpus, teacher, tmp_path / "c"))
    for versions in (shared_versions(), {"teachonce": "9"}):
        build(beam.Pipeline(options=options), changed(job, versions=versions))
    same, other = built
    TeacherHandler(same).load_model()
    with pytest.raises(TeacherError, match="worker has other versions"):
        TeacherHandler(other).load_model()


def test_every_difference_is_named_also_one_that_this_build_does_not_know():
    check_versions(shared_versions())
    with pytest.raises(TeacherError, match=r"expected teachonce 9, shape 2, got teachonce .*, shape None"):
        check_versions({**shared_versions(), "teachonce": "9", "shape": "2"})


def test_an_edit_is_seen_however_deep_it_lies(tmp_path):
    """A byte of any file, a file that is renamed, moved to another room, added, or taken away."""
    source = Path(schemas.__file__).parent
    copy = Path(shutil.copytree(source, tmp_path / "schemas", ignore=shutil.ignore_patterns("__pycache__")))
    found = {package_hash(source)}
    assert found == {package_hash(copy)}
    files = sorted(copy.rglob("*.py"))
    assert {len(file.relative_to(copy).parts) for file in files} == {1, 2, 3}
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data + b"\n")
        found.add(package_hash(copy))
        file.write_bytes(data)
    moved = copy / "rows" / "codec.py"
    for target in (copy / "shards" / "codec.py", copy / "rows" / "codecs.py", tmp_path / "gone.py"):
        moved = moved.rename(target)
        found.add(package_hash(copy))
    (copy / "rows" / "deeper").mkdir()
    (copy / "rows" / "deeper" / "new.py").write_bytes(b"")
    found.add(package_hash(copy))
    assert len(found) == 1 + len(files) + 4
