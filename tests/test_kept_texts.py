"""Students of other tokenizers that read the kept text, of teachers whose tokens are no bytes; classifiers, embeddings;
and what the teacher wrote itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from schemas.errors import StudentError
from schemas.rows.rows import Rows
from tests.pipelines import models
from tests.test_another_tokenizer import TEXTS, bytes_of, evaluated, precompute, student_folder, train
from tests.trainer.reading.tokenizers import byte_level, sentence_piece, word_piece
from trainer.losses.objective import Objective
from trainer.students.students import open_student, open_trained


def kept(place, *more):
    """A teacher whose tokens are no bytes: its texts must be kept."""
    tokenizer = sentence_piece(420, bos=True, eos=True)
    teacher = student_folder(place / "teacher", tokenizer, initializer_range=0.4)
    return precompute(place, teacher, "--max_length", "24", "--stride", "3", *more)


def test_of_other_tokenizers_the_kept_text_is_read_and_without_it_refused(tmp_path, capsys):
    cache = kept(tmp_path / "with", "--keep_text")
    folder = student_folder(tmp_path / "student", byte_level(420, bos=True, eos=True))
    status, said = train(tmp_path / "with", folder, tmp_path / "out")
    assert status == 0, said
    found = evaluated(tmp_path / "with", tmp_path / "out", capsys)
    assert found["teacher_bits_per_byte"] > 0 < found["bits_per_byte"]
    rows = Rows.concatenate([*cache.read_all()])
    student = open_trained(str(tmp_path / "out"), cache)
    batch = student.collation().batch(rows)
    whole = [number for number in range(len(rows)) if rows.array("window_count")[number] == 1]
    assert whole
    for number in whole:
        ids = student.tokenizer(rows.array("text")[number])["input_ids"]
        assert batch.input_ids[number, : len(ids)].tolist() == ids
        assert int((batch.row == number).sum()) == len(ids) - 1  # all but the begin, the end included
    without = kept(tmp_path / "without")
    with pytest.raises(StudentError, match=r"keeps no text that it could read.*--keep_text"):
        open_student(str(folder), without, objective=Objective.parse(["alm=1"]))


def test_a_kept_text_that_is_not_what_the_teacher_read_is_refused(tmp_path):
    cache = kept(tmp_path, "--keep_text")
    rows = Rows.concatenate([*cache.read_all()])
    data = {**rows.data, "text": np.array(["another text"] * len(rows), object)}
    folder = student_folder(tmp_path / "student", byte_level(300))
    student = open_student(str(folder), cache, objective=Objective.parse(["alm=1"]))
    with pytest.raises(StudentError, match="does not give the tokens that the cache has"):
        student.collation().batch(replace(rows, data=data))


def classifier(folder, tokenizer):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label={number: f"label{number}" for number in range(3)},
        label2id={f"label{number}": number for number in range(3)},
    )
    return models.save(transformers.BertForSequenceClassification(config), tokenizer, folder)


@pytest.mark.parametrize("paired", [False, True])
def test_classifiers_and_their_pairs_are_read_by_the_students_own_tokenizer(tmp_path, capsys, paired):
    made = models.classifier(tmp_path / "teacher")
    more = [{"text_pair": "a second text"}] * len(TEXTS) if paired else [{}] * len(TEXTS)
    records = [{"text": text, **pair} for text, pair in zip(TEXTS, more, strict=True)]
    told = ("--keep_text", "--features", "mean:-1", *(("--text_pair_field", "text_pair") if paired else ()))
    cache = precompute(
        tmp_path, made, *told, "--max_length", "48", task="sequence-classification", records=records
    )
    tokenizer = word_piece()
    folder = classifier(tmp_path / "student", tokenizer)
    status, said = train(tmp_path, folder, tmp_path / "out", losses=("kl=1", "feature=0.1"), steps=20)
    assert status == 0, said
    before, after = (evaluated(tmp_path, one, capsys) for one in (folder, tmp_path / "out"))
    assert after["kl_nats"] < before["kl_nats"]
    rows = Rows.concatenate([*cache.read_all()])
    student = open_trained(str(tmp_path / "out"), cache)
    batch = student.collation().batch(rows)
    compared = 0
    for number in range(len(rows)):
        if rows.array("window_count")[number] > 1:
            continue
        pair = (rows.array("text_pair")[number],) if paired else ()
        encoded = tokenizer(rows.array("text")[number], *pair)
        length = len(encoded["input_ids"])
        if length > 48:
            continue
        assert batch.input_ids[number, :length].tolist() == encoded["input_ids"]
        assert batch.token_type_ids[number, :length].tolist() == encoded["token_type_ids"]
        compared += 1
    assert compared > 5
    assert batch.counts.tolist()[::2] == [len(rows)] * 2


def test_windows_of_a_classified_text_are_read_window_by_window(tmp_path):
    made = models.classifier(tmp_path / "teacher")
    told = ("--keep_text", "--max_length", "24", "--stride", "4")
    cache = precompute(tmp_path, made, *told, task="sequence-classification")
    student = open_student(str(classifier(tmp_path / "student", byte_level(420))), cache)
    rows = Rows.concatenate([*cache.read_all()])
    batch = student.collation().batch(rows)
    teacher = models.byte_tokenizer(bert=True)
    for number in np.flatnonzero(rows.array("window_count") > 1):
        own = student.tokenizer.decode(batch.input_ids[number][batch.attention_mask[number] == 1])
        theirs = teacher.decode(rows.input_ids.row(int(number))[1:-1])
        assert own in theirs
        assert len(own) > len(theirs) / 4


def test_embeddings_are_learned_from_texts_with_their_prompt(tmp_path):
    made = models.embedder(tmp_path / "teacher", prompt="query: ")
    cache = precompute(tmp_path, made, "--keep_text", task="feature-extraction")
    torch.manual_seed(0)
    tokenizer = word_piece()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    folder = models.save(transformers.BertModel(config), tokenizer, tmp_path / "student")
    status, said = train(tmp_path, folder, tmp_path / "out", losses=("feature=1,distance=cosine",))
    assert status == 0, said
    rows = Rows.concatenate([*cache.read_all()])
    student = open_student(str(folder), cache)
    batch = student.collation().batch(rows)
    for row in range(len(rows)):
        own = student.tokenizer("query: " + rows.array("text")[row])["input_ids"]
        assert batch.input_ids[row, 1:4].tolist() == own[1:4]


def test_answers_that_the_teacher_wrote_are_read_from_its_ids(tmp_path, capsys):
    asked = [{"ask": text[:20]} for text in TEXTS[:12]]
    flags = ("--prompt_field", "ask", "--generate", "greedy", "--max_new_tokens", "9", "--max_length", "64")
    made = models.causal_teacher(tmp_path / "teacher")
    cache = precompute(tmp_path, made, *flags, records=asked)
    folder = student_folder(tmp_path / "student", byte_level(400, bos=True))
    status, said = train(tmp_path, folder, tmp_path / "out", losses=("ce=1", "alm=1"), steps=5)
    assert status == 0, said
    rows = Rows.concatenate([*cache.read_all()])
    student = open_trained(str(tmp_path / "out"), cache)
    batch = student.collation().batch(rows)
    teacher = models.byte_tokenizer()
    for row in range(len(rows)):
        ids = rows.input_ids.row(row).tolist()
        said = b"".join(bytes_of(teacher, one) for one in ids if one != 1).decode(errors="replace")
        own = student.tokenizer.decode(batch.input_ids[row], skip_special_tokens=True)
        assert said.split("\ufffd")[0].startswith(own.split("\ufffd")[0][:-1])
        first = int(rows.position_index()[rows.position_offsets[row]])
        prompt = teacher.decode(ids[: first + 1])
        predicted = batch.token[batch.row == row]
        if len(predicted):
            assert len(student.tokenizer(prompt)["input_ids"]) - 2 <= int(predicted.min())
    # the same example of another teacher, who wrote on otherwise, under the same id
    values = rows.input_ids.values.copy()
    begins = rows.input_ids.offsets[:-1] + rows.position_index()[rows.position_offsets[:-1]] + 1
    values[begins] = values[begins + 1] = teacher.encode("s")[-1]
    other = Rows(spec=rows.spec, data={**rows.data, "input_ids": replace(rows.input_ids, values=values)})
    for row, ids in enumerate(student.collation().batch(other).input_ids):
        prompt = teacher.decode(values[rows.input_ids.offsets[row] : begins[row]].tolist())
        assert student.tokenizer.decode(ids, skip_special_tokens=True).startswith(prompt + "ss"), row
