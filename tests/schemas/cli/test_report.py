"""`inspect` and `verify`: what they say is what the cache holds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import teachonce
from schemas import Cache
from schemas.cli.cache_report import bytes_by_column, describe, describe_rows
from schemas.cli.vocabulary import id_texts, texts_of
from schemas.errors import CorruptionError, NoCacheError, UsageError
from schemas.rows.entries import entries_of
from schemas.storage.storage import Storage
from schemas.versions.commits import base_version
from tests.synthetic import SPECS, add, begin, causal_spec, class_spec, make_cache, random_rows


@pytest.fixture
def grown(tmp_path):
    """A cache of two versions, with rejects in both."""
    rows = random_rows(causal_spec(), 20).rows
    storage = begin(tmp_path / "grown", rows.spec)
    add(storage, None, [rows.take(np.arange(15))], run="one", rejects={"empty": 2, "not_json": 1})
    second = {"rejects": {"empty": 3}, "provenance": {"device": "cpu"}}
    add(storage, base_version(storage), [rows.take(np.arange(15, 20))], run="two", **second)
    return Cache.open(storage.root)


def test_describe_counts_what_is_there(grown):
    found, rows = describe(grown), random_rows(causal_spec(), 20).rows
    assert (found["examples"], found["tokens"], found["shards"]) == (20, rows.num_tokens, 2)
    assert (found["positions"], found["entries"]) == (rows.num_positions, len(rows.kept_ids))
    assert found["bytes"] == sum(path.stat().st_size for path in Path(grown.storage.root).glob("*.parquet"))
    assert found["bytes_per_token"] == found["bytes"] / rows.num_tokens
    assert found["kept_mass"] == pytest.approx(0.9)
    assert found["entropy_nats"] == pytest.approx(1.5)
    assert found["rejects"] == {"empty": 5, "not_json": 1}
    assert [(v["version"], v["run"], v["shards"], v["examples"]) for v in found["versions"]] == [
        (0, "one", 1, 15),
        (1, "two", 2, 20),
    ]
    assert found["versions"][1]["provenance"] == {"device": "cpu"}
    assert found["spec"]["keep"] == "top_p:0.9,k=8"


def test_bytes_of_columns_add_up(grown):
    by_column = bytes_by_column(grown)
    assert sum(by_column.values()) == grown.size_bytes
    assert {"kept_ranks", "kept_codes", "feature_mean_2", "feature_mean_2_scale", "(footers)"} <= set(
        by_column
    )
    assert min(by_column.values()) > 0


def test_lengths_cover_every_example(grown):
    found, lengths = describe(grown)["lengths"], random_rows(causal_spec(), 20).rows.input_ids.lengths
    for line in found:
        assert line["examples"] == ((lengths >= line["from"]) & (lengths <= line["to"])).sum()
    assert sum(line["examples"] for line in found) == 20


def test_describe_reads_no_row_group(grown, monkeypatch):
    ends = {name: opened.footer.row_groups[-1].end for name, opened in grown.footers.items()}
    reads, real = [], Storage.read_range

    def record(self, name, start, end):
        reads.append((name, start))
        return real(self, name, start, end)

    monkeypatch.setattr(Storage, "read_range", record)
    monkeypatch.setattr("schemas.shards.reader._GUESS_BYTES", 8)
    describe(Cache.open(grown.storage.root))
    assert len(reads) == 4
    assert all(start >= ends[name] for name, start in reads)


def test_an_empty_cache_has_no_means(tmp_path):
    from schemas.shards.seal import Totals
    from schemas.versions.commits import commit, record_after
    from tests.synthetic import header_of

    storage = begin(tmp_path, causal_spec())
    record = record_after(None, [], Totals(), run="r", header_hash=header_of(causal_spec()).to_json()["hash"])
    commit(storage, causal_spec(), None, [], record)
    found = describe(Cache.open(tmp_path))
    assert (found["examples"], found["bytes"], found["bytes_per_token"], found["lengths"]) == (0, 0, None, [])
    assert describe_rows(Cache.open(tmp_path), 3) == []
    assert teachonce.main(["inspect", str(tmp_path), "--rows", "2"]) == 0


@pytest.mark.parametrize("name", SPECS)
def test_rows_are_decoded(tmp_path, name):
    cache = make_cache(tmp_path, SPECS[name], num_rows=6, num_shards=1)
    rows = next(cache.read_all())
    found = json.loads(json.dumps(describe_rows(cache, 3)))
    assert [one["example_id"] for one in found] == [i.hex() for i in rows.example_ids]
    assert [len(one["positions"]) for one in found] == np.diff(rows.position_offsets).tolist()
    if SPECS[name].has_text:
        assert [one["text"] for one in found] == rows.array("text").tolist()
    if not SPECS[name].kind.has_positions:
        told = [[one["features"][f.name] for one in found] for f in SPECS[name].features]
        for feature, own in zip(SPECS[name].features, told, strict=True):
            values = rows.feature(feature)
            assert [one["first"] for one in own] == values[:, :5].tolist()
            np.testing.assert_allclose(
                [one["length"] for one in own], np.linalg.norm(values, axis=1), rtol=1e-6
            )
        return
    if SPECS[name].score != "softmax":
        logits = [entry["logit"] for one in found for p in one["positions"] for entry in p["entries"]]
        assert logits == rows.ragged("logits").values.tolist()
        return
    first = found[0]["positions"]
    every = entries_of(rows)
    assert [p["kept"] for p in first] == every.counts[: len(first)].tolist()
    assert all(("input" in p) == (name not in ("answers", "images", "boxes")) for p in first)
    assert [p["index"] for p in first] == rows.position_index()[: len(first)].tolist()
    of_first = slice(0, int(every.counts[0]))
    columns = (every.ids, every.logprobs, every.weights)
    triples = zip(*(values[of_first].tolist() for values in columns), strict=True)
    kept = sorted(triples, key=likeliest_first)[:5]
    assert [(e["id"], e["weight"]) for e in first[0]["entries"]] == [(i, weight) for i, _, weight in kept]
    logprobs = [e.get("logprob", np.nan) for e in first[0]["entries"]]
    np.testing.assert_array_equal(logprobs, [logprob for _, logprob, _ in kept])


def likeliest_first(entry):
    """Whose probability is not stored stands behind, the heavier first."""
    _, logprob, weight = entry
    return (1, 0.0, -weight) if np.isnan(logprob) else (0, -logprob, -weight)


def test_labels_of_a_causal_lm_are_the_next_tokens(cache):
    for one, row in zip(
        describe_rows(cache, 2), (next(cache.read_all()).take(np.array([i])) for i in range(2)), strict=True
    ):
        tokens = row.input_ids.values
        assert [p["label"]["id"] for p in one["positions"]] == [
            int(tokens[p["index"] + 1]) for p in one["positions"]
        ]
        assert [p["input"]["id"] for p in one["positions"]] == [
            int(tokens[p["index"]]) for p in one["positions"]
        ]


def test_rows_stop_at_what_there_is(cache):
    assert len(describe_rows(cache, 1_000)) == 24
    assert describe_rows(cache, 0) == []


def test_ids_get_their_texts(cache, tmp_path):
    assert id_texts(cache) == {0: "a", 1: " b", 2: "\u00e9", 3: "\n", 4: "<|end|>"}
    assert id_texts(make_cache(tmp_path, class_spec())) == {0: "no", 1: "maybe", 2: "yes"}


@pytest.mark.parametrize(
    ("tokenizer", "texts"),
    [
        ({}, {}),
        ({"model": {"vocab": [["\u2581the", -1.5], ["s", -2.0]]}}, {0: " the", 1: "s"}),
        (
            {"model": {"vocab": {"[CLS]": 0, "##ing": 1}}, "decoder": {"type": "WordPiece"}},
            {0: "[CLS]", 1: "##ing"},
        ),
        (
            {
                "model": {"vocab": {"\u00e3": 0, "\u2581": 1}},
                "decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]},
            },
            {0: "\\xe3", 1: "\u2581"},
        ),
    ],
)
def test_texts_of_other_tokenizers(tokenizer, texts):
    assert texts_of(tokenizer) == texts


def test_inspect_json_is_one_object(grown, capsys):
    assert teachonce.main(["inspect", grown.storage.root, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(describe(grown)))
    assert {"examples", "tokens", "shards", "bytes", "bytes_per_token"} <= set(found)
    assert teachonce.main(["inspect", grown.storage.root, "--json", "--rows", "2", "--version", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["examples"], len(found["rows"])) == (0, 15, 2)


def test_inspect_shows_tables(grown, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert teachonce.main(["inspect", grown.storage.root, "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "synthetic",
        "top_p:0.9,k=8",
        "mean:2 (5 int8), last:0 (3 float32)",
        "kept_codes",
        "not_json",
        "two",
        "largest entries",
    ):
        assert word in shown
    assert re.search(r"empty\s*\u2502\s*5 ", shown)
    assert re.search(r"examples\s*\u2502 20 ", shown)


@pytest.mark.parametrize("name", SPECS)
def test_inspect_prints_rows_of_every_kind(tmp_path, name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    cache = make_cache(tmp_path, SPECS[name], num_rows=6)
    assert teachonce.main(["inspect", cache.storage.root, "--rows", "6"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("largest entries" if cache.spec.kind.has_positions else "first numbers") == 6
    assert ("weighs" in shown) == (name in ("threshold", "sampled", "masked", "sources", "written")), (
        "where no log-probability is stored"
    )


@pytest.mark.parametrize("name", ["classes", "sigmoid", "regression"])
def test_inspect_shows_classes_and_takes_no_text_for_markup(tmp_path, name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    cache = make_cache(tmp_path, SPECS[name], num_rows=20)
    assert teachonce.main(["inspect", cache.storage.root, "--rows", "20"]) == 0
    shown = capsys.readouterr().out
    assert "'quoted' [red]" in shown
    assert ("'maybe'" in shown) == bool(cache.spec.label_names)


def test_verify_says_what_was_checked(own_cache, capsys):
    root = own_cache.storage.root
    assert teachonce.main(["verify", root]) == 0
    assert re.search(r"whole: version 0 .* 2 shards, 4 row groups, 24 examples", capsys.readouterr().out)
    assert teachonce.main(["verify", root, "--json", "--version", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "path": root,
        "version": 0,
        "status": "whole",
        "broken": [],
        **vars(own_cache.verify()),
    }
    (Path(root) / own_cache.shards[0].name).write_bytes(b"")
    assert teachonce.main(["verify", root]) == 1
    assert re.fullmatch(r"teachonce verify: 1 of 2 shards are broken; .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_help_teaches_with_two_examples(verb, capsys):
    with pytest.raises(SystemExit) as done:
        teachonce.main([verb, "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert len(re.findall(rf"^    teachonce {verb} ", shown, re.MULTILINE)) >= 2
    assert verb != "verify" or "--teacher" in shown


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (["inspect"], UsageError),
        (["inspect", "x", "--row", "3"], UsageError),
        (["inspect", "x", "--rows", "-3"], UsageError),
        (["verify", "x", "--version", "new"], UsageError),
        (["verify", "nonsense://x"], UsageError),
        (["verify", "/nowhere"], NoCacheError),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(argv, kind, capsys):
    assert teachonce.main(argv) == (2 if kind in (UsageError, NoCacheError) else 1)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"teachonce {argv[0]}: .+\n", printed.err)
    with pytest.raises(kind):
        teachonce.main([*argv, "--traceback"])


def test_a_broken_footer_stops_inspect(own_cache):
    (Path(own_cache.storage.root) / own_cache.shards[0].name).unlink()
    with pytest.raises(CorruptionError, match="missing"):
        describe(own_cache)


def test_schemas_alone_suffice(cache):
    """A fresh process, as a user has it: nothing imported by another test, none of the heavy libraries."""
    code = (
        "import sys, teachonce; code = teachonce.main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'tokenizers', 'apache_beam'} & set(sys.modules);"
        "sys.exit(code or (7 if heavy else 0))"
    )
    for argv in (["verify"], ["inspect", "--rows", "1"]):
        command = [sys.executable, "-W", "error", "-c", code, argv[0], cache.storage.root, *argv[1:]]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
        )
        assert (done.returncode, done.stderr) == (0, "")
