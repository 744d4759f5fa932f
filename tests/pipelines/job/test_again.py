"""The teacher runs once: a second run over the same documents computes nothing, wherever they stand."""

import json
import shutil

import pytest
import transformers

from pipelines.cli.run_tables import summary_lines
from pipelines.corpus.tokenization import Tokeniser
from pipelines.job import steps
from pipelines.job.run import prepare
from pipelines.scoring import handler
from schemas import Cache
from schemas.errors import MismatchError, UsageError
from schemas.policies import TopK
from tests.outside import modules_named_in
from tests.pipelines import models
from tests.pipelines.helpers import compress, config, documents, read, run, texts, write_jsonl, write_parquet


@pytest.fixture
def no_teacher(monkeypatch):
    """A world in which loading the teacher fails, and so does tokenising anything."""

    def refuse(*_):
        raise AssertionError("a known document was asked about again")

    monkeypatch.setattr(handler, "open_teacher", refuse)
    monkeypatch.setattr(Tokeniser, "examples", refuse)


@pytest.fixture
def copy(tmp_path, whole):
    """A copy of the finished cache, to add to."""
    return shutil.copytree(whole[0], tmp_path / "copy")


def shards(cache):
    return sorted(path.name for path in cache.glob("*.parquet"))


@pytest.mark.parametrize(("distinct", "copies"), [(10, "ABC"), (2, "ABCA")])
def test_repeats_inside_a_piece_are_counted_where_they_are_read(
    tmp_path, teacher, monkeypatch, distinct, copies
):
    """A text that stands a million times in a file meets itself once in the join, not a million times."""
    monkeypatch.setattr(steps, "DISTINCT", distinct)
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": f"text {letter}"} for letter in "ABABBCAAA"])
    made, _ = prepare(config(corpus, teacher, tmp_path / "c"), leased=False)
    reader = steps.ReadDocuments(made.config, made.run, made.labels)
    reader.setup()
    found = list(reader.process(made.pieces[0]))
    documents = [one[1] for one in found if isinstance(one, tuple)]
    assert [text for _, _, text, *_ in documents] == [f"text {letter}" for letter in copies]
    counts = dict(one.value for one in found if not isinstance(one, tuple))
    assert (counts["documents"], counts["duplicates"]) == (9, 9 - len(copies))


def test_a_run_counts_what_it_did(whole):
    cache, summary = whole
    opened = Cache.open(cache)
    verified = opened.verify()
    assert (summary.version, summary.committed) == (0, True)
    assert (summary.documents, summary.new_documents, summary.known_documents) == (24, 24, 0)
    assert summary.totals.tokens == opened.totals.tokens == verified.tokens
    assert summary.totals.examples == verified.examples > 24
    assert (summary.shards, summary.size_bytes) == (verified.shards, verified.bytes)
    assert summary.totals.tokens <= summary.padded_tokens < 1.5 * summary.totals.tokens
    assert sum(summary.totals.length_histogram) == verified.examples
    assert summary.teacher_seconds > 0
    assert 0 < summary.encode_seconds < summary.wall_seconds
    assert summary.wall_seconds > 0
    assert opened.record.provenance["device"] == summary.provenance["device"]
    assert {"torch", "transformers", "apache-beam"} <= summary.provenance.keys()
    assert all(isinstance(value, str) for line in summary_lines(summary) for value in line)


def test_the_cache_holds_the_teachers_tokenizer_and_every_text(tmp_path, whole, corpus):
    opened = Cache.open(whole[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(opened.save_tokenizer(tmp_path / "t"))
    found = " ".join(sorted(texts(whole[0], tokenizer)))
    for line in corpus.read_text().splitlines():
        assert json.loads(line)["text"][:8] in found


@pytest.mark.usefixtures("no_teacher")
def test_a_second_run_loads_no_teacher_adds_no_shard_and_no_version(copy, corpus, teacher):
    before, version = shards(copy), Cache.open(copy).version
    summary = run(corpus, teacher, copy, unit_tokens=50)
    assert (summary.committed, summary.version, summary.shards) == (False, version, 0)
    assert (summary.known_documents, summary.new_documents) == (24, 0)
    assert (shards(copy), Cache.open(copy).version) == (before, version)


@pytest.mark.usefixtures("no_teacher")
def test_documents_that_were_moved_reordered_or_repeated_are_not_new(tmp_path, copy, teacher):
    every = documents(24)
    moved = [
        compress(write_jsonl(tmp_path / "a.jsonl", every[20:] + every[:6]), ".zst"),
        write_parquet(tmp_path / "b.parquet", [{**d, "more": 1} for d in every[::-1]]),
        write_jsonl(tmp_path / "c.txt", [d["text"].encode() for d in every[:9]]),
    ]
    summary = run(moved, teacher, copy)
    assert (summary.documents, summary.duplicates) == (10 + 24 + 9, 10 + 9)
    assert (summary.known_documents, summary.committed) == (24, False)


def test_half_a_corpus_and_then_all_of_it_gives_every_id_once(tmp_path, teacher, whole):
    half = write_jsonl(tmp_path / "half.jsonl", documents(12))
    every = write_jsonl(tmp_path / "all.jsonl", documents(24) + documents(24))
    first = run(half, teacher, tmp_path / "c")
    second = run(every, teacher, tmp_path / "c")
    assert (first.version, second.version) == (0, 1)
    assert (second.known_documents, second.new_documents, second.duplicates) == (12, 12, 24)
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()
    assert read(Cache.open(tmp_path / "c", 0)).keys() < read(whole[0]).keys()
    assert Cache.open(tmp_path / "c").verify().examples == first.totals.examples + second.totals.examples


def test_a_document_of_which_windows_are_missing_gets_only_those(tmp_path, corpus, teacher, monkeypatch):
    """A run may reject single windows; a later one, with more memory, adds only them."""
    honest = handler.UnitScorer.score

    def forgetful(self, unit, examples):
        return honest(self, unit, [example for example in examples if example.window_index != 1])

    monkeypatch.setattr(handler.UnitScorer, "score", forgetful)
    first = run(corpus, teacher, tmp_path / "c")
    monkeypatch.undo()
    second = run(corpus, teacher, tmp_path / "c")
    rows = read(tmp_path / "c").values()
    assert second.totals.examples == sum(row["window_index"] == 1 for row in rows) > 0
    assert len(rows) == first.totals.examples + second.totals.examples
    assert run(corpus, teacher, tmp_path / "c").committed is False


def test_another_seed_of_the_same_shape_is_another_teacher(copy, corpus, teacher, tmp_path):
    other = models.causal_teacher(tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match=r"--teacher, its weights: cache \w+, run \w+"):
        run(corpus, other, copy)
    assert Cache.open(copy).version == 0
    assert run(corpus, teacher, copy).committed is False


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"dtype": "bfloat16"}, ["--dtype: cache float32, run bfloat16"]),
        ({"keep": TopK(k=4)}, ["--keep: cache all, run top_k:4", "--scalars"]),
        (
            {"max_length": 25, "stride": 2},
            ["--max_length: cache 24, run 25", "--stride: cache 0, run 2"],
        ),
        ({"temperatures": (1.0, 3.0)}, ["--temperatures: cache 1.0, run 1.0 3.0"]),
        ({"features": ("mean:1",)}, ["--features, --feature_dtype: cache nothing, run mean:1 as int8"]),
        ({"keep_text": True}, ["--keep_text: cache without it, run with it"]),
    ],
)
def test_another_spec_is_refused_field_by_field(whole, corpus, teacher, changes, fields):
    with pytest.raises(MismatchError) as caught:
        run(corpus, teacher, whole[0], **changes)
    for field in fields:
        assert field in str(caught.value)
    differing = [part for part in str(caught.value).split("; ") if "cache " in part]
    assert len(differing) == len(fields)


def test_a_changed_tokenizer_template_or_config_is_another_teacher(tmp_path, whole, corpus, teacher):
    for name, old, new, field in (
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.1', "config"),
        ("tokenizer.json", '"</s>"', '"<end>"', "tokenizer"),
        ("chat_template.jinja", "<|assistant|>", "<|model|>", "chat template"),
    ):
        other = shutil.copytree(teacher, tmp_path / name)
        assert old in (other / name).read_text()
        for file in other.glob("*token*.json") if field == "tokenizer" else [other / name]:
            file.write_text(file.read_text().replace(old, new))
        with pytest.raises(MismatchError, match=f"--teacher, its {field}: cache"):
            run(corpus, other, whole[0])


def test_what_may_differ_between_runs_is_not_refused(copy, corpus, tmp_path, teacher):
    moved = shutil.copytree(teacher, tmp_path / "renamed")
    text = (moved / "config.json").read_text()
    (moved / "config.json").write_text(
        text.replace('"transformers_version": "5', '"transformers_version": "9')
    )
    assert run(corpus, moved, copy, attn_implementation="eager", device="cpu").committed is False


def test_a_renamed_teacher_adds_to_the_cache_as_before(copy, corpus, tmp_path, teacher):
    moved = shutil.copytree(teacher, tmp_path / "renamed")
    more = write_jsonl(tmp_path / "more.jsonl", documents(30))
    assert run(more, moved, copy).version == 1
    assert Cache.open(copy).header.teacher["name"] == teacher.name
    Cache.open(copy).verify()
    assert run(more, teacher, copy).committed is False


def test_labels_that_come_or_go_are_another_spec(tmp_path, classifier):
    corpus = write_jsonl(tmp_path / "c.jsonl", [{**d, "label": 1} for d in documents(3)])
    flags = {"task": "sequence-classification"}
    run(corpus, classifier, tmp_path / "c", **flags, label_field="label")
    with pytest.raises(MismatchError, match=r"--label_field: cache with it, run without it"):
        run(corpus, classifier, tmp_path / "c", **flags)


def test_a_cache_on_the_workers_own_disks_is_refused_on_dataflow(tmp_path, corpus, teacher):
    with pytest.raises(UsageError, match="where every worker reaches it"):
        run(corpus, teacher, tmp_path / "c", beam_options=("--runner=DataflowRunner", "--project=p"))


def test_flags_that_do_not_fit_the_teacher_are_usage_errors(tmp_path, corpus, teacher, classifier):
    for changes, words in (
        ({"features": ("mean:9",)}, "layers 0 to 2"),
        ({"features": ("middle:1",)}, "middle"),
        ({"features": ("mean:x",)}, "mean:x"),
        ({"features": ("mean:2", "mean:-1")}, "features"),
        ({"temperatures": (2.0,)}, "temperatures"),
        ({"stride": 24}, "leaves no room"),
        (
            {"path": str(classifier), "task": "sequence-classification", "max_length": 5, "stride": 3},
            "no room",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            run(corpus, teacher, tmp_path / "c", **changes)
    assert not (tmp_path / "c").exists()


def test_the_longest_window_is_what_tokenizer_and_model_allow(tmp_path, corpus, teacher):
    run(corpus, teacher, tmp_path / "c", max_length=None)
    assert Cache.open(tmp_path / "c").spec.max_length == 512
    assert config(corpus, teacher, "c").max_length == 24


def test_no_file_of_a_cache_names_a_module_of_ours(whole):
    """So that files of this project may move without a cache being lost."""
    assert modules_named_in(whole[0]) == {}
