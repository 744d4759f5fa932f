"""Question answering: a cache says what a plain forward says of each window that transformers' own tokenizer makes."""

import inspect
import itertools
import json

import numpy as np
import pytest
import torch
import transformers

from schemas import Cache
from schemas.errors import TooManyRejectsError, UsageError
from schemas.policies import KeepAll, Sampled, Threshold, TopK, TopP
from schemas.rows.entries import entries_of
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import read, rejects, run, write_jsonl
from tests.pipelines.oracle import HALF_SCALAR_STEP, HALF_STEP, ROUNDING, logsumexp

AUTO = transformers.AutoModelForQuestionAnswering
FIELDS = {"text_field": "question", "text_pair_field": "context", "label_field": "answers"}
TASK = {"task": "question-answering", "max_length": 40, "stride": 8, **FIELDS}
KINDS = ("bert", "roberta", "distilbert", "electra")
LONG = (
    "A cache holds what the teacher said, in a dozen bytes a token. Ada Lovelace met Babbage in London. "
    "Rows stand in id order, and nothing that Ada said is lost."
)
CHINESE = "\u5317\u4eac\u662f\u4e2d\u56fd\u7684\u9996\u90fd\uff0c\u4eba\u53e3\u4e8c\u5343\u4e07\u3002"


def record(question, context, *answers, **more):
    starts = [context.index(answer) for answer in answers]
    return {
        "question": question,
        "context": context,
        "answers": {"text": [*answers], "answer_start": starts},
        **more,
    }


RECORDS = [
    record("Who met Babbage?", LONG, "Ada Lovelace", "Lovelace"),
    record("What holds it?", LONG, "A cache"),
    record("Who?", "Nobody did."),
    record("Where?", "In  London , it is said.", "London "),
    record("\u9996\u90fd\uff1f", CHINESE, "\u5317\u4eac"),
    record("\u591a\u5c11\u4eba\uff1f", CHINESE + CHINESE[::-1], "\u4e8c\u5343\u4e07"),
    record("\u8c01\uff1f", CHINESE),
    {"question": "List?", "context": "One of them.", "answers": [{"text": "One", "answer_start": 0}]},
    {"question": "Empty?", "context": "None of them.", "answers": []},
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return models.answerer(tmp_path_factory.mktemp("teacher") / "t", "distilbert")


@pytest.fixture(scope="module")
def lines():
    """Also contexts of few tokens, fewer than a policy keeps."""
    return [record("Who?", "Ada.", "Ada"), record("Who was it?", "a b"), *RECORDS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher, lines):
    """Every score of them."""
    folder = tmp_path_factory.mktemp("whole")
    run(write_jsonl(folder / "c.jsonl", lines), teacher, folder / "c", **TASK)
    return folder / "c"


def windows(tokenizer, one, max_length, stride):
    """Transformers' own windows: ids, which tokens are of the context, and token types."""
    encoded = tokenizer(
        one["question"],
        one["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
    )
    found = []
    for at, ids in enumerate(encoded["input_ids"]):
        inside = np.array([text == 1 for text in encoded.sequence_ids(at)])
        types = encoded["token_type_ids"][at] if "token_type_ids" in encoded else None
        found.append((ids, inside, types))
    return found


def first_answer(one):
    answers = one["answers"]
    if isinstance(answers, list):
        return (answers[0]["answer_start"], answers[0]["text"]) if answers else None
    return (answers["answer_start"][0], answers["text"][0]) if answers["text"] else None


def gold(tokenizer, one, at, inside):
    """The tokens that transformers finds at the answer's first and last letter, where the window at `at` has them."""
    found = first_answer(one)
    if found is None:
        return [0, 0]
    start, text = found
    whole = tokenizer(one["question"], one["context"])
    last = start + len(text.rstrip()) - 1
    places = np.array([whole.char_to_token(0, start, 1), whole.char_to_token(0, last, 1)])
    while whole.token_to_chars(0, places[1] + 1) == whole.token_to_chars(0, places[1]):
        places[1] += 1  # a letter of several bytes
    places -= at * (40 - (len(inside) - inside.sum()) - 8)
    held = inside.argmax() <= places[0] and places[1] < inside.argmax() + inside.sum()
    return places.tolist() if held else [0, 0]


def truth(model, ids, types):
    inputs = {"input_ids": torch.tensor([ids])}
    if types is not None and "token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["token_type_ids"] = torch.tensor([types])
    with torch.inference_mode():
        output = model(**inputs)
    return torch.stack([output.start_logits[0], output.end_logits[0]]).double().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_says_what_a_plain_forward_says_of_each_window(tmp_path, kind):
    made = models.answerer(tmp_path / "t", kind)
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(made), AUTO.from_pretrained(made).eval()
    run(write_jsonl(tmp_path / "c.jsonl", RECORDS), made, tmp_path / "c", features=("mean:-1",), **TASK)
    opened = Cache.open(tmp_path / "c")
    assert (opened.spec.keep, opened.spec.vocab_size, opened.spec.label_names) == (KeepAll(), 40, ())
    assert opened.spec.scalars == ("entropy", "gold", "logsumexp")
    rows = {tuple(row["input_ids"].tolist()): row for row in read(opened).values()}
    seen = 0
    for one in RECORDS:
        for at, (ids, inside, types) in enumerate(windows(tokenizer, one, 40, 8)):
            row, seen = rows[tuple(ids)], seen + 1
            scores = truth(model, ids, types)
            allowed = inside.copy()
            allowed[0] = True
            assert row["positions"].tolist() == [0, 1]
            assert [row["context_start"], row["context_end"]] == [
                inside.argmax(),
                inside.argmax() + inside.sum(),
            ]
            assert row["has_answer"] == (first_answer(one) is not None)
            assert row["labels"].tolist() == gold(tokenizer, one, at, inside)
            lse = logsumexp(scores[:, allowed])
            for end in (0, 1):
                kept = slice(*row["kept_offsets"][end : end + 2])
                own = row["kept_ids"][kept]
                assert sorted(own.tolist()) == np.flatnonzero(allowed).tolist()
                exact = scores[end] - lse[end]
                assert np.abs(row["logprobs"][kept] - exact[own]).max() <= HALF_STEP + ROUNDING
                assert (
                    abs(row["label_logprob"][end] - exact[row["labels"][end]]) <= HALF_SCALAR_STEP + ROUNDING
                )
                p = np.exp(exact[allowed])
                assert abs(row["entropy"][end] + (p * np.log(p)).sum()) <= HALF_SCALAR_STEP + ROUNDING
            np.testing.assert_allclose(row["logsumexp"], lse, rtol=1e-5, atol=ROUNDING)
    assert seen == len(rows) > len(RECORDS)


KEEPS = (TopK(k=9), TopP(p=0.9, k=30), Threshold(tau=1 / 4, k=12), Sampled(n=7))


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_no_policy_keeps_or_draws_what_is_no_class(tmp_path, teacher, lines, whole, keep):
    """By the teacher, and thinned from every score; what is kept weighs what the whole softmax says."""
    run(write_jsonl(tmp_path / "c.jsonl", lines), teacher, tmp_path / "c", **(TASK | {"keep": keep}))
    status, said = teachonce_main("thin", whole, "--keep", keep, "--out", tmp_path / "thin", "--no_progress")
    assert status == 0, said
    every = read(Cache.open(whole))
    check_entries(Cache.open(tmp_path / "c"), every, keep)
    check_entries(Cache.open(tmp_path / "thin"), every, keep)


def check_entries(cache, whole, keep):
    for rows in cache.read_all():
        entries, owner = entries_of(rows), np.repeat(np.arange(len(rows)), 2)
        ends = np.cumsum(entries.counts)
        for n, (start, end) in enumerate(itertools.pairwise([0, *ends])):
            other = whole[rows.example_ids[owner[n]]]
            kept = slice(*other["kept_offsets"][n % 2 : n % 2 + 2])
            exact = dict(zip(other["kept_ids"][kept].tolist(), other["logprobs"][kept].tolist(), strict=True))
            ids = entries.ids[start:end].tolist()
            assert set(ids) <= set(exact)
            if isinstance(keep, TopK):
                assert len(ids) == min(keep.k, len(exact))
            for place, token in enumerate(ids, start):
                if entries.is_exact[place]:
                    assert abs(entries.logprobs[place] - exact[token]) <= 2 * HALF_STEP + ROUNDING


def test_where_every_question_has_an_answer_the_first_token_is_no_choice(tmp_path, teacher):
    made = teacher
    lines = [one for one in RECORDS if first_answer(one) is not None]
    settings = {"task_settings": {"always_answerable": True}}
    run(write_jsonl(tmp_path / "c.jsonl", lines), made, tmp_path / "c", **TASK, **settings)
    rows = read(Cache.open(tmp_path / "c")).values()
    assert all(row["kept_ids"].min() >= row["context_start"] for row in rows)
    assert all((row["labels"] > 0).all() for row in rows)
    assert {len(row["labels"]) for row in rows} == {0, 2}
    bad = write_jsonl(tmp_path / "b.jsonl", [*lines, RECORDS[2]])
    summary = run(bad, made, tmp_path / "d", max_reject_fraction=0.5, **TASK, **settings)
    assert dict(summary.rejects) == {"bad_answers": 1}


def test_without_answers_nothing_is_gold(tmp_path, teacher):
    made = teacher
    run(write_jsonl(tmp_path / "c.jsonl", RECORDS), made, tmp_path / "c", **(TASK | {"label_field": None}))
    rows = read(Cache.open(tmp_path / "c")).values()
    assert not any(row["labels"].size or row["label_logprob"].size or row["has_answer"] for row in rows)


def changed(**more):
    return record("Who met Babbage?", "Ada met him.", "Ada") | more


BAD = [
    ("bad_answers", changed(answers={"text": ["Ada"], "answer_start": [1]})),
    ("bad_answers", changed(answers={"text": ["Ada", "met"], "answer_start": [0]})),
    ("bad_answers", changed(answers={"text": ["him."], "answer_start": [99]})),
    ("bad_answers", changed(answers={"text": ["."], "answer_start": [-1]})),
    ("bad_answers", changed(answers={"text": [" "], "answer_start": [3]})),
    ("bad_answers", changed(answers={"text": [""], "answer_start": [3]})),
    ("bad_answers", changed(answers={"text": ["Ada"], "answer_start": [0.0]})),
    ("bad_answers", changed(answers={"text": ["Ada", "Ada"], "answer_start": [0, 4]})),
    ("bad_answers", changed(answers={"text": "Ada", "answer_start": 0})),
    ("bad_answers", changed(answers="Ada")),
    ("bad_answers", changed(answers=[{"text": "Ada"}])),
    ("bad_answers", changed(answers=["Ada"])),
    ("empty", changed(question=" ")),
    ("empty", changed(context="\n", answers=[])),
    ("not_a_string", changed(context=["Ada"], answers=[])),
    ("field_missing", {"question": "Who?", "answers": []}),
    ("field_missing", {"question": "Who?", "context": "Ada."}),
    ("question_too_long", changed(question="Who was it that met him, and where and when? " * 4)),
]


def test_what_is_wrong_is_rejected_with_its_reason(tmp_path, teacher):
    path = write_jsonl(tmp_path / "c.jsonl", [RECORDS[0], *(bad for _, bad in BAD)])
    summary = run(path, teacher, tmp_path / "c", max_reject_fraction=1.0, **TASK)
    found = rejects(tmp_path / "c", summary)
    assert [one["reason"] for one in sorted(found, key=lambda one: one["offset"])] == [why for why, _ in BAD]
    assert "Lovelace" not in str(found)
    with pytest.raises(TooManyRejectsError):
        run(path, teacher, tmp_path / "d", **TASK)


def test_flags_that_make_no_sense_are_refused(tmp_path, teacher):
    made = teacher
    path = write_jsonl(tmp_path / "c.jsonl", RECORDS)
    with pytest.raises(
        UsageError, match=r"needs a question and its context.*--text_pair_field with the context"
    ):
        run(path, made, tmp_path / "c", **(TASK | {"text_pair_field": None}))
    with pytest.raises(UsageError, match="--messages_field has no meaning for question-answering"):
        run(path, made, tmp_path / "c", **(TASK | {"text_pair_field": None, "messages_field": "context"}))
    with pytest.raises(UsageError, match=r"--text_pair_field contxt: none of the first.*context"):
        run(path, made, tmp_path / "c", **(TASK | {"text_pair_field": "contxt"}))
    with pytest.raises(UsageError, match="leaves no room for text"):
        run(path, made, tmp_path / "c", **(TASK | {"max_length": 12}))


def test_heads_that_search_by_themselves_are_refused_before_the_run(tmp_path):
    words = models.byte_tokenizer(bert=True)
    shape = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    config = transformers.XLNetConfig(vocab_size=len(words), **shape)
    made = models.save(transformers.XLNetForQuestionAnswering(config), words, tmp_path / "xlnet")
    path = write_jsonl(tmp_path / "c.jsonl", RECORDS)
    with pytest.raises(UsageError, match=r"XLNetForQuestionAnswering does not give each token a plain score"):
        run(path, made, tmp_path / "c", **TASK)
    (made / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(UsageError, match=r"ViTModel does not give each token a plain score.*no such class"):
        run(path, made, tmp_path / "c", **TASK)


def test_inspect_shows_the_context_and_the_answer(tmp_path, teacher):
    made = teacher
    fields = ("--text_field", "question", "--text_pair_field", "context", "--label_field", "answers")
    told = ("--teacher", made, "--task", "question-answering", *fields, "--rows", "9")
    path = write_jsonl(tmp_path / "c.jsonl", [*RECORDS[:3], BAD[0][1]])
    status, said = teachonce_main("inspect", "--corpus", path, *told)
    assert status == 0
    assert "[[Ada Lovelace]]/answer[[ met Babbage" in said
    assert "[[[CLS]]]/no answer" in said
    assert "rejected: bad_answers: field answers, expected the answer's text at its place" in said
    status, said = teachonce_main("inspect", "--corpus", path, *told, "--json")
    shown = json.loads(said)
    parts = shown[0]["examples"][0]["text"]
    assert [part["text"] for part in parts if part["label"]] == ["Ada Lovelace"]
    assert "".join(part["text"] for part in parts if part["supervised"]) == LONG
    assert (shown[0]["label_read_as"], shown[2]["label_read_as"]) == ("answered", "unanswerable")
