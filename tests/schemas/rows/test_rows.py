"""Rows survive the disk whatever their score, and refuse lists that do not fit together."""

import numpy as np
import pyarrow as pa
import pytest

from schemas import Cache
from schemas.errors import CorruptionError
from schemas.rows.checks import check_entries
from schemas.rows.ragged import Ragged
from schemas.rows.rows import Rows
from schemas.shards.seal import ranking_of
from schemas.spec import MAX_VOCAB
from tests.synthetic import (
    SPECS,
    add,
    begin,
    causal_spec,
    class_spec,
    draws_by_id,
    ragged,
    random_rows,
    table_of,
)


def same(a, b):
    if isinstance(a, Ragged):
        return (
            a.values.dtype == b.values.dtype
            and (a.values == b.values).all()
            and (a.offsets == b.offsets).all()
            and (a.validity == b.validity).all()
        )
    return a.dtype == b.dtype and a.tolist() == b.tolist()


def assert_same(a, b):
    assert set(a.data) == set(b.data)
    assert [name for name in a.data if not same(a.data[name], b.data[name])] == []


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_what_was_written_is_read(tmp_path, name, seed):
    truth = random_rows(SPECS[name], 30, seed)
    add(begin(tmp_path, SPECS[name]), None, [truth.rows])
    read = Rows.concatenate(list(Cache.open(tmp_path).read_all()))
    assert_same(draws_by_id(read), draws_by_id(truth.rows))
    assert read.num_positions == truth.rows.num_positions
    assert_scores(read, truth)


def by_id(rows):
    """The order of drawn entries that `draws_by_id` gives them."""
    position = np.repeat(np.arange(rows.num_positions), rows.sampled_counts)
    return np.lexsort([rows.ragged("sampled_ids").values, position])


def assert_scores(rows, truth):
    if not rows.spec.kind.has_positions:
        assert_features(rows, truth)
        return
    if rows.spec.score != "softmax":
        assert (rows.ragged("logits").values == truth.logprobs).all()
        return
    starts = rows.kept_offsets[:-1][rows.kept_counts > 0]
    bound = np.full(rows.kept_counts.sum(), rows.spec.code_step_nats / 2 + 1e-5)
    bound[starts] = rows.spec.top_step_nats / 2 + 1e-5
    assert (np.abs(rows.kept_logprobs() - truth.logprobs) <= bound).all()
    if rows.spec.own_logits:
        own = draws_by_id(rows).sampled_logprobs()
        true = truth.drawn[by_id(truth.rows)]
        assert np.abs(own - true).max() <= rows.spec.code_step_nats / 2 + 1e-5
    assert_features(rows, truth)


def assert_features(rows, truth):
    for feature in rows.spec.features:
        error = np.abs(rows.feature(feature) - truth.features[feature.column])
        bound = rows.array(feature.scale_column)[:, None] * 0.501 if feature.dtype == "int8" else 0.0
        assert (error <= bound).all()


@pytest.mark.parametrize("vocab_size", [2**17 + 3, MAX_VOCAB])
def test_no_id_of_a_large_vocabulary_is_another(tmp_path, vocab_size):
    spec = causal_spec(vocab_size=vocab_size, features=())
    rows = random_rows(causal_spec(features=()), 5).rows
    ids = rows.ragged("kept_ids")
    large = Ragged(values=vocab_size - 1 - ids.values, offsets=ids.offsets)
    wide = Rows(spec=spec, data={**rows.data, "kept_ids": large, "input_ids": rows.input_ids})
    add(begin(tmp_path, spec), None, [wide])
    read = Rows.concatenate(list(Cache.open(tmp_path).read_all()))
    assert (read.kept_ids == vocab_size - 1 - ids.values).all()
    assert read.kept_ids.max() > 2**17


@pytest.mark.parametrize("name", ["top_p", "temperatures", "sampled"])
def test_documents_without_positions(tmp_path, name):
    rows = random_rows(SPECS[name], 3).rows
    empty = np.zeros(3, np.int64)
    beside = {"input_ids", "labels", *(feature.column for feature in rows.spec.features)}
    names = [n for n, column in rows.data.items() if isinstance(column, Ragged) and n not in beside]
    none = {name: ragged(rows.ragged(name).values[:0], empty) for name in names}
    bare = Rows(spec=rows.spec, data={**rows.data, **none})
    add(begin(tmp_path, rows.spec), None, [bare])
    read = Rows.concatenate(list(Cache.open(tmp_path).read_all()))
    assert read.num_positions == 0
    assert len(read.kept_logprobs()) == len(read.position_index()) == 0


@pytest.mark.parametrize("name", SPECS)
def test_take_and_concatenate_are_those_of_lists(name, rng):
    rows = random_rows(SPECS[name], 12).rows
    order = rng.integers(0, 12, 30)
    taken = rows.take(order)
    one_by_one = Rows.concatenate([rows.take(np.array([i])) for i in order])
    assert_same(taken, one_by_one)
    assert taken.example_ids == [rows.example_ids[i] for i in order]
    assert_same(Rows.concatenate([rows.take(np.arange(5)), rows.take(np.arange(5, 12))]), rows)


def test_decoding_commutes_with_taking(rng):
    rows = random_rows(causal_spec(), 12).rows
    order = rng.permutation(12)
    starts, kept = rows.position_offsets, rows.kept_offsets
    naive = [rows.kept_logprobs()[kept[starts[i]] : kept[starts[i + 1]]] for i in order]
    assert (rows.take(order).kept_logprobs() == np.concatenate(naive)).all()


def test_position_index_fills_in_nulls():
    rows = random_rows(causal_spec(), 40).rows
    stored, filled = rows.ragged("position_index"), rows.position_index()
    assert 0 < stored.validity.sum() < 40
    for i in range(40):
        got = filled[rows.position_offsets[i] : rows.position_offsets[i + 1]]
        implied = range(rows.input_ids.lengths[i] - 1)
        assert got.tolist() == (stored.row(i).tolist() if stored.validity[i] else list(implied))


def test_logsumexp_is_told_apart_by_temperature():
    rows = random_rows(causal_spec(temperatures=(1.0, 2.0, 0.5)), 6).rows
    flat = rows.ragged("logsumexp").values.reshape(-1, 3)
    for place, temperature in enumerate((1.0, 2.0, 0.5)):
        assert (rows.logsumexp(temperature) == flat[:, place]).all()
    with pytest.raises(ValueError, match=r"not at 4\.0"):
        rows.logsumexp(4.0)


def changed(rows, name, values=None, lengths=None):
    column = rows.ragged(name)
    values = column.values if values is None else values.astype(column.values.dtype)
    lengths = column.lengths if lengths is None else lengths
    return Rows(spec=rows.spec, data={**rows.data, name: ragged(values, lengths)})


@pytest.mark.parametrize(
    "name",
    [
        "num_kept",
        "kept_ids",
        "kept_codes",
        "top_codes",
        "logsumexp",
        "entropy_codes",
        "gold_codes",
        "num_sampled",
        "sampled_ids",
        "sampled_codes",
        "feature_mean_2",
        "feature_last_0",
    ],
)
def test_a_list_of_the_wrong_length_is_refused(name):
    rows = random_rows(SPECS["temperatures" if "sampled" in name else "top_p"], 6).rows
    column = rows.ragged(name)
    lengths = column.lengths.copy()
    lengths[3] += 1
    broken = changed(rows, name, np.append(column.values, 1), lengths)
    told = "position_index|top_codes" if name == "num_kept" else name  # the others are measured by it
    with pytest.raises(CorruptionError, match=f"(?s)({told}).*here.*example"):
        broken.check("here")


def test_counts_that_agree_only_in_sum_are_refused():
    rows = random_rows(causal_spec(), 6).rows
    for counts in (
        np.append(rows.kept_counts[:-2], [0, rows.kept_counts[-2:].sum()]),
        rows.kept_counts * 0 - 1,
    ):
        with pytest.raises(CorruptionError, match=r"num_kept|wrong length"):
            changed(rows, "num_kept", counts).check("here")


@pytest.mark.parametrize("bad", [-1, 50, 2**30])
def test_ids_outside_the_vocabulary_are_refused(bad):
    rows = random_rows(causal_spec(), 6).rows
    ids = rows.kept_ids.copy()
    ids[7] = bad
    with pytest.raises(CorruptionError, match="kept_ids"):
        changed(rows, "kept_ids", ids).check("here")


@pytest.mark.parametrize(
    ("name", "column", "bad", "told"),
    [
        ("threshold", "sampled_ids", -1, "sampled_ids"),
        ("threshold", "sampled_ids", 50, "sampled_ids"),
        ("sampled", "sampled_counts", 0, "sampled_counts"),
        ("sampled", "sampled_counts", 14, "sampled_counts"),
        ("sampled", "sampled_counts", "one more", r"sampled_counts \(of a position\)"),
        ("sampled", "num_kept", 1, "num_kept"),
        ("threshold", "num_kept", 0, "num_kept"),
        ("threshold", "num_sampled", 10, "num_sampled"),
    ],
)
def test_counts_and_ids_of_draws_out_of_range_are_refused(name, column, bad, told):
    rows = random_rows(SPECS[name], 6).rows
    values = rows.ragged(column).values.copy()
    place = int(np.flatnonzero(values < 13)[0])
    values[place] = values[place] + 1 if bad == "one more" else bad
    lengths = rows.ragged(column).lengths
    with pytest.raises(CorruptionError, match=told):
        check_entries(rows.spec, changed(rows, column, values, lengths).data, "here")


def test_a_null_position_index_needs_every_position():
    rows = random_rows(causal_spec(), 40).rows
    places = rows.ragged("position_index")
    all_null = Ragged(values=places.values[:0], offsets=places.offsets * 0, valid=np.zeros(40, bool))
    with pytest.raises(CorruptionError, match=r"position_index \(null\)"):
        Rows(spec=rows.spec, data={**rows.data, "position_index": all_null}).check("here")


@pytest.mark.parametrize("bad", [-1, 31, 10**6])
def test_positions_lie_inside_their_example(bad):
    rows = random_rows(causal_spec(), 40).rows
    places = rows.ragged("position_index")
    values = places.values.copy()
    values[0] = bad
    moved = Ragged(values=values, offsets=places.offsets, valid=places.valid)
    with pytest.raises(CorruptionError, match="outside"):
        Rows(spec=rows.spec, data={**rows.data, "position_index": moved}).check("here")


@pytest.mark.parametrize("spec", [causal_spec(), class_spec()])
def test_a_gold_logprob_stands_where_a_label_is_known(spec):
    rows = random_rows(spec, 40).rows
    gold = rows.ragged("gold_codes")
    lists = [gold.row(i) if gold.validity[i] else None for i in range(40)]
    first = next(i for i in range(40) if gold.validity[i])
    lists[first] = None
    broken = Rows(spec=spec, data={**rows.data, "gold_codes": Ragged.of(lists, np.int16)})
    with pytest.raises(CorruptionError, match="gold_codes is null"):
        broken.check("here")


def test_logits_come_in_whole_positions():
    rows = random_rows(SPECS["sigmoid"], 6).rows
    lengths = rows.ragged("logits").lengths.copy()
    lengths[:2] += [1, -1]
    with pytest.raises(CorruptionError, match=r"logits|labels"):
        changed(rows, "logits", lengths=lengths).check("here")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("example_id", pa.array([b"x" * 16, b"x" * 15]), "16 bytes"),
        ("example_id", pa.array([b"x" * 16, None]), "has a null"),
        ("window_index", pa.array([1, None], pa.int32()), "has a null"),
        ("entropy_codes", pa.array([[1, None], [1]], pa.list_(pa.int16())), "has a null"),
        ("entropy_codes", pa.array([[1], None], pa.list_(pa.int16())), "has a null"),
        ("labels", pa.array([[1, None], [1]], pa.list_(pa.int32())), "has a null"),
    ],
)
def test_nulls_and_odd_hashes_are_refused(name, value, message):
    with pytest.raises(CorruptionError, match=f"{name}.*{message}"):
        Rows.from_arrow(pa.table({name: value}), causal_spec(), "here")


def test_sliced_tables_are_read_rightly():
    """Arrow hands out slices whose offsets do not begin at 0."""
    for spec in (causal_spec(), SPECS["temperatures"], class_spec()):
        rows = random_rows(spec, 20).rows
        part = Rows.from_arrow(table_of(rows).slice(5, 9), spec, "here", ranking_of([rows]))
        assert_same(draws_by_id(part), draws_by_id(rows.take(np.arange(5, 14))))
