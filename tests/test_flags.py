"""Every flag that `--help` names, of every verb but the trainer's: once with a good value and once with a bad one.

`GOOD` are whole calls, each with as many flags as go together; `BAD` has one wrong value a flag, added to the first of
them. A flag that is in neither fails: the table grows with the command.
"""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import teachonce
from tests.detectors import detected
from tests.images import image_teacher, images, write_parquet
from tests.pipelines import models
from tests.pipelines.families import masked_teacher
from tests.pipelines.helpers import documents, write_jsonl

ELSEWHERE = {"--compile": "tests/pipelines/teacher/test_large.py"}
"""Flags whose good value costs minutes, and where it is tried all the same."""

SHARED = [
    "--corpus={texts} --format=jsonl --text_field=text --id_field=id --max_document_chars=999 --max_line_bytes=9999 "
    "--teacher={causal} --task=causal-lm --dtype=float32 --device=cpu --attn_implementation=eager "
    "--trust_remote_code --allow_pickle --cache={new} "
    "--keep=threshold:1/8,k=2 --own_logits --sample_seed=-3 --scalars entropy logsumexp "
    "--features mean:-1 --feature_dtype=float32 --temperatures 1 2 --score=softmax --max_length=24 --stride=2 "
    "--keep_text --batch_tokens=256 --unit_tokens=500 --row_group_tokens=100 --min_ram=1GB --max_reject_fraction=0.5 "
    "--prune --accelerator=type:nvidia-l4;count:1 --max_prune_fraction=0.5 --replace --retry_rejects --max_hours=1 "
    "--max_drift_kl=0.1 --workers=1 --report={report} --json --no_progress",
    "--corpus={chats} --messages_field=messages --tools_field=tools --supervise=assistant "
    "--teacher={causal} --task=causal-lm "
    "--cache={new} --no_progress --max_length=64 --device_map=auto",
    "--corpus={texts} --prompt_field=text --completion_field=id --teacher={causal} --task=causal-lm --cache={new} "
    "--no_progress --max_length=64",
    "--corpus={texts} --text_pair_field=id --label_field=label --teacher={classes} --task=sequence-classification "
    "--cache={new} --no_progress --max_length=64",
    "--corpus={texts} --teacher={masked} --task=masked-lm --cache={new} --no_progress --max_length=64 --views=2 "
    "--mlm_probability=0.3 --mask_replace_prob=0.5 --random_replace_prob=0.5 --whole_word_mask",
    "--corpus={texts} --teacher={encoder} --task=feature-extraction --features cls:-1 --cache={new} --no_progress "
    "--max_length=64 --prompt=query: --normalize --no-normalize --truncate_dim=8",
    "--corpus={tagged} --words_field=tokens --label_field=tags --teacher={tokens} --task=token-classification "
    "--cache={new} --no_progress --max_length=64",
    "--corpus={texts} --prompt_field=text --generate=beams:2 --max_new_tokens=4 --teacher={causal} --task=causal-lm "
    "--cache={new} --no_progress --max_length=64",
    "--corpus={texts} --passages_field=text --teacher={pairs} --task=pair-score --cache={new} --no_progress "
    "--max_length=64",
    "--corpus={asked} --text_field=question --text_pair_field=context --label_field=answers --teacher={answers} "
    "--task=question-answering --always_answerable --keep_text --keep_answers=3 --cache={new} --no_progress "
    "--max_length=64",
    "--corpus={texts} --target_field=label --teacher={halves} --task=seq2seq-lm --cache={new} --no_progress "
    "--max_length=64 --truncate_source",
    "--corpus={pictures} --image_field=picture --label_field=label --teacher={images} --task=image-classification "
    "--cache={new} --no_progress --views=2 --augment=crop,flip --max_image_pixels=9999",
    "--corpus={scenes} --teacher={detector} --task=object-detection --cache={new} --no_progress --queries=7",
]
GOOD = {
    "precompute": SHARED,
    "plan": [
        f"{SHARED[0]} --sample_tokens=50 --epochs=2 --teacher_rate=9000 --price_per_hour=2.5 --storage_price=0.02 "
        "--write_price=0.005 --read_price=0.0004",
        *SHARED[1:],
    ],
    "inspect": ["{cache} --version=0 --rows=1 --json", "{cache} --browse"],
    "verify": ["{cache} --version=0 --json", "{cache} --repair"],
    "verify --teacher": [
        "{cache} --teacher={causal} --version=0 --sample=2 --max_mean_kl=0.1 --device=cpu --trust_remote_code "
        "--allow_pickle --json"
    ],
    "report": ["{cache} --out={new} --version=0 --sample_tokens=100 --json"],
    "export": ["{cache} --out={new} --version=0 --format=parquet --columns=input_ids,ids --overwrite --json"],
    "compact": ["{cache} --unit_tokens=99999 --row_group_tokens=100 --no_progress --json"],
    "thin": [
        "{cache} --keep=threshold:1/2 --out={new} --scalars entropy logsumexp --temperatures 1 2 --own_logits "
        "--row_group_tokens=99 --no_progress --json",
        "{cache} --keep=top_k:2 --out={new} --temperatures 1 --no-own_logits --no_progress",
    ],
    "merge": ["{cache} {other} --out={new} --pick=entropy --row_group_tokens=99 --no_progress --json"],
    "forget": ["{cache} --ids={ids} --force --no_progress --json"],
    "vacuum": ["{cache} --older_than=7d --dry_run --json"],
}

RUN = {
    "--corpus": "nothing-here.jsonl",
    "--format": "xlsx",
    "--text_field": "nothing_here",
    "--text_pair_field": "nothing_here",
    "--words_field": "nothing_here",
    "--target_field": "nothing_here",
    "--messages_field": "nothing_here",
    "--passages_field": "nothing_here",
    "--image_field": "nothing_here",
    "--augment": "mixup",
    "--max_image_pixels": "0",
    "--prompt_field": "nothing_here",
    "--completion_field": "nothing_here",
    "--label_field": "nothing_here",
    "--id_field": "nothing_here",
    "--max_document_chars": "0",
    "--max_line_bytes": "0",
    "--tools_field": "nothing_here",
    "--teacher": "./nothing-here",
    "--task": "translation",
    "--dtype": "int8",
    "--device": "tpu",
    "--device_map": "everywhere",
    "--attn_implementation": "nothing_here",
    "--cache": "nothing://x",
    "--keep": "top_k:5000",
    "--sample_seed": "9" * 30,
    "--scalars": "best",
    "--features": "mean:99",
    "--feature_dtype": "int4",
    "--temperatures": "nan",
    "--score": "best",
    "--max_length": "1",
    "--stride": "24",
    "--supervise": "nobody",
    "--batch_tokens": "0",
    "--unit_tokens": "0",
    "--row_group_tokens": "-1",
    "--accelerator": "gpu",
    "--min_ram": "64",
    "--max_reject_fraction": "nan",
    "--max_prune_fraction": "1.5",
    "--max_hours": "0",
    "--max_drift_kl": "nan",
    "--workers": "0",
    "--report": "nothing-here/report.json",
    "--prompt": "x" * 10_001,
    "--truncate_dim": "33",
    "--views": "0",
    "--queries": "0",
    "--keep_answers": "65",
    "--mlm_probability": "1.5",
    "--mask_replace_prob": "0.6",
    "--random_replace_prob": "nan",
    "--generate": "greedily",
    "--max_new_tokens": "0",
}
CALLS = dict.fromkeys(("--text_pair_field", "--label_field"), 3)
CALLS |= {"--words_field": 6, "--generate": 7, "--max_new_tokens": 7, "--passages_field": 8}
CALLS |= dict.fromkeys(("--prompt", "--truncate_dim"), 5) | {"--always_answerable": 9, "--keep_answers": 9}
CALLS |= {"--target_field": 10, "--truncate_source": 10}
CALLS |= dict.fromkeys(("--image_field", "--augment", "--max_image_pixels"), 11) | {"--queries": 12}
CALLS |= dict.fromkeys(
    ("--views", "--mlm_probability", "--mask_replace_prob", "--random_replace_prob", "--whole_word_mask"), 4
)
"""Which call a flag's bad value is added to, where it is not the first."""
SWITCH = "=yes"
"""What no flag takes that takes no value."""
BAD = {
    "precompute": RUN,
    "plan": {**RUN, "--sample_tokens": "0", "--epochs": "0", "--teacher_rate": "0", "--price_per_hour": "-1"}
    | {"--storage_price": "nan", "--write_price": "1e7", "--read_price": "cheap"},
    "inspect": {"--version": "9", "--rows": "-1"},
    "verify": {"--version": "9"},
    "verify --teacher": {
        "--teacher": "./nothing-here",
        "--version": "9",
        "--sample": "0",
        "--max_mean_kl": "nan",
        "--device": "tpu",
    },
    "report": {"--out": "nothing-here/report.html", "--version": "9", "--sample_tokens": "0"},
    "export": {
        "--out": "{cache}",
        "--version": "9",
        "--format": "csv",
        "--columns": "nothing_here",
    },
    "compact": {"--unit_tokens": "0", "--row_group_tokens": "x"},
    "thin": {
        "--keep": "top_k:9",
        "--out": "{cache}",
        "--scalars": "gold best",
        "--temperatures": "3",
        "--row_group_tokens": "0",
    },
    "merge": {"--out": "{cache}", "--pick": "mean", "--row_group_tokens": "0"},
    "forget": {"--ids": "nothing-here.txt"},
    "vacuum": {"--older_than": "7"},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What the calls name: corpora, teachers, ids."""
    folder = tmp_path_factory.mktemp("flags")
    said = [
        {"role": "user", "content": "Say it."},
        {"role": "assistant", "content": "The teacher runs once."},
    ]
    texts = [{**one, "id": f"d{i}", "label": f"label{i % 3}"} for i, one in enumerate(documents(8))]
    (folder / "ids.txt").write_text("d3\n")
    return {
        "texts": write_jsonl(folder / "texts.jsonl", texts),
        "chats": write_jsonl(folder / "chats.jsonl", [{"messages": said, "tools": []}]),
        "tagged": write_jsonl(
            folder / "tagged.jsonl", [{"tokens": ["Ada", "met", "him"], "tags": ["A", "O", "O"]}]
        ),
        "tokens": models.token_classifier(folder / "tokens", ("O", "A")),
        "asked": write_jsonl(
            folder / "asked.jsonl",
            [{"question": "Who?", "context": "Ada.", "answers": [{"text": "Ada", "answer_start": 0}]}],
        ),
        "answers": models.answerer(folder / "answers", "distilbert"),
        "halves": models.seq2seq_teacher(folder / "halves"),
        "ids": folder / "ids.txt",
        "causal": models.causal_teacher(folder / "causal"),
        "classes": models.classifier(folder / "classes"),
        "pictures": write_parquet(folder / "pictures.parquet", images(6), field="picture"),
        "images": image_teacher(folder / "images"),
        **detected(folder, 6),
        "pairs": models.classifier(folder / "pairs", num_labels=1),
        "masked": masked_teacher(folder / "masked"),
        "encoder": models.encoder(folder / "encoder"),
        "report": folder / "report.json",
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory, places):
    """A cache of two temperatures, with ids."""
    place = tmp_path_factory.mktemp("flags") / "cache"
    assert teachonce.main(words("precompute", SHARED[0], {**places, "new": place})) == 0
    return place


def words(verb, call, places):
    return [*verb.split()[:1], *(word.format(**places) for word in call.split())]


@pytest.fixture
def here(tmp_path, places, cache, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    copies = {name: shutil.copytree(cache, tmp_path / name) for name in ("cache", "other")}
    return {**places, "new": tmp_path / "new", **copies}


def flags_of(verb, capsys):
    """The flags that a verb's help names."""
    with pytest.raises(SystemExit):
        teachonce.main([*verb.split(), *(["x"] if " " in verb else []), "--help"])
    text = capsys.readouterr().out.partition("\nexamples:")[0]
    lines = re.findall(r"^  (?:-h, )?(--[\w-]+(?:, --[\w-]+)*)", text, re.MULTILINE)
    return {flag for line in lines for flag in line.split(", ")} - {"--help"}


def named(calls):
    return {flag for call in calls for flag in re.findall(r"(?<!\S)(--[\w-]+)", call)}


@pytest.mark.parametrize("verb", GOOD)
def test_every_flag_that_help_names_is_in_the_tables(capsys, verb):
    flags = flags_of(verb, capsys)
    assert named(GOOD[verb]) | (ELSEWHERE.keys() & flags) == flags
    with_value = {f for call in GOOD[verb] for f in re.findall(r"(?<!\S)(--[\w-]+)[= ](?!--)", f"{call} --")}
    assert BAD[verb].keys() == with_value
    assert set(GOOD) >= teachonce.VERBS.keys() - {"train", "evaluate", "sweep"}
    for flag, file in ELSEWHERE.items():
        assert f"{flag.removeprefix('--')}=True" in (Path(teachonce.__file__).parent / file).read_text()


@pytest.mark.parametrize(
    ("verb", "number"), [(verb, n) for verb, calls in GOOD.items() for n in range(len(calls))]
)
def test_a_good_value_is_taken(capsys, here, verb, number):
    call = GOOD[verb][number]
    assert teachonce.main(words(verb, call, here)) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out
    if "--json" in call:
        assert json.loads(out)


EVERY = [(verb, flag) for verb in GOOD for flag in sorted(named(GOOD[verb]))]


@pytest.mark.parametrize(("verb", "flag"), [*EVERY, *(("plan", flag) for flag in ELSEWHERE)])
def test_a_bad_value_is_one_line(capsys, here, verb, flag):
    value = BAD[verb].get(flag)
    added = [flag + SWITCH] if value is None else [flag, *value.format(**here).split()]
    if value and value.startswith("-"):
        added = [f"{flag}={value}"]
    call = GOOD[verb][CALLS.get(flag, 0)]
    status = teachonce.main([*words(verb, call, here), *added])
    out, err = capsys.readouterr()
    if verb == "plan" and status == 0:  # a plan tells what the run would refuse
        assert "the run would be refused" in out or json.loads(out)["refusals"]
        return
    told_as_json = out != "" and "--json" in call and json.loads(out)["status"] in ("broken", status)
    assert (status, told_as_json or out == "", err.count("\n")) == (status or 2, True, 1), (out, err)
    assert "nobody foresaw" not in err
    assert err.startswith(f"teachonce {verb.split()[0]}: ")
    assert not [*here["new"].glob("*.parquet")]
