"""What is fetched is what was pinned, or one line says what is wrong."""

import os
import subprocess
import sys

import pytest

from tests.engines import fetch
from tests.engines.servers import engine


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """A folder of engines with one jar, pinned."""
    monkeypatch.setattr(fetch, "ENGINES", tmp_path)
    monkeypatch.setattr(fetch, "SUMS", tmp_path / "jars.sha256")
    (tmp_path / "flink").mkdir()
    (tmp_path / "flink" / "a.jar").write_bytes(b"as it came")
    fetch.write_sums()
    fetch.check_jars()
    return tmp_path / "flink"


def test_a_jar_that_differs_is_missing_or_is_unknown(pinned):
    assert fetch.jars_are_there("flink")
    (pinned / "b.jar").write_bytes(b"from elsewhere")
    with pytest.raises(fetch.FetchError, match=r"1 jars .* flink/b.jar: expected None"):
        fetch.check_jars()
    (pinned / "b.jar").unlink()
    (pinned / "a.jar").write_bytes(b"as it cane")
    with pytest.raises(fetch.FetchError, match=r"flink/a.jar: expected [0-9a-f]{64}, got [0-9a-f]{64}"):
        fetch.check_jars()
    (pinned / "a.jar").unlink()
    assert not fetch.jars_are_there("flink")


def test_a_program_of_another_module_is_not_taken_for_ours(monkeypatch):
    program = fetch.PROGRAMS["prism"]
    engine("bin/prism")
    assert fetch.program_is_there("prism")
    monkeypatch.setitem(fetch.PROGRAMS, "prism", program._replace(module_sum="h1:another"))
    assert not fetch.program_is_there("prism")


def test_without_its_tools_it_says_so_in_one_line(tmp_path):
    env = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, fetch.__file__], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if not line.endswith(": there")] == []
    assert done.stderr == "engines: go, mvn, java not found: install go (1.26 or newer), mvn and java (17)\n"


@pytest.mark.parametrize(("ci", "raised"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_an_engine_that_is_not_there_is_a_failure_where_ci_runs_it(monkeypatch, ci, raised):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(raised, match="run `make engines`"):
        engine("bin/none")
