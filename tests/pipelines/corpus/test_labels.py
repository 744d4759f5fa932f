"""Labels: each usual form gives the classes that are meant; what could mean two things is rejected, and how is told."""

import itertools
import json

import pytest
import transformers

import teachonce
from pipelines.config import CorpusConfig
from pipelines.corpus.documents import Source, parse
from pipelines.corpus.labels import LabelMap, read_label
from pipelines.corpus.lines import Record
from pipelines.rejects import RejectedError
from schemas import Cache
from schemas.errors import UsageError
from tests.pipelines import models
from tests.pipelines.helpers import run, write_jsonl


def label_map(count, score="sigmoid", names=None):
    return LabelMap.of(names or [f"name{i}" for i in range(count)], count, score)


def read(value, labels):
    """The label and its reading; or the reason why there is none."""
    try:
        return tuple(read_label(value, labels, "label"))
    except RejectedError as error:
        return str(error) if error.field == "label" and error.expected and error.got else "told too little"


def hot(*classes, of=5):
    return tuple(float(i in classes) for i in range(of))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0, 1, 0, 1, 1], (hot(1, 3, 4), "multi-hot")),
        ([0, 0, 0, 0, 0], (hot(), "multi-hot")),
        ([0.0, 1.0, 0.0, 1.0, 1.0], (hot(1, 3, 4), "multi-hot")),
        ([0, 1.0, 0, 1.0, 1], (hot(1, 3, 4), "multi-hot")),
        ([False, True, False, True, True], (hot(1, 3, 4), "multi-hot")),
        ([1, 3, 4], (hot(1, 3, 4), "numbers")),
        ([4, 0, 1, 3, 2], (hot(0, 1, 2, 3, 4), "numbers")),
        ([0, 1], (hot(0, 1), "numbers")),
        (["name4", "name1"], (hot(1, 4), "names")),
        (["name4", 1], (hot(1, 4), "names and numbers")),
        ([], (hot(), "no class")),
        ([2, 2], "unknown_label"),
        (["name1", 1], "unknown_label"),
        (["name1", "name1"], "unknown_label"),
        ([5], "unknown_label"),
        ([-1], "unknown_label"),
        ([0.0, 0.5, 0, 0, 1], "unknown_label"),
        ([0.0, 1.0], "unknown_label"),
        ([True, False], "unknown_label"),
        ([0, 1, 0, 1, 1, 0], "unknown_label"),
        ([0, 2, 0, 1, 1], "unknown_label"),
        ([[0, 1, 0, 1, 1]], "unknown_label"),
        ([0, 1, 0, 1, None], "unknown_label"),
        ([0, 1, 0, 1, "1"], "unknown_label"),
        ([" name1"], "unknown_label"),
        (["NAME1"], "unknown_label"),
        ({"name1": 1}, "unknown_label"),
        ("name1", "unknown_label"),
        (3, "unknown_label"),
        (True, "unknown_label"),
    ],
)
def test_a_list_of_several_classes_has_one_reading(value, expected):
    assert read(value, label_map(5)) == expected


@pytest.mark.parametrize(
    ("count", "value", "expected"),
    [
        (2, [0, 1], "ambiguous_label"),
        (2, [1, 0], "ambiguous_label"),
        (1, [0], "ambiguous_label"),
        (2, [0.0, 1.0], (hot(1, of=2), "multi-hot")),
        (2, [True, False], (hot(0, of=2), "multi-hot")),
        (2, [1, 1], (hot(0, 1, of=2), "multi-hot")),
        (2, [0, 0], (hot(of=2), "multi-hot")),
        (2, [1], (hot(1, of=2), "numbers")),
        (1, [1], (hot(0, of=1), "multi-hot")),
        (1, [], (hot(of=1), "no class")),
    ],
)
def test_what_could_be_multi_hot_or_numbers_is_refused(count, value, expected):
    assert read(value, label_map(count)) == expected


def test_every_list_of_small_numbers_is_read_in_the_only_way_or_refused():
    """By the words of the law alone: both readings are made, and where both hold they must agree."""
    for count in range(1, 5):
        labels = label_map(count)
        for length in range(1, count + 2):
            for value in itertools.product(range(-1, count + 1), repeat=length):
                readings = set()
                if length == count and set(value) <= {0, 1}:
                    readings.add(tuple(map(float, value)))
                if len(set(value)) == length and set(value) <= set(range(count)):
                    readings.add(hot(*value, of=count))
                found = read(list(value), labels)
                if len(readings) == 1:
                    assert found[0] in readings
                else:
                    assert found == ("ambiguous_label" if readings else "unknown_label")


STARS = ["1", "2", "3"]
TWICE = ["yes", "no", "no"]


@pytest.mark.parametrize(
    ("names", "value", "expected"),
    [
        (STARS, "1", (0, "names")),
        (STARS, 1, "ambiguous_label"),
        (STARS, 0, "ambiguous_label"),
        (["0", "1", "2"], 1, (1, "numbers")),
        (["0", "1", "2"], "1", (1, "names")),
        (["LABEL_1", "LABEL_0", "x"], "LABEL_1", (0, "names")),
        (["a", "b", "c"], "LABEL_1", "unknown_label"),
        (["a", "b", "c"], "1", "unknown_label"),
        (["a", "b", "c"], 1.0, "unknown_label"),
        (["a", "b", "c"], True, "unknown_label"),
        (["a", "b", "c"], [0, 1, 0], "unknown_label"),
        (["a", "b", "c"], [1], "unknown_label"),
        (["a", "b", "c"], 3, "unknown_label"),
        (["a", "b", "c"], -1, "unknown_label"),
        (["a", "b", "c"], "A", "unknown_label"),
        (["a", "b", "c"], "a ", "unknown_label"),
        (TWICE, "no", "ambiguous_label"),
        (TWICE, "yes", (0, "names")),
        (TWICE, 2, (2, "numbers")),
    ],
)
def test_one_class_is_a_name_or_a_number_and_never_both(names, value, expected):
    assert read(value, label_map(3, "softmax", names)) == expected


@pytest.mark.parametrize("value", ["1", True, None, float("nan"), float("inf"), 10**400, [1, 2], ["a"], {}])
def test_a_value_to_learn_is_a_finite_number(value):
    assert read(value, label_map(1, "identity")) == "unknown_label"
    assert read([1, 2.5], label_map(2, "identity")) == ((1.0, 2.5), "values")


def test_multi_hot_names_and_numbers_of_the_same_classes_are_one_document_as_before():
    corpus = CorpusConfig(files=("c.jsonl",), label_field="label")

    def digest(value):
        raw = json.dumps({"text": "ab", "label": value}).encode()
        return parse(Record(0, raw), Source("c.jsonl", 0), corpus, label_map(3), "jsonl").hash

    forms = ([0, 1, 1], [1, 2], ["name2", "name1"], [0.0, 1.0, 1.0], [False, True, True])
    assert {digest(form).hex() for form in forms} == {"76b3fddff93692c73c05c67871f2da41"}


def test_the_summary_says_how_labels_were_read(tmp_path, capsys):
    teacher = models.classifier(tmp_path / "t", num_labels=5, problem_type="multi_label_classification")
    labels = [[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], ["label1"], [2], []]
    records = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    flags = ["--task", "sequence-classification", "--label_field", "label", "--no_progress"]
    where = ["--corpus", str(corpus), "--teacher", str(teacher), "--cache", str(tmp_path / "c")]
    assert teachonce.main(["precompute", *where, *flags]) == 0
    assert "multi-hot 2, names 1, no class 1, numbers 1" in capsys.readouterr().out
    stored = [tuple(row) for rows in Cache.open(tmp_path / "c").read_all() for row in _labels(rows)]
    assert sorted(stored) == sorted([hot(1, 3, 4), hot(4), hot(1), hot(2), hot()])


def _labels(rows):
    return rows.ragged("labels").values.reshape(-1, 5).tolist()


@pytest.mark.parametrize(
    ("names", "label", "match"),
    [(["1", "2", "3"], 2, "as a string"), (["a", "b", "b"], "b", "a class's number")],
)
def test_labels_that_could_mean_several_classes_are_refused_before_the_run(tmp_path, names, label, match):
    teacher = models.classifier(tmp_path / "t")
    config = transformers.AutoConfig.from_pretrained(teacher)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.save_pretrained(teacher)
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": "aa", "label": label}])
    with pytest.raises(UsageError, match=match):
        run(corpus, teacher, tmp_path / "c", task="sequence-classification", label_field="label")
    assert not (tmp_path / "c").exists()
