"""Each heading of `docs/troubleshooting.md` is the beginning of an error that a command really ends with."""

import json
import re
import shutil
from pathlib import Path

import pytest

import teachonce
from tests.pipelines import models
from tests.pipelines.helpers import documents, write_jsonl

PAGE = Path(teachonce.__file__).parent / "docs" / "troubleshooting.md"
HEADINGS = re.findall(r"^### `(.*)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

RUN = "precompute --corpus corpus.jsonl --teacher ./teacher --task causal-lm --max_length 24 --no_progress --cache "
TRAIN = "train --student student.json --max_steps 1 --use_cpu --report_to none --output_dir new --losses kl=1 --cache "
CALLS = {
    "unrecognized arguments: --batch_token 5": f"{RUN}cache --batch_token 5",
    "Beam knows no such option": f"{RUN}new -- --runer=FlinkRunner",
    "--keep names no policy": f"{RUN}new --keep topk:64",
    "argument --older_than: expected days or hours, as 7d or 12h": "vacuum cache --older_than 7",
    "--corpus matches no file": f"{RUN}new --corpus nothing/*.jsonl",
    "--corpus names files on the hub, which cannot be asked": f"{RUN}new --corpus hf://datasets/a/b/*.jsonl",
    "a corpus file's name tells no format": f"{RUN}new --corpus corpus.data",
    "--text_field body: none of the first 24 records has such a field": f"{RUN}new --text_field body",
    "1 of 4 documents are rejected": f"{RUN}new --corpus bad.jsonl",
    "--teacher: no such folder": f"{RUN}new --teacher ./nowhere",
    "--teacher is neither a folder nor a model of the hub": f"{RUN}new --teacher some/model",
    "the teacher's folder holds no weights": f"{RUN}new --teacher ./bare",
    "the teacher's files lack weights of LlamaForSequenceClassification": f"{RUN}new --task sequence-classification",
    "this run would mix another teacher or spec into the cache": f"{RUN}cache --max_length 12",
    "no cache is there": "inspect nowhere",
    "--prune would remove 50 of 54 rows": f"{RUN}cache --corpus few.jsonl --prune",
    "a shard is missing": "export gone --out new",
    "a row group's bytes are not those that were sealed": "export flipped --out new",
    "--output_dir holds a student of another run, or its checkpoints": f"{TRAIN}cache --output_dir taken",
    "the losses are not as they should be": f"{TRAIN}cache --losses kll=1",
    "feature needs features, and the cache holds none": f"{TRAIN}cache --losses feature=1",
    "the cache cannot serve this temperature": f"{TRAIN}cache --temperature 2",
    "the student's vocabulary is too small for the tokenizer": f"{TRAIN}cache --student small.json",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus, a teacher, a cache; and each as it should not be."""
    folder = tmp_path_factory.mktemp("trouble")
    teacher = models.causal_teacher(folder / "teacher")
    write_jsonl(folder / "corpus.jsonl", documents(24))
    write_jsonl(folder / "few.jsonl", documents(3))
    write_jsonl(folder / "bad.jsonl", [*documents(3), b"{broken"])
    shutil.copy(folder / "corpus.jsonl", folder / "corpus.data")
    shutil.copytree(teacher, folder / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    student = json.loads((teacher / "config.json").read_text())
    (folder / "student.json").write_text(json.dumps(student))
    (folder / "small.json").write_text(json.dumps(student | {"vocab_size": 100}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert teachonce.main(f"{RUN}cache --unit_tokens 400".split()) == 0
        assert teachonce.main(f"{TRAIN}cache --output_dir taken".split()) == 0
    next(shutil.copytree(folder / "cache", folder / "gone").glob("*.parquet")).unlink()
    shard = next(shutil.copytree(folder / "cache", folder / "flipped").glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    return folder


def test_the_page_has_the_errors_that_are_tried():
    assert list(CALLS) == HEADINGS
    assert len(HEADINGS) >= 20


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_code_says_so(place, tmp_path, monkeypatch, capsys, heading):
    monkeypatch.chdir(shutil.copytree(place, tmp_path / "here"))
    words = CALLS[heading].split()
    assert teachonce.main(words) in (1, 2, 3)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("teachonce ")]
    assert line.startswith(f"teachonce {words[0]}: {heading}"), line
    assert not Path("new/model.safetensors").exists()
    assert not list(Path().glob("new/*.parquet"))
