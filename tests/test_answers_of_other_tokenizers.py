"""Questions of several answers, kept by their characters, and students of other tokenizers that learn from them, by the
real commands, against plain forwards and transformers' own offsets."""

import itertools
import json

import numpy as np
import pytest
import torch
import transformers

from schemas import Cache
from schemas.errors import StudentError, UsageError
from schemas.rows.rows import Rows
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import rejects, run, write_jsonl
from tests.pipelines.job.test_question_answering import AUTO, RECORDS, TASK, record, truth, windows
from tests.trainer.reading.tokenizers import byte_level, word_piece
from trainer.batches.collate import Collation
from trainer.losses.objective import Objective
from trainer.metrics.answer_texts import exact_match_and_f1
from trainer.metrics.answers import answer_metrics
from trainer.students.students import open_student
from trainer.tasks.tasks import STUDENT_TASKS

MANY = [
    *RECORDS,
    record(
        "Who sat?",
        "The cat sat on the mat, and the other cat sat on it.",
        "the mat",
        "The cat",
        "the other cat",
    ),
    record("Who sat on what?", "the cat sat on the mat", "mat", "the mat"),
    *(
        record(f"Who was number {n}?", text, text.split()[0], text)
        for n, text in enumerate(["Ada met him there.", "Nobody said so at all.", "In London it rains."])
    ),
]
KEPT = {**TASK, "keep_text": True}
THREE = {"task_settings": {"keep_answers": 3}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher of bytes, its cache of texts with their answers, and students of other tokenizers."""
    place = tmp_path_factory.mktemp("answers")
    made = models.answerer(place / "teacher", "electra")
    run(write_jsonl(place / "c.jsonl", MANY), made, place / "cache", **KEPT, **THREE)
    for name, tokenizer in (("pieces", word_piece()), ("bytes", byte_level(420))):
        torch.manual_seed(1)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.BertConfig(vocab_size=len(tokenizer), **shape)
        models.save(transformers.BertForQuestionAnswering(config), tokenizer, place / name)
    return place


def answers_of(one):
    given = one["answers"]
    return [each["text"] for each in given] if isinstance(given, list) else given["text"]


def told(tokenizer, model, one):
    """The best span of any window by its two logits, as characters of the context; tried one by one."""
    best, none = (-np.inf, None), np.inf
    encoded = tokenizer(
        *(one["question"], one["context"]),
        truncation="only_second",
        max_length=40,
        stride=8,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    for at, (ids, inside, types) in enumerate(windows(tokenizer, one, 40, 8)):
        starts, ends = truth(model, ids, types)
        none = min(none, starts[0] + ends[0])
        for first, last in itertools.product(np.flatnonzero(inside), repeat=2):
            if first <= last < first + 30 and starts[first] + ends[last] > best[0]:
                places = encoded["offset_mapping"][at]
                best = starts[first] + ends[last], one["context"][places[first][0] : places[last][1]]
    return "" if none > best[0] else best[1]


def evaluated(place, student):
    flags = ("--cache", place / "cache", "--student", student, "--speed_seconds", "0", "--json")
    status, said = teachonce_main("evaluate", *flags, "--eval_fraction", "0.9")
    assert status == 0, said
    return json.loads(said)["metrics"]


def test_the_best_of_all_answers_counts_and_each_is_its_characters(place):
    rows = Rows.concatenate([*Cache.open(place / "cache").read_all()])
    for row in range(len(rows)):
        context = rows.array("text_pair")[row]
        (one,) = [
            one for one in MANY if (one["question"], one["context"]) == (rows.array("text")[row], context)
        ]
        spans = [[int(rows.array(f"answer_{end}_{n}")[row]) for end in ("start", "end")] for n in (1, 2, 3)]
        found = [context[start:end] for start, end in spans if start >= 0]
        assert found == [text.strip() for text in answers_of(one)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "teacher")
    model = AUTO.from_pretrained(place / "teacher").eval()
    held = {document.tobytes() for document in rows.array("document_hash")}
    found = evaluated(place, place / "teacher")
    assert 0 < found["questions"] < len(held)
    judged, of_first = [], []
    for one in MANY:
        chinese = "\uff1f" in one["question"]
        each = [
            exact_match_and_f1(told(tokenizer, model, one), answer, chinese=chinese)
            for answer in answers_of(one) or [""]
        ]
        judged.append(max(f1 for _, f1 in each))
        of_first.append(each[0][1])
    every = evaluated_on_all(place, tokenizer, model)
    assert every["questions"] == len(MANY)
    assert every["f1"] == every["teacher_f1"] == pytest.approx(np.mean(judged))
    assert np.mean(judged) > np.mean(of_first)


def evaluated_on_all(place, tokenizer, model):
    parts = list(Cache.open(place / "cache").read_all())
    collation = Collation(student_vocab=40, pad_id=0)
    return answer_metrics(
        model,
        STUDENT_TASKS["question-answering"].run,
        [collation.batch(part) for part in parts],
        rows=parts,
        tokenizer=tokenizer,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("name", ["pieces", "bytes"])
def test_each_place_is_the_students_token_that_holds_it(place, name):
    """By loops over characters, from plain forwards of the teacher."""
    cache = Cache.open(place / "cache")
    student = open_student(str(place / name), cache, objective=Objective.parse(["kl=1", "ce=1"]))
    rows = Rows.concatenate([*cache.read_all()])
    batch = student.collation().batch(rows)
    targets = batch.targets
    teacher = transformers.AutoTokenizer.from_pretrained(place / "teacher")
    model = AUTO.from_pretrained(place / "teacher").eval()
    own = student.tokenizer
    for row in range(len(rows)):
        question, context = rows.array("text")[row], rows.array("text_pair")[row]
        (one,) = [one for one in MANY if (one["question"], one["context"]) == (question, context)]
        ids, inside, types = windows(teacher, one, 40, 8)[rows.array("window_index")[row]]
        step = 40 - (len(inside) - inside.sum()) - 8
        whole = teacher(question, context)
        places = [
            whole.token_to_chars(0, int(at) + int(rows.array("window_index")[row]) * step)
            for at in np.flatnonzero(inside)
        ]
        letters = [at for chars in places for at in range(*chars) if not context[at].isspace()]
        begin, end = min(letters), max(letters) + 1
        read = own(question, context[begin:end])
        assert batch.input_ids[row, : len(read["input_ids"])].tolist() == read["input_ids"]
        logits = truth(model, ids, types)
        for side in (0, 1):
            allowed = [0, *np.flatnonzero(inside)]
            p = np.exp(logits[side][allowed] - np.logaddexp.reduce(logits[side][allowed]))
            expected = np.zeros(batch.targets.classes.shape[1])
            expected[0] = p[0]
            for mass, chars in zip(p[1:], places, strict=True):
                letter = chars.start if side == 0 else chars.end - 1
                while 0 <= letter < len(context) and context[letter].isspace():  # no answer begins or ends so
                    letter += 1 - 2 * side
                if not begin <= letter < end:
                    continue
                token = read.char_to_token(0, letter - begin, 1)
                while side == 1 and read.token_to_chars(0, token + 1) == read.token_to_chars(0, token):
                    token += 1
                expected[token] += mass
            entries = targets.position == 2 * row + side
            found = np.zeros_like(expected)
            found[targets.ids[entries].numpy()] = targets.weights[entries].numpy()
            assert np.abs(found - expected).max() <= 0.05 * expected.max(), (row, side)
            assert found.sum() + float(targets.tail[2 * row + side]) == pytest.approx(1, abs=1e-5)
            classes = np.flatnonzero(targets.classes[2 * row + side])
            texts = [read.sequence_ids()[at] for at in classes]
            assert (classes[0], set(texts[1:])) == (0, {1})


@pytest.mark.parametrize("name", ["pieces", "bytes"])
def test_a_student_of_another_tokenizer_learns_and_is_judged_by_characters(place, tmp_path, name):
    flags = ("train", "--cache", place / "cache", "--student", place / name, "--losses", "kl=1", "ce=0.1")
    flags += (
        "--use_cpu",
        "--eval_fraction",
        "0.3",
        "--per_device_train_batch_size",
        "8",
        "--max_steps",
        "60",
    )
    status, said = teachonce_main(*flags, "--learning_rate", "0.002", "--output_dir", tmp_path / "out")
    assert status == 0, said
    before, after = (evaluated(place, one) for one in (place / name, tmp_path / "out"))
    assert after["kl_nats"] < before["kl_nats"]
    assert after["teacher_f1"] == before["teacher_f1"]
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.get_vocab() == transformers.AutoTokenizer.from_pretrained(place / name).get_vocab()


def test_what_cannot_be_moved_or_kept_is_refused(place, tmp_path):
    cache = Cache.open(place / "cache")
    with pytest.raises(StudentError, match=r"mse_logits asks more of the teacher.*kl=1.0, or ce=1.0"):
        open_student(str(place / "pieces"), cache, objective=Objective.parse(["mse_logits=1"]))
    path = write_jsonl(tmp_path / "c.jsonl", MANY)
    run(path, place / "teacher", tmp_path / "bare", **TASK)
    with pytest.raises(StudentError, match=r"keeps no text that it could read.*--keep_text"):
        open_student(str(place / "pieces"), Cache.open(tmp_path / "bare"))
    with pytest.raises(UsageError, match=r"--keep_answers keeps where answers stand.*no --keep_text"):
        run(path, place / "teacher", tmp_path / "c", **TASK, **THREE)
    two = {"task_settings": {"keep_answers": 2}}
    summary = run(path, place / "teacher", tmp_path / "two", max_reject_fraction=1.0, **KEPT, **two)
    (found,) = rejects(tmp_path / "two", summary)
    assert (found["reason"], "at most 2 different answers (--keep_answers)" in str(found)) == (
        "bad_answers",
        True,
    )
