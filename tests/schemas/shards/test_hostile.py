"""Seals prove that bytes are the writer's, not that the writer is a friend: whatever stands behind them is refused in
one line, or read as values that training can take; reader and `verify` never disagree."""

import dataclasses
import io
import json
import random
import resource
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import TeachonceError
from schemas.errors import CacheError, CorruptionError, FormatError
from schemas.identity import canonical_json, digest
from schemas.limits import MAX_DEPTH, conform, parse_json, told
from schemas.policies import parse_keep
from schemas.rows.columns import write_options
from schemas.rows.ragged import Ragged
from schemas.rows.rows import Rows
from schemas.shards.seal import RowGroup, Shard, ShardFooter, bytes_hash
from schemas.spec import Header
from tests.schemas.hostile import MUTATIONS, other_values, resealed, stored, taken, victim
from tests.synthetic import SPECS, begin, causal_spec, class_spec, header_of, random_rows, seal


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """For each spec a folder, its header and a good shard."""
    root = tmp_path_factory.mktemp("hostile")
    return {name: (begin(root / name, spec), header_of(spec), victim(spec)) for name, spec in SPECS.items()}


@pytest.mark.parametrize("kind", MUTATIONS)
def test_whatever_stands_behind_valid_seals_is_one_line_or_values(places, kind):
    """Bytes of pages, of page headers and of footers that are others, sealed again."""
    chooser, found = random.Random(7), Counter()
    for _ in range(60):
        storage, header, good = places[chooser.choice(list(SPECS))]
        name, data = resealed(good, MUTATIONS[kind](good, chooser))
        storage.put(name, data)
        found[taken(storage, header, Shard(name, len(data), 0))] += 1
        storage.delete([name])
    assert found["refused"] > 30


def test_values_of_any_size_are_refused_or_can_be_trained_on(places):
    chooser, found = random.Random(3), Counter()
    for _ in range(80):
        storage, header, good = places[chooser.choice(list(SPECS))]
        try:
            shard = seal(other_values(good.rows, chooser))
        except (ValueError, IndexError, OverflowError):
            continue  # no shard can say that
        storage.put(shard.name, shard.data)
        found[taken(storage, header, Shard(shard.name, len(shard.data), 0))] += 1
        storage.delete([shard.name])
    assert found["refused"] > 20
    assert found["read"] > 5


def changed(rows, name, change):
    """The rows with the values of one column as `change` makes them."""
    column = rows.data[name]
    if not isinstance(column, Ragged):
        return Rows(spec=rows.spec, data={**rows.data, name: change(column.copy())})
    values = change(column.values.copy())
    return Rows(spec=rows.spec, data={**rows.data, name: dataclasses.replace(column, values=values)})


def put(index, value):
    def change(values):
        values[index] = value
        return values

    return change


BROKEN = [
    ("top_p", "input_ids", put(3, -1)),
    ("top_p", "input_ids", put(3, 2**24)),
    ("top_p", "window_index", put(0, -1)),
    ("top_p", "window_index", put(0, 3)),
    ("top_p", "window_count", put(0, 0)),
    ("top_p", "position_index", put(slice(0, 2), 1)),
    ("top_p", "num_kept", put(0, 0)),
    ("all", "num_kept", put(0, 6)),
    ("top_p", "kept_codes", put(0, -1)),
    ("top_p", "top_codes", put(0, -5)),
    ("top_p", "logsumexp", put(0, np.nan)),
    ("top_p", "feature_mean_2_scale", put(0, np.nan)),
    ("top_p", "feature_mean_2_scale", put(0, -1.0)),
    ("top_p", "feature_mean_2_scale", put(0, 3e38)),
    ("top_p", "feature_last_0", put(0, np.inf)),
    ("threshold", "num_sampled", put(0, 40)),
    ("sampled", "sampled_counts", put(0, 0)),
    ("classes", "labels", put(0, 3)),
    ("classes", "labels", put(0, -1)),
    ("classes", "token_type_ids", put(0, -1)),
    ("classes", "position_index", put(0, 1)),
    ("sigmoid", "logits", put(0, np.nan)),
    ("regression", "labels", put(0, np.inf)),
]


@pytest.mark.parametrize(("spec", "column", "change"), BROKEN, ids=range(len(BROKEN)))
def test_reader_and_verify_refuse_the_same_values(tmp_path, spec, column, change):
    rows = changed(random_rows(SPECS[spec], 6).rows, column, change)
    with pytest.raises(CorruptionError, match=r"column .*here"):
        rows.check("here")
    assert list(rows.faults()), "the writer rejects these alone"
    assert len(rows.faults()) < 6
    try:
        shard = seal(rows)
    except (ValueError, IndexError):
        return  # its own ranking cannot be made
    storage, found = stored(tmp_path, rows.spec, shard.name, bytes(shard.data))
    assert taken(storage, header_of(rows.spec), found) == "refused"


def test_an_id_that_stands_twice_and_more_than_all_probability_are_seen_by_verify():
    rows = random_rows(SPECS["all"], 6).rows
    twice = changed(rows, "kept_ids", lambda ids: np.where(np.arange(ids.size) == 1, ids[0], ids))
    with pytest.raises(CorruptionError, match="twice"):
        twice.check("here", deep=True)
    certain = changed(rows, "kept_codes", lambda codes: codes * 0)
    certain = changed(certain, "top_codes", lambda codes: codes * 0)
    with pytest.raises(CorruptionError, match="whole probability"):
        certain.check("here", deep=True)
    rows.check("here", deep=True)


def bomb(rows, **options):
    """A shard of these rows, written otherwise; its footer's counts are the rows'."""
    good = seal(rows, groups=1)
    sink = io.BytesIO()
    table = rows.to_arrow(None)
    with pq.ParquetWriter(sink, table.schema, **{**write_options(rows.spec), **options}) as writer:
        writer.write_table(table, row_group_size=len(rows))
        end = sink.tell()
        group = dataclasses.replace(
            good.footer.row_groups[0], end=end, hash=bytes_hash(sink.getvalue()[:end])
        )
        footer = dataclasses.replace(good.footer, row_groups=(group,))
        writer.add_key_value_metadata({b"teachonce": footer.to_bytes()})
    data = sink.getvalue()
    return f"{footer.unit}-{bytes_hash(data[end:])}.parquet", data


def monotonous(num_rows=40):
    """Rows of which every value is the same, so that some bytes are millions of values."""
    plain = {"label_names": (), "has_text": False, "has_text_pair": False, "has_token_type_ids": False}
    spec = class_spec(score="identity", vocab_size=2**20, **plain)
    rows = random_rows(dataclasses.replace(spec, vocab_size=1), num_rows).rows
    width = np.full(num_rows, spec.vocab_size, np.int64)
    offsets = np.concatenate([[0], np.cumsum(width)])
    logits = Ragged(values=np.zeros(offsets[-1], np.float32), offsets=offsets)
    labels = Ragged.of([None] * num_rows, np.float32)
    return Rows(spec=spec, data={**rows.data, "logits": logits, "labels": labels})


@pytest.mark.parametrize("columns", [[], ["logits.list.element"]])
def test_some_bytes_are_no_gigabytes(tmp_path, columns):
    """Pages of zeros, and a dictionary of one value with a run of millions: refused before they are decompressed."""
    rows = monotonous()
    encoding = {"use_dictionary": columns, "column_encoding": None} if columns else {}
    name, data = bomb(rows, **encoding)
    assert len(data) < 2**17
    storage, shard = stored(tmp_path, rows.spec, name, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert taken(storage, header_of(rows.spec), shard) == "refused"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": 10**9},
        {"positions": 10**9},
        {"entries": -1},
        {"examples": 0},
        {"end": 10},
        {"start": True},
        {"hash": 5},
    ],
)
def test_a_footer_that_counts_nonsense(changes):
    footer = seal(random_rows(causal_spec(), 6).rows, groups=1).footer
    value = json.loads(footer.to_bytes())
    value["row_groups"][0] |= changes
    try:
        found = ShardFooter.from_bytes(json.dumps(value).encode())
    except ValueError:
        return
    assert isinstance(found.row_groups[0], RowGroup), "and what does not add up is refused when it is opened"


def header_saying(**changes):
    body = header_of(causal_spec()).to_json()
    body["spec"] |= changes
    return sealed_header(body)


def sealed_header(body):
    body = {key: value for key, value in body.items() if key != "hash"}
    return json.dumps({**body, "hash": digest(canonical_json(body), "header").hex()}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        *({"keep": text} for text in (
            "threshold:1e999999999", "threshold:1e-999999999", "top_k:" + "9" * 5000, "top_p:0.5,k=" + "9" * 4000,
            "sampled:1e9", "threshold:1/" + "9" * 4000, "top_p:1e-999999999,k=1", "all" + " " * 10**6, 5, None, ["all"],
        )),
        {"temperatures": [1.0, *(2.0 + i for i in range(10**4))]}, {"temperatures": [1.0, 1e300]},
        {"temperatures": [1.0, 1e-300]}, {"temperatures": [True]}, {"temperatures": 1.0}, {"temperatures": ["1.0"]},
        {"features": [{"pooling": "mean", "layer": i, "width": 1, "dtype": "int8"} for i in range(2000)]},
        {"features": [{"pooling": "mean", "layer": 0, "width": 2**40, "dtype": "int8"}]},
        {"features": [{"pooling": "mean", "layer": 10**40, "width": 2, "dtype": "int8"}]},
        {"features": {"pooling": "mean"}}, {"features": [5]}, {"vocab_size": 2**40}, {"vocab_size": "50"},
        {"vocab_size": True}, {"vocab_size": 50.0}, {"max_length": 10**30}, {"max_length": 1e300}, {"stride": 10**30},
        {"stride": None}, {"label_names": ["a"] * 51}, {"label_names": "abc"}, {"label_names": [1, 2]},
        {"has_text": 1}, {"has_text": "yes"}, {"sample_seed": 10**40}, {"sample_seed": 0.5}, {"code_step_nats": "0.1"},
        {"code_step_nats": True}, {"score": 1}, {"task": ["causal-lm"]}, {"scalars": "gold"}, {"own_logits": []},
    ],
)  # fmt: skip
def test_a_spec_is_bounded_before_it_is_believed(changes):
    with pytest.raises(FormatError, match="does not know") as caught:
        Header.from_bytes(header_saying(**changes), "here")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 10**5, b'{"a":' * 10**5, b'{"hash": "x", "hash": "y"}', b'{"hash": NaN}',
        b'{"hash": ' + b"9" * 10**5 + b"}",
        b'{"hash": "\xff"}', b'{"hash": [' + b"[" * 500 + b"]" * 500 + b"]}",
    ],
)  # fmt: skip
def test_what_is_no_header(data):
    with pytest.raises((CorruptionError, FormatError)) as caught:
        Header.from_bytes(data, "here")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "field", ["teacher", "tokenizer", "fingerprint", "required_features", "format_version"]
)
@pytest.mark.parametrize("value", [None, 5, "text", [1], True, [[]], {"a": {"b": {}}}, {"../a": "b"}])
def test_each_part_of_a_header_has_its_type(field, value):
    if field == "teacher" and isinstance(value, dict):
        return
    with pytest.raises(FormatError):
        Header.from_bytes(sealed_header(header_of(causal_spec()).to_json() | {field: value}), "here")


def test_json_is_bounded():
    assert parse_json(b'{"a": "[[[[", "b": [' + b"{}," * 100 + b'"\\"]}"]}')["a"] == "[[[["
    for bad in (
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a":1,"a":1}',
        b"NaN",
        b"Infinity",
        b"[1",
    ):
        with pytest.raises(ValueError, match=r"."):
            parse_json(bad)
    with pytest.raises(ValueError, match="most"):
        parse_json(b"[" + b"1," * 50 + b"1]", max_bytes=100)
    assert conform(tuple[int, ...], [1, 2]) == (1, 2)
    for kind, value in ((int, True), (int, 1.0), (float, True), (str, 1), (bool, 1), (tuple[int, ...], "12")):
        with pytest.raises(ValueError, match="x cannot be"):
            conform(kind, value, "x")


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (MemoryError(), CacheError),
        (RecursionError(), CorruptionError),
        (pa.ArrowInvalid("a\nb"), CorruptionError),
    ],
)
def test_errors_of_libraries_are_one_line(raised, kind):
    with pytest.raises(kind, match=r"bad.*here") as caught, told("bad", "here"):
        raise raised
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CorruptionError) == (kind is CorruptionError)


def test_a_policy_says_no_more_than_it_must():
    for text in ("threshold:1e999999999", "threshold:1/" + "9" * 500, "top_k:" + "9" * 5000):
        with pytest.raises(TeachonceError, match="--keep"):
            parse_keep(text)
