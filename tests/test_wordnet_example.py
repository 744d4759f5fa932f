"""The WordNet example, run for real and small: a real model and real text, from package registries.

Where they cannot be had the run is skipped with the reason; `TEACHONCE_DATA` names a folder that
`benchmarks/assets.py` has filled, `data/` is taken too. How texts are split is tested everywhere.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks import assets
from examples.make_wordnet_teacher import EVAL_FRACTION, Gloss, class_names, read_glosses, sample, split
from schemas import Cache
from schemas.identity import document_hash, is_held_out
from trainer.stream.side import Side

ROOT = Path(__file__).resolve().parent.parent
STUDENTS = ("kl+feature", "ce", "scratch")
SMALL = ["--glosses", "800", "--steps", "50", "--student_steps", "50", "--threads", "1"]

OPENS_PLAIN = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
for folder in sys.argv[1:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)("a large tree with broad leaves", return_tensors="pt")
    print(json.dumps([list(model(**tokens).logits.shape), model.config.id2label[5], model.config.num_hidden_layers]))
ours = {"schemas", "pipelines", "trainer", "teachonce"}
assert not ours & {name.split(".")[0] for name in sys.modules}
"""


class Finished(NamedTuple):
    """What a run left and printed."""

    folder: Path
    printed: str
    corpus: list[Gloss]
    names: list[str]

    def report(self, name):
        return json.loads((self.folder / f"{name}.json").read_text())

    def metrics(self, name):
        return self.report(name)["metrics"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    for folder in (os.environ.get("TEACHONCE_DATA"), ROOT / "data"):
        if folder and all(Path(folder, name).exists() for name in ("minilm", "wordnet.jsonl")):
            return Path(folder)
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]:
        pytest.skip(f"WordNet comes from a Debian package, and there is no {missing[0]}")
    folder = tmp_path_factory.mktemp("data")
    try:
        assets.wordnet(folder)
        assets.minilm(folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a package could not be had: {' '.join(map(str, error.cmd))}")
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    command = [sys.executable, "examples/wordnet.py", "--data", str(data), "--folder", str(folder), *SMALL]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    corpus = [Gloss(**json.loads(line)) for line in (folder / "glosses.jsonl").read_text().splitlines()]
    return Finished(folder, done.stdout, corpus, class_names(read_glosses(data / "wordnet.jsonl")))


def share_of_commonest(values):
    """What guessing one and the same class always would get right."""
    counts = Counter(values)
    return max(counts.values()) / counts.total()


def held_out_rows(cache):
    side = Side(cache=cache, eval_fraction=EVAL_FRACTION, is_eval=True)
    return [side.read(group) for group in range(len(cache.row_groups))]


def test_the_teacher_beats_chance_by_far(finished):
    _, held_out = split(finished.corpus, finished.names)
    chance = share_of_commonest(gloss.label for gloss in held_out)
    assert finished.metrics("teacher")["accuracy"] > 2 * chance


def test_the_teacher_was_measured_on_what_the_trainer_holds_out(finished):
    said = re.search(r"held out: ([\d,]+) glosses, accuracy ([\d.]+)%", finished.printed)
    metrics = finished.metrics("teacher")
    assert int(said[1].replace(",", "")) == metrics["labelled"]
    assert float(said[2]) / 100 == pytest.approx(metrics["accuracy"], abs=0.01)
    assert metrics["agreement"] > 0.99  # rounded codes may tie
    for name in STUDENTS:
        assert finished.metrics(name)["teacher_accuracy"] == pytest.approx(metrics["accuracy"], abs=0.01)


def test_the_cache_is_whole_and_says_the_corpus_labels(finished):
    cache = Cache.open(finished.folder / "cache")
    assert cache.verify().examples == len(finished.corpus)
    assert [(f.pooling, f.layer, f.width) for f in cache.spec.features] == [("mean", 6, 384)]
    assert list(cache.spec.label_names) == finished.names
    numbers = [(gloss.text, finished.names.index(gloss.label)) for gloss in finished.corpus]
    wanted = {document_hash({"text": text}, label=number): number for text, number in numbers}
    found = {}
    for rows in cache.read_all():
        hashes = [row.tobytes() for row in rows.array("document_hash")]
        found |= dict(zip(hashes, rows.ragged("labels").values.tolist(), strict=True))
    assert found == wanted


def test_the_teachers_split_is_the_trainers(finished):
    _, held_out = split(finished.corpus, finished.names)
    wanted = {document_hash({"text": g.text}, label=finished.names.index(g.label)) for g in held_out}
    rows = held_out_rows(Cache.open(finished.folder / "cache"))
    assert {digest.tobytes() for part in rows for digest in part.array("document_hash")} == wanted


def test_the_student_of_the_teacher_agrees_with_it(finished):
    rows = held_out_rows(Cache.open(finished.folder / "cache"))
    best = np.concatenate([part.kept_ids[part.kept_offsets[:-1]] for part in rows])
    chance = share_of_commonest(best.tolist())
    assert finished.metrics("kl+feature")["agreement"] > 1.4 * chance


def test_terms_are_logged_also_with_weight_0(finished):
    for name, terms in {"kl+feature": {"kl", "feature", "ce"}, "ce": {"kl", "ce"}}.items():
        state = json.loads((finished.folder / name / "trainer_state.json").read_text())
        logged = [entry for entry in state["log_history"] if "loss" in entry]
        assert logged
        assert all(terms <= entry.keys() for entry in logged)
        assert all(entry["kl"] > 0 for entry in logged)


def test_students_are_plain_models(finished, tmp_path):
    folders = [str(finished.folder / name) for name in STUDENTS]
    command = [sys.executable, "-W", "ignore", "-c", OPENS_PLAIN, *folders]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = [[1, len(finished.names)], finished.names[5], 2]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [wanted] * len(STUDENTS)


def test_the_table_has_a_row_for_every_model(finished):
    rows = [line for line in finished.printed.splitlines() if line.startswith("│")]
    names = [row.split("│")[1].strip() for row in rows]
    assert names[-4:] == ["teacher", *STUDENTS]
    for name, row in zip(names[-4:], rows[-4:], strict=True):
        assert f"{finished.metrics(name)['accuracy']:.5g}" in row


def glosses_file(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def test_repeats_count_once_and_contradictions_not_at_all(tmp_path):
    rows = [
        ("a tree", "noun.plant"),
        ("A  tree ", "noun.plant"),
        ("to go", "verb.motion"),
        ("To go", "noun.act"),
    ]
    assert read_glosses(glosses_file(tmp_path / "glosses.jsonl", rows)) == [Gloss("a tree", "noun.plant")]


def many(count):
    return [Gloss(f"gloss {i}", f"class {i % 5}") for i in range(count)]


def test_a_split_goes_by_the_hash_of_text_and_label():
    glosses = many(2_000)
    sides = split(glosses, class_names(glosses))
    assert sorted([*sides.training, *sides.held_out]) == sorted(glosses)
    assert 0.12 < len(sides.held_out) / len(glosses) < 0.18
    for gloss in sides.held_out:
        assert is_held_out(document_hash({"text": gloss.text}, label=int(gloss.label[-1])), EVAL_FRACTION)


def test_a_text_that_stands_on_both_sides_is_refused():
    """Under two labels one text has two hashes, so it may: `read_glosses` leaves it out, `split` makes sure."""
    texts = [gloss.text for gloss in many(200)]
    twice = [Gloss(text, label) for text in texts for label in ("class 0", "class 1")]
    with pytest.raises(SystemExit, match="held-out texts are in the training part"):
        split(twice, ["class 0", "class 1"])


def test_a_larger_sample_begins_with_the_smaller():
    glosses = many(100)
    assert sample(glosses, 60)[:20] == sample(glosses, 20)
    assert len(set(sample(glosses, 60))) == 60
