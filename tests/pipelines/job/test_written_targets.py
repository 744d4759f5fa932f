"""The teacher writes targets: a cache holds what plain `generate` writes of each source alone, and its scores."""

import itertools
import json

import numpy as np
import pytest
import torch
import transformers

from schemas import Cache
from schemas.errors import UsageError
from schemas.generation import parse_generation
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import read, run, write_jsonl
from tests.pipelines.job.test_seq2seq_lm import AUTO, tokenizer_of
from tests.pipelines.oracle import Oracle, check_labels, check_row

NEW, ENDS = 9, [1, *range(4, 300, 7), 290]
SOURCES = [
    "Who runs once?",
    "Who trains?",
    "A cache",
    "Nothing is lost and",
    "Who stores?",
    "Who trains them?",
]
CASES = {
    "t5": ("t5", "greedy", {}, {}),
    "t5, beams": ("t5", "beams:3", {"num_beams": 3}, {}),
    "bart begins with a token of its own": ("bart", "greedy", {"forced_bos_token_id": 2}, {}),
    "marian": ("marian", "greedy", {}, {}),
    "nllb begins with a language": (
        "nllb",
        "greedy",
        {},
        {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    ),
}


def corpus(path, texts=SOURCES):
    return write_jsonl(path, [{"text": text} for text in texts])


def told(way, **more):
    return {"task": "seq2seq-lm", "max_length": 48, "generation": parse_generation(way, NEW), **more}


@pytest.mark.parametrize("name", CASES)
def test_a_cache_holds_what_the_teacher_writes_of_each_source_alone(tmp_path, name):
    kind, way, options, changes = CASES[name]
    words, ends = tokenizer_of(kind), ENDS
    made = models.seq2seq_teacher(
        tmp_path / "t", "m2m_100" if kind == "nllb" else kind, tokenizer=words, **changes
    )
    own = transformers.AutoTokenizer.from_pretrained(made)
    if kind == "nllb":
        ends = [own.eos_token_id, *range(20, 60, 6)]
        options = {"forced_bos_token_id": own.convert_tokens_to_ids("fra_Latn")}
    (made / "generation_config.json").write_text(
        json.dumps({"eos_token_id": ends, "repetition_penalty": 5.0})
    )
    summary = run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", **told(way))
    assert (summary.totals.examples, dict(summary.rejects)) == (len(SOURCES), {})
    spec, oracle = Cache.open(tmp_path / "c").spec, Oracle(made, auto=AUTO)
    assert spec.generation.end_ids == tuple(sorted(ends))
    model = AUTO.from_pretrained(made).eval()
    model.generation_config = transformers.GenerationConfig()
    settings = transformers.GenerationConfig(
        max_new_tokens=NEW + ("forced_bos_token_id" in options),
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=model.config.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
        **options,
    )
    wanted, lengths = {}, set()
    for text in SOURCES:
        ids = own(text, return_tensors="pt")["input_ids"]
        found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[
            0, 1:
        ].tolist()
        first = "forced_bos_token_id" in options  # a token that all begin with ends none
        ends_at = [place for place, one in enumerate(found) if one in ends and place >= first]
        wanted[tuple(ids[0].tolist())] = found[: ends_at[0] + 1] if ends_at else found
    for row in read(Cache.open(tmp_path / "c")).values():
        size, ids = int(row["source_tokens"]), row["input_ids"].tolist()
        said = wanted.pop(tuple(ids[:size]))
        assert ids[size:] == said
        assert row["positions"].tolist() == list(range(size - 1, len(ids) - 1))
        truth = oracle.truth(row)
        assert check_row(row, truth, spec) == 0
        check_labels(row, truth, np.array(said))
        lengths.add(len(said))
    assert not wanted
    assert len(lengths) > 1, "some are ended, some are cut"


def test_a_drawn_target_is_a_matter_of_seed_and_example_alone(tmp_path):
    made = models.seq2seq_teacher(tmp_path / "t", "bart")
    path, rest = corpus(tmp_path / "c.jsonl"), corpus(tmp_path / "d.jsonl", SOURCES[::2])
    found = {}
    for name, lines, seed in (("a", path, 0), ("some", rest, 0), ("other", path, 1)):
        run(lines, made, tmp_path / name, **told("sample:top_p=0.9", sample_seed=seed))
        rows = read(Cache.open(tmp_path / name)).values()
        found[name] = {
            tuple(row["input_ids"][: int(row["source_tokens"])]): row["input_ids"].tolist() for row in rows
        }
    assert found["some"].items() <= found["a"].items()
    assert len(found["some"]) == 3
    assert all(ids != found["a"][source] for source, ids in found["other"].items())


def test_a_long_source_is_rejected_or_cut_and_counted(tmp_path):
    made = models.seq2seq_teacher(tmp_path / "t")
    path = corpus(tmp_path / "c.jsonl", [*SOURCES, "a b c d e f g " * 9])
    summary = run(path, made, tmp_path / "c", **told("greedy", max_reject_fraction=0.5))
    assert dict(summary.rejects) == {"too_long": 1}
    summary = run(path, made, tmp_path / "d", **told("greedy", task_settings={"truncate_source": True}))
    assert (dict(summary.rejects), summary.truncated_pairs) == ({}, 1)
    assert max(int(row["source_tokens"]) for row in read(Cache.open(tmp_path / "d")).values()) == 48


def test_what_cannot_be_begun_or_is_there_already_is_refused(tmp_path):
    changes = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    made = models.seq2seq_teacher(tmp_path / "t", "mbart", tokenizer=tokenizer_of("mbart"), **changes)
    with pytest.raises(UsageError, match=r"more than an end token behind a target.*ro_RO"):
        run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", **told("greedy"))
    with pytest.raises(ValueError, match="beside target_field"):
        run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", **told("greedy", target_field="target"))
    with pytest.raises(UsageError, match=r"needs targets.*or --generate"):
        run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", task="seq2seq-lm", max_length=48)


def test_from_the_commands_to_a_student(tmp_path):
    made = models.seq2seq_teacher(tmp_path / "t", "bart")
    path = corpus(tmp_path / "c.jsonl", [f"{text} {i}" for text, i in itertools.product(SOURCES, range(6))])
    asked = ("--corpus", path, "--teacher", made, "--task", "seq2seq-lm", "--generate", "greedy")
    asked += ("--max_new_tokens", "12", "--max_length", "48")
    status, said = teachonce_main("inspect", *asked, "--rows", "1")
    assert status == 0, said
    assert SOURCES[0] in said
    cache = tmp_path / "cache"
    for verb in (
        ("plan", *asked, "--cache", cache, "--no_progress"),
        ("precompute", *asked, "--cache", cache, "--no_progress"),
    ):
        status, said = teachonce_main(*verb)
        assert status == 0, said
    for verb in (
        ("verify", cache, "--teacher", made),
        ("inspect", cache),
        ("precompute", *asked, "--cache", cache, "--no_progress"),
    ):
        status, said = teachonce_main(*verb)
        assert status == 0, said
    student = ("--student", made, "--output_dir", tmp_path / "s", "--max_steps", "2", "--use_cpu")
    status, said = teachonce_main("train", "--cache", cache, *student, "--losses", "kl=1", "ce=0.5")
    assert status == 0, said
    status, said = teachonce_main(
        "evaluate", "--cache", cache, "--student", tmp_path / "s", "--eval_fraction", "0.3"
    )
    assert status == 0, said
