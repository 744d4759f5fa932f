"""The examples of every task, run for real and small: MiniLM, and text and images that packages ship.

Where packages cannot be had the runs are skipped with the reason; `TEACHONCE_DATA` names a folder that
`benchmarks/assets.py` has filled, `data/` is taken too. How corpora are read is tested everywhere.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image

from benchmarks import assets
from examples import digit_embeddings, digits, every_task
from examples.every_task_cases import CASES, MARKS, TAGS, answer_rows, list_rows

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "entities": ("minilm", "terms.jsonl"),
    "answers": ("minilm", "senses.jsonl"),
    "sequences": ("pronunciations.jsonl",),
    "embeddings": ("minilm", "senses.jsonl"),
    "reranking": ("minilm", "senses.jsonl"),
    "masks": ("minilm", "senses.jsonl"),
}
NOUNS = """  1 This software and database is being provided to you.
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is perceived to have its own existence
12345678 20 n 02 oak 0 oak_tree 0 001 @ 13104059 n 0000 | a deciduous tree; "an old oak tree stood there"
12345679 15 n 01 bank(p) 0 000 | sloping land; "they pulled the canoe up on the banks"; "he watched"
"""
PAGE = """<p>Plain words only, and nothing is marked here.</p><p>
 Use <code class="command">ALTER TABLE</code>, or call <code class="function">now()</code> in
 <em class="emphasis">any</em> <span class="productname">PostgreSQL</span> &lt; 16.</p>"""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Gives a folder with a case's files; what no folder has is fetched once."""
    own = tmp_path_factory.mktemp("data")

    def found(case):
        names = FILES[case]
        for folder in (os.environ.get("TEACHONCE_DATA"), ROOT / "data"):
            if folder and all(Path(folder, name).exists() for name in names):
                return Path(folder)
        if missing := [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]:
            pytest.skip(f"texts come from Debian packages, and there is no {missing[0]}")
        for name in names:
            if not (own / name).exists():
                try:
                    getattr(assets, name.removesuffix(".jsonl"))(own)
                except subprocess.CalledProcessError as error:
                    pytest.skip(f"a package could not be had: {' '.join(map(str, error.cmd))}")
        return own

    return found


@pytest.mark.parametrize("name", CASES)
def test_a_case_runs_from_its_corpus_to_its_table(name, data, tmp_path, monkeypatch, capsys):
    case, folder = CASES[name], data(name)
    scale = max(0.04, 30 / case.size)
    monkeypatch.setattr(
        sys,
        "argv",
        ["every_task", str(tmp_path), "--data", str(folder), "--only", name, "--scale", str(scale)],
    )
    monkeypatch.setattr(every_task, "ASIDE", 60)
    every_task.main()
    printed, place = capsys.readouterr().out, tmp_path / name
    found = json.loads((place / "results.json").read_text())
    assert list(found) == ["teacher", *case.students]
    columns = (*case.metrics, *(("neighbours_of_its_class",) if name == "embeddings" else ()))
    for model, (metrics,) in found.items():
        assert all(math.isfinite(metrics[column]) for column in columns), metrics
        row = next(line for line in printed.splitlines() if line.startswith(f"│ {model} "))
        assert f"{metrics['parameters']:,}" in row
    (teacher,), students = found["teacher"], [found[model][0] for model in case.students]
    assert all(one["parameters"] < teacher["parameters"] for one in students)
    corpus = set((place / "corpus.jsonl").read_text("utf-8").splitlines())
    assert len(corpus) == round(case.size * scale)
    saved = [path.parent.name for path in place.glob("*-0/model.safetensors")]
    assert len(saved) == len(case.students)
    if name == "embeddings":
        check_untaught(place)


def check_untaught(place):
    """Three of the teacher's own layers, as they were."""
    ours, theirs = (
        transformers.AutoModel.from_pretrained(place / one) for one in ("3-layers-without-0", "teacher")
    )
    kept = [layer.attention.self.query.weight for layer in ours.encoder.layer]
    every = [layer.attention.self.query.weight for layer in theirs.encoder.layer]
    assert len(kept) == 3
    assert all(any(torch.allclose(one, other, atol=1e-6) for other in every) for one in kept)


def test_neighbours_are_those_of_plain_embeddings(data):
    """Of MiniLM: two pairs of near texts, of which one pair has one class."""
    texts = [
        "a large tree with broad leaves",
        "a very big tree with wide leaves",
        "to walk fast",
        "walking quickly",
    ]
    rows = [{"text": text, "class": name} for text, name in zip(texts, "aabc", strict=True)]
    assert every_task.neighbours(data("embeddings") / "minilm", rows) == 0.5


def senses_of(folder):
    (folder / "data.noun").write_text(NOUNS)
    for part in ("verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("  1 nothing\n")
    return list(assets.meanings(folder))


def test_a_meaning_has_its_words_and_sentences(tmp_path):
    entity, oak, bank = senses_of(tmp_path)
    assert entity == {
        "definition": "that which is perceived to have its own existence",
        "label": "noun.Tops",
        "words": ["entity"],
        "sentences": [],
    }
    assert (oak["words"], oak["label"]) == (["oak", "oak tree"], "noun.plant")
    assert bank["words"] == ["bank"]
    assert bank["sentences"] == ["they pulled the canoe up on the banks", "he watched"]


def test_an_answer_stands_where_it_is_said_to(tmp_path):
    assets.write(tmp_path / "senses.jsonl", iter(senses_of(tmp_path)))
    rows = answer_rows(tmp_path)
    assert [row["answers"]["text"] for row in rows] == [["oak"], ["banks"]], (
        "of two words the first that is there"
    )
    for row in rows:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text


def test_a_list_has_one_right_word_and_others_of_its_class(tmp_path):
    many = [
        {"definition": f"meaning {i}", "label": f"class {i % 2}", "words": [f"word {i}"], "sentences": []}
        for i in range(40)
    ]
    assets.write(tmp_path / "senses.jsonl", iter(many))
    rows = list_rows(tmp_path)
    assert len(rows) > 20, "but for those that drew their own word"
    for row in rows:
        number = int(row["text"].split()[1])
        assert row["docs"][row["label"].index(1)] == f"word {number}"
        assert (sum(row["label"]), len(set(row["docs"]))) == (1, 8)
        assert {int(word.split()[1]) % 2 for word in row["docs"]} == {number % 2}


def test_what_a_page_marks_is_what_its_words_are_tagged_as():
    (row,) = assets.marked(PAGE)
    assert list(zip(row["tokens"], row["tags"], strict=True)) == [
        ("Use", "O"),
        ("ALTER", "B-command"),
        ("TABLE", "I-command"),
        *((one, "O") for one in (",", "or", "call")),
        *(("now", "B-function"), ("(", "I-function"), (")", "I-function")),
        *((one, "O") for one in ("in", "any")),
        ("PostgreSQL", "B-productname"),
        *((one, "O") for one in ("<", "16", ".")),
    ]
    assert set(row["tags"]) <= set(TAGS)
    assert MARKS == assets.TERMS


def test_digits_run_to_their_table(tmp_path, monkeypatch, capsys):
    for name, value in {"STEPS": 6, "TEACHER_STEPS": 30, "SEEDS": (0,)}.items():
        monkeypatch.setattr(digits, name, value)
    monkeypatch.setattr(
        digits, "RUNS", {name: digits.RUNS[name] for name in ("labels alone", "teacher, 4 views")}
    )
    monkeypatch.setattr(sys, "argv", ["digits", str(tmp_path)])
    digits.main()
    lines = capsys.readouterr().out.splitlines()
    held, rows = lines[-3], lines[-2:]
    assert held.startswith("963 of 1797 digits held out; the teacher: accuracy 0.")
    assert [row.split("  ")[0].strip() for row in rows] == ["labels alone", "teacher, 4 views"]
    assert all("accuracy 0." in row for row in rows)


def test_embeddings_of_digits_run_to_their_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(digits, "TEACHER_STEPS", 30)
    runs = {
        name: (cache, losses, min(6, steps)) for name, (cache, losses, steps) in digit_embeddings.RUNS.items()
    }
    for name, value in {"SEEDS": (0,), "RUNS": runs}.items():
        monkeypatch.setattr(digit_embeddings, name, value)
    monkeypatch.setattr(sys, "argv", ["digit_embeddings", str(tmp_path)])
    digit_embeddings.main()
    held, *rows = capsys.readouterr().out.splitlines()[-6:]
    assert held == "938 of 1797 digits held out"
    assert [row.split("  ")[0] for row in rows] == ["the teacher", *runs]
    assert all("nearest_alike 0." in row for row in rows)


def test_nearest_digits_are_those_of_a_plain_loop(tmp_path):
    pixels, labels, _ = digits.corpus(tmp_path / "digits.parquet")
    rows = pq.read_table(tmp_path / "digits.parquet").to_pylist()[:40]
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic"
    )
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "model")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    model = transformers.AutoModel.from_pretrained(tmp_path / "model").eval()
    found = []
    for image in pixels[:40]:
        given = processor(images=Image.fromarray(image).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            found.append(model(**given).last_hidden_state.mean((2, 3))[0])
    nearest = [
        max(
            (other for other in range(40) if other != place),
            key=lambda other: float(torch.cosine_similarity(found[place], found[other], dim=0)),
        )
        for place in range(40)
    ]
    alike = sum(labels[place] == labels[near] for place, near in enumerate(nearest)) / 40
    assert digit_embeddings.nearest_alike(tmp_path / "model", rows) == pytest.approx(alike)
