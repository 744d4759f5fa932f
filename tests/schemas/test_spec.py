"""Spec and header: nonsense refused, any change seen, newer formats told from damage."""

import dataclasses
import json

import pytest

from schemas import Feature, Fingerprint, Header, Spec
from schemas.errors import CorruptionError, FormatError, TeachonceError
from schemas.field_flags import FLAGS, told_by_flags
from schemas.generation import parse_generation
from schemas.identity import canonical_json, digest
from schemas.policies import Sampled, Threshold, TopK
from schemas.spec import MAX_VOCAB, differences
from tests.synthetic import SPECS, causal_spec, class_spec, header_of

REFUSED = (ValueError, TypeError)
"""`ValueError`; where types are checked, as in tests, a wrong literal is a `TypeError` before that."""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "nothing"), ("score", "logits"), ("vocab_size", 0), ("vocab_size", MAX_VOCAB + 1), ("max_length", 1),
        ("stride", -1), ("stride", 32), ("supervise", "user"), ("temperatures", ()), ("temperatures", (2.0,)),
        ("temperatures", (2.0, 1.0)), ("temperatures", (1.0, 1.0)), ("temperatures", (1.0, 0.0)),
        ("temperatures", (1.0, float("nan"))), ("temperatures", (1.0, float("inf"))),
        ("temperatures", (1.0, -2.0)), ("features", (Feature(pooling="mean", layer=1, width=2),) * 2),
        ("code_step_nats", 0.0), ("code_step_nats", 2.0), ("top_step_nats", 0.0), ("scalar_step_nats", 2.0),
        ("scalars", ("gold", "entropy", "logsumexp")), ("scalars", ("entropy", "entropy", "logsumexp")),
        ("scalars", ("entropy", "gold")), ("scalars", ("mood",)), ("sample_seed", 2**63),
        ("own_logits", True), ("keep", Threshold(tau=0.1)), ("keep", Sampled(n=3)),
    ],
)  # fmt: skip
def test_nonsense_is_refused_and_named(field, value):
    named = {"keep": "own_logits|temperatures"}.get(field, field)
    with pytest.raises(REFUSED, match=named):
        causal_spec(**{field: value})


def test_temperatures_need_the_draws_own_logprobs():
    keep = Threshold(tau=0.1)
    assert causal_spec(keep=keep, own_logits=True).temperatures == (1.0, 2.0)
    assert not causal_spec(keep=keep, temperatures=(1.0,)).own_logits
    with pytest.raises(ValueError, match="draws serve temperature 1 alone"):
        causal_spec(keep=Sampled(n=3), own_logits=True)


def test_only_softmax_scores_can_be_cut():
    with pytest.raises(ValueError, match="softmax"):
        dataclasses.replace(SPECS["sigmoid"], keep=TopK(k=2))


@pytest.mark.parametrize(
    ("field", "value"), [("pooling", "max"), ("dtype", "int4"), ("layer", -1), ("width", 0)]
)
def test_a_feature_refuses_nonsense(field, value):
    with pytest.raises(REFUSED, match=field):
        Feature(**{"pooling": "mean", "layer": 1, "width": 2, field: value})


@pytest.mark.parametrize("name", SPECS)
def test_json_round_trip(name):
    spec = SPECS[name]
    again = Spec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.hash == spec.hash
    header = header_of(spec)
    assert Header.from_bytes(header.to_bytes(), "here") == header


def test_every_field_is_in_the_hash():
    changes = {
        "task": "sequence-classification", "vocab_size": 51, "keep": TopK(k=8), "max_length": 33, "stride": 1,
        "supervise": "assistant", "temperatures": (1.0,), "features": (), "label_names": ("a",),
        "has_labels": True, "code_step_nats": 0.125, "has_token_type_ids": True, "has_document_id": True,
        "has_text": True, "has_text_pair": True, "sample_seed": 7, "top_step_nats": 0.5, "scalar_step_nats": 0.5,
    }  # fmt: skip
    assert set(changes) | {"score", "scalars", "own_logits", "task_settings", "generation"} == {
        field.name for field in dataclasses.fields(Spec)
    }
    hashes = {causal_spec(**{field: value}).hash for field, value in changes.items()}
    assert len(hashes | {causal_spec().hash}) == len(changes) + 1
    plain = {"temperatures": (1.0,), "keep": Threshold(tau=0.1)}
    more = [causal_spec(**plain, **own).hash for own in ({}, {"own_logits": True}, {"scalars": ()})]
    assert len(set(more)) == 3


def test_golden_hashes():
    assert causal_spec().hash == "be9f80bd90fa5ff3872e96b4d00db4b0"
    assert header_of(causal_spec()).fingerprint.hash == "56d147e09f40963dae09f002bed87dc6"
    assert header_of(causal_spec()).to_json()["hash"] == "ba1713ea18478972af5eb091dbd023a6"


def test_one_flipped_bit_is_never_another_spec():
    header = header_of(causal_spec())
    data = header.to_bytes()
    for place in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        try:
            assert Header.from_bytes(bytes(flipped), "here") == header, place
        except TeachonceError as error:
            assert "here" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"5", b"null", b'"hash"', b"\xff", b'{"hash": 1}', b"{" * 10]
)
def test_what_is_no_spec_is_refused(data):
    with pytest.raises((CorruptionError, FormatError), match="here"):
        Header.from_bytes(data, "here")


def resealed(**changes):
    """A header of a later release, with its hash as it must be."""
    body = header_of(causal_spec()).to_json() | changes
    del body["hash"]
    return json.dumps({**body, "hash": digest(canonical_json(body), "header").hex()}).encode()


@pytest.mark.parametrize("version", [0, 2, -1, "1", None, 10**6])
def test_another_format_version_is_refused(version):
    with pytest.raises(FormatError, match=r"format version.*expected 1"):
        Header.from_bytes(resealed(format_version=version), "here")


def test_an_unknown_required_feature_is_refused_by_name():
    features = ["score:softmax", "keep:min_p", "score:rank"]
    with pytest.raises(FormatError, match="keep:min_p, score:rank"):
        Header.from_bytes(resealed(required_features=features), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"task": "masked-lm"},
        {"new_field": 1},
        {"keep": "min_p:0.1"},
        {"features": [{"kind": "sum"}]},
        {"stride": -1},
    ],
)
def test_a_spec_that_this_reader_cannot_mean_is_a_format_error(change):
    spec = causal_spec().to_json() | change
    with pytest.raises(FormatError, match="does not know"):
        Header.from_bytes(resealed(spec=spec), "here")


@pytest.mark.parametrize("field", ["spec", "fingerprint", "teacher", "tokenizer"])
def test_a_missing_part_is_a_format_error(field):
    body = header_of(causal_spec()).to_json()
    del body[field], body["hash"]
    data = json.dumps({**body, "hash": digest(canonical_json(body), "header").hex()}).encode()
    with pytest.raises(FormatError):
        Header.from_bytes(data, "here")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "", ".", "a//b", "./a"])
def test_tokenizer_files_stay_inside_their_folder(name):
    with pytest.raises(ValueError, match="tokenizer"):
        dataclasses.replace(header_of(causal_spec()), tokenizer={name: "0" * 64})
    with pytest.raises(FormatError):
        Header.from_bytes(resealed(tokenizer={name: "0" * 64}), "here")


def test_required_features_are_known():
    assert causal_spec().required_features == ("keep:top_p", "score:softmax")
    assert SPECS["temperatures"].required_features == ("keep:threshold", "score:softmax")
    assert SPECS["sampled"].required_features == ("keep:sampled", "score:softmax")
    assert SPECS["regression"].required_features == ("keep:all", "score:identity")


def test_differences_are_told_field_by_field():
    ours = header_of(causal_spec())
    theirs = dataclasses.replace(
        header_of(causal_spec(stride=4)),
        fingerprint=Fingerprint(**{**dataclasses.asdict(ours.fingerprint), "dtype": "bfloat16"}),
    )
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == [
        "--dtype: cache float32, run bfloat16",
        "--stride: cache 0, run 4",
    ]


def test_every_field_that_may_differ_is_told_by_a_flag():
    told = {(part, name) for part, fields in FLAGS.items() for name in fields}
    kinds = {"fingerprint": Fingerprint, "spec": Spec}
    assert told == {(part, f.name) for part, kind in kinds.items() for f in dataclasses.fields(kind)}
    assert told_by_flags("spec", "has_document_id", False, True) == [
        "--id_field: cache without it, run with it"
    ]
    settings = [{"views": 1, "whole_word_mask": False}, {"views": 2, "whole_word_mask": False}]
    assert told_by_flags("spec", "task_settings", *settings) == ["--views: cache 1, run 2"]
    assert told_by_flags("spec", "generation", None, "greedy")[0].endswith("cache nothing, run greedy")


def test_how_the_teacher_writes_is_in_the_hash_and_comes_back():
    ways = [
        "greedy",
        "beams:2",
        "beams:3",
        "sample",
        "sample:temperature=0.5",
        "sample:top_p=0.5",
        "sample:top_k=4",
    ]
    found = [parse_generation(way, 8) for way in ways]
    assert [str(one) for one in found] == ways
    found += [parse_generation("greedy", 9), dataclasses.replace(found[0], end_ids=(2, 3))]
    specs = [causal_spec(generation=one) for one in (None, *found)]
    assert len({spec.hash for spec in specs}) == len(specs)
    for spec in specs:
        again = Spec.from_json(json.loads(json.dumps(spec.to_json())))
        assert (again, again.hash) == (spec, spec.hash)
    assert ["text:generated" in spec.required_features for spec in specs] == [False] + [True] * len(found)
    assert "generation" not in specs[0].to_json()
    with pytest.raises(ValueError, match=r"generation .of sequence-classification"):
        class_spec(generation=found[0])


@pytest.mark.parametrize(
    "change",
    [
        {"method": "greedily"},
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
        {"num_beams": 2},
        {"temperature": 0.5},
        {"top_k": 1.5},
        {"method": "sample", "top_p": 0.0},
        {"method": "sample", "temperature": -1.0},
        {"method": "beams", "num_beams": 10**6},
        {"end_ids": [-1]},
        {"end_ids": "1"},
        {"more": 1},
    ],
)
def test_a_way_to_write_that_is_none_is_refused(change):
    body = header_of(causal_spec(generation=parse_generation("greedy", 8))).to_json()
    body["spec"]["generation"] |= change
    del body["hash"]
    body["hash"] = digest(canonical_json(body), "header").hex()
    with pytest.raises(FormatError):
        Header.from_bytes(json.dumps(body).encode(), "here")
