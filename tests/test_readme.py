"""The README's tour in the shell runs as it is written, on a small teacher and corpus."""

import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import teachonce
from tests.pipelines import models
from tests.pipelines.helpers import compress, documents, write_jsonl

README = Path(teachonce.__file__).parent / "README.md"


def tour():
    """The commands of the first block in bash."""
    block = re.search(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(command, comments=True) for line in lines for command in line.split("&&")]


def test_the_tour_runs(tmp_path, monkeypatch, capsys):
    teacher = models.causal_teacher(tmp_path / "teacher")
    compress(write_jsonl(tmp_path / "corpus" / "part.jsonl", documents(80)), ".zst")
    shutil.copy(teacher / "config.json", tmp_path / "student.json")
    for name in ("students.yaml", "space.yaml"):
        shutil.copy(README.parent / "examples" / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("e > 3\nr\n"))
    commands = tour()
    assert {words[1] for words in commands} == set(teachonce.VERBS) - {"forget"}
    for name, *words in commands:
        assert name == "teachonce"
        status = teachonce.main(words)
        out, err = capsys.readouterr()
        assert (status, out != "") == (0, True), f"{words}: {err}"
    assert list((tmp_path / "plain").glob("*.parquet"))
