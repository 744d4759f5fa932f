"""A task is one value: what it leaves to the user is checked, kept in the spec, and named to readers that lack it."""

import json
from dataclasses import replace

import numpy as np
import pytest

import schemas.spec
from schemas import Cache
from schemas.errors import CorruptionError, FormatError
from schemas.policies import TopK
from schemas.rows.ragged import Ragged
from schemas.rows.rows import Rows
from schemas.spec import Header, Spec
from schemas.tasks import CAUSAL_LM, FEATURE_EXTRACTION, MASKED_LM, TASKS
from tests.synthetic import (
    SPECS,
    causal_spec,
    embeddings_spec,
    header_of,
    make_cache,
    masked_spec,
    random_rows,
)


def test_settings_have_defaults_and_bounds():
    assert dict(MASKED_LM.settled({})) == {
        "views": 1,
        "mlm_probability": 0.15,
        "mask_replace_prob": 0.8,
        "random_replace_prob": 0.1,
        "whole_word_mask": False,
    }
    assert CAUSAL_LM.settled({}) == ()
    bad = [{"views": 0}, {"views": 2.0}, {"views": True}, {"mlm_probability": 1.5}, {"mlm_probability": 0.0}]
    bad += [{"mlm_probability": float("nan")}, {"whole_word_mask": 1}, {"view": 2}]
    for given in bad:
        with pytest.raises(ValueError, match=next(iter(given))):
            MASKED_LM.settled(given)
    with pytest.raises(ValueError, match="views"):
        CAUSAL_LM.settled({"views": 2})


def test_every_setting_is_in_the_hash_and_comes_back():
    changes = {"views": 3, "mlm_probability": 0.5, "mask_replace_prob": 0.5, "random_replace_prob": 0.2}
    changes |= {"whole_word_mask": True}
    hashes = set()
    for given in ({}, *({name: value} for name, value in changes.items())):
        spec = masked_spec(task_settings=MASKED_LM.settled(given))
        assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
        hashes.add(spec.hash)
    assert len(hashes) == 6


@pytest.mark.parametrize(
    "settings",
    [{}, {"views": 1}, {"views": 0, "mlm_probability": 0.15}, {"x": 1}, [], "views", {"views": "one"}],
)
def test_a_spec_whose_settings_are_not_all_there_is_refused(settings):
    header = header_of(masked_spec()).to_json()
    header["spec"]["task_settings"] = settings
    del header["hash"]
    header["hash"] = schemas.spec.digest(schemas.spec.canonical_json(header), "header").hex()
    with pytest.raises(FormatError):
        Header.from_bytes(json.dumps(header).encode(), "here")


def test_a_task_without_settings_says_nothing_of_them():
    assert "task_settings" not in causal_spec().to_json()
    with pytest.raises(ValueError, match="views"):
        causal_spec(task_settings=(("views", 1),))


def test_a_reader_that_lacks_the_task_refuses_it_by_name(tmp_path, monkeypatch):
    make_cache(tmp_path / "cache", SPECS["masked"])
    older = schemas.spec.KNOWN_FEATURES - {"task:masked-lm"}
    monkeypatch.setattr(schemas.spec, "KNOWN_FEATURES", older)
    with pytest.raises(FormatError, match="task:masked-lm"):
        Cache.open(tmp_path / "cache")


def test_the_first_tasks_ask_nothing_new_of_a_reader():
    declared = {name for name, task in TASKS.items() if task.required_features}
    assert declared == set(TASKS) - {"causal-lm", "sequence-classification"}


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("labels", lambda labels: Ragged.of([None] * len(labels.lengths), "int32")),
        ("labels", lambda labels: Ragged(values=labels.values + 50, offsets=labels.offsets)),
        ("position_index", lambda places: Ragged.of([None] * len(places.lengths), "int32")),
        ("position_index", lambda places: Ragged(values=places.values + 32, offsets=places.offsets)),
        ("position_index", lambda places: Ragged(values=places.values[::-1].copy(), offsets=places.offsets)),
        ("view_index", lambda views: views - 1024),
        ("view_index", lambda views: views + 1024),
    ],
)
def test_what_a_masked_row_may_not_say(column, change):
    rows = random_rows(SPECS["masked"], 8).rows
    with pytest.raises(CorruptionError, match=column):
        Rows(spec=rows.spec, data={**rows.data, column: change(rows.data[column])}).check("here")


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("position_index", lambda places: Ragged.of([None] * len(places.lengths), "int32")),
        ("position_index", lambda places: Ragged(values=places.values - 1, offsets=places.offsets)),
        ("position_index", lambda places: Ragged(values=places.values + 1, offsets=places.offsets)),
        ("source_tokens", lambda source: source * 0),
        ("source_tokens", lambda source: source + 32),
    ],
)
def test_what_a_row_of_source_and_target_may_not_say(column, change):
    rows = random_rows(SPECS["sources"], 8).rows
    with pytest.raises(CorruptionError, match=column):
        Rows(spec=rows.spec, data={**rows.data, column: change(rows.data[column])}).check("here")


def test_each_half_may_have_as_many_tokens_as_a_model_reads():
    rows = random_rows(SPECS["sources"], 40).rows
    longest = int(rows.input_ids.lengths.max())
    half = (longest + 1) // 2
    Rows(spec=replace(rows.spec, max_length=half), data=rows.data).check("here")
    uneven = {**rows.data, "source_tokens": rows.array("source_tokens") * 0 + 1}
    with pytest.raises(CorruptionError, match=rf"source_tokens \(tokens behind\).*expected 1 to {half}"):
        Rows(spec=replace(rows.spec, max_length=half), data=uneven).check("here")


def test_a_position_may_stand_on_the_last_token():
    places = random_rows(SPECS["masked"], 50).rows
    last = places.input_ids.lengths[:, None] - 1
    index = places.ragged("position_index")
    assert any(last[row, 0] in index.row(row) for row in range(50))


def test_gold_ids_are_the_labels_of_masked_tokens_and_the_next_tokens_of_others():
    masked, causal = random_rows(SPECS["masked"], 8).rows, random_rows(SPECS["top_p"], 8).rows
    assert masked.gold_ids() is masked.ragged("labels")
    found, offsets = causal.gold_ids(), causal.position_offsets
    for row in range(8):
        ids = causal.input_ids.row(row)
        places = causal.position_index()[offsets[row] : offsets[row + 1]]
        assert found.row(row).tolist() == ids[places + 1].tolist()


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("position_index", lambda places: Ragged.of([np.zeros(1)] * len(places.lengths), "int32")),
        ("position_index", lambda places: Ragged.of([None] * len(places.lengths), "int32")),
        ("feature_last_0", lambda one: Ragged(values=one.values * np.nan, offsets=one.offsets)),
        ("feature_mean_2", lambda one: Ragged(values=one.values[:-1], offsets=np.minimum(one.offsets, 39))),
    ],
)
def test_what_a_row_of_embeddings_may_not_say(column, change):
    rows = random_rows(SPECS["embeddings"], 8).rows
    with pytest.raises(CorruptionError, match=column):
        Rows(spec=rows.spec, data={**rows.data, column: change(rows.data[column])}).check("here")


def test_a_spec_of_embeddings_is_its_features_and_what_texts_they_are_of():
    changes = {"prompt": "passage: ", "normalize": False, "truncate_dim": 4}
    settled = FEATURE_EXTRACTION.settled
    specs = [embeddings_spec(task_settings=settled({name: value})) for name, value in changes.items()]
    assert len({spec.hash for spec in [SPECS["embeddings"], *specs]}) == 4
    assert all(Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec for spec in specs)
    bad = [
        {"prompt": 1},
        {"prompt": "x" * 10_001},
        {"prompt": "\ud800"},
        {"normalize": 1},
        {"truncate_dim": "8"},
    ]
    for given in bad:
        with pytest.raises(ValueError, match=next(iter(given))):
            settled(given)
    wrong = [{"features": ()}, {"vocab_size": 1}, {"scalars": ("entropy",)}, {"score": "identity"}]
    for given in [*wrong, {"keep": TopK(k=1)}]:
        with pytest.raises(ValueError, match=next(iter(given))):
            embeddings_spec(**given)
    with pytest.raises(ValueError, match="vocab_size"):
        causal_spec(vocab_size=0)
