"""How likely a word begins next: what the teacher stores, and a student of another tokenizer uses, by plain models."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.keep.merging import Merging, merge_rows
from schemas import Cache
from schemas.errors import StudentError
from schemas.rows.rows import Rows
from schemas.token_bytes import word_starts
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import write_jsonl
from tests.test_another_tokenizer import TEXTS, precompute, student_folder, train
from tests.trainer.reading.tokenizers import byte_level, sentence_piece, word_piece
from trainer.losses.cross_tokenizer import chunk_likelihoods
from trainer.losses.objective import Objective
from trainer.students.students import open_student
from trainer.training.training import make_distiller

TOLD = ("--scalars", "gold", "word_start", "--max_length", "24", "--stride", "5")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("words")
    precompute(place, models.causal_teacher(place / "teacher"), "--keep", "threshold:1/8", *TOLD)
    student_folder(place / "fine", byte_level(258))
    student_folder(place / "coarse", byte_level(420, bos=True, eos=True))
    return place


@pytest.fixture
def rows(place):
    return Rows.concatenate([*Cache.open(place / "cache").read_all()])


def begins(tokenizer) -> np.ndarray:
    """By decoding each token behind a letter, and by the list of special ones."""
    special = set(tokenizer.all_special_ids)
    text = {index: tokenizer.convert_ids_to_tokens(index) for index in range(len(tokenizer))}
    return np.array([i in special or text[i][:1] in ("\u0120", "\u010a", "\u0109", "\u010d") for i in text])


def test_the_cache_has_the_teachers_mass_on_words_begins(place, rows):
    model = AutoModelForCausalLM.from_pretrained(place / "teacher", dtype=torch.float64).eval()
    mask = torch.from_numpy(begins(AutoTokenizer.from_pretrained(place / "teacher")))
    assert 0 < int(mask.sum()) < len(mask)
    told, offsets = rows.word_start_logprob(), rows.position_offsets
    worst = 0.0
    for row in range(len(rows)):
        ids = torch.from_numpy(rows.input_ids.row(row).astype(np.int64))
        with torch.no_grad():
            log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        place_of = rows.position_index()[offsets[row] : offsets[row + 1]]
        expected = log_p[:, : len(mask)][:, mask].logsumexp(-1)[place_of].numpy()
        worst = max(worst, np.abs(told[offsets[row] : offsets[row + 1]] - expected).max())
    assert worst <= rows.spec.scalar_step_nats / 2 + 1e-4
    assert "scalar:word_start" in rows.spec.required_features


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_a_word_begins_with_a_space_a_line_or_what_is_no_text(make):
    tokenizer = make(420, bos=True, eos=True)
    found = word_starts(tokenizer)
    bar = "\u0120" if make is byte_level else "\u2581"
    by_text = {token: found[index] for token, index in tokenizer.get_vocab().items()}
    assert by_text["<s>"]
    assert by_text["</s>"]
    assert {flag for token, flag in by_text.items() if token.startswith(bar)} == {np.True_}
    assert not any(by_text[letter] for letter in "catshemno")
    assert word_starts(word_piece()) is None


@pytest.mark.parametrize("name", ["fine", "coarse"])
def test_alm_takes_both_likelihoods_to_where_a_word_begins(place, rows, name):
    """The loss of each row alone, from plain log-probabilities of the student's text."""
    objective = Objective.parse(["alm=1,tau=20"])
    cache = Cache.open(place / "cache")
    student = open_student(str(place / name), cache, objective=objective)
    assert "word_start" in objective.stored(cache.spec)
    collation = student.collation(stored=objective.stored(cache.spec))
    distiller = make_distiller(student, cache, objective).eval()
    model = AutoModelForCausalLM.from_pretrained(place / name).double().eval()
    words = torch.from_numpy(np.flatnonzero(begins(AutoTokenizer.from_pretrained(place / name))))
    used = 0
    for row in range(12):
        batch = collation.batch(rows.take(np.array([row])))
        targets = batch.targets
        with torch.no_grad():
            log_q = model(input_ids=batch.input_ids).logits[0].log_softmax(-1)[batch.token]
        ours, theirs = [], []
        for number, (first, last) in enumerate(zip(targets.host.begins, targets.host.ends, strict=True)):
            span = range(first, last)
            ours.append(sum(log_q[at, targets.gold[at]] for at in span))
            theirs.append(targets.teacher[number].double())
            mass = targets.word_start[number].double()
            if mass.exp() > 0.1:
                used += 1
                ours[-1] = ours[-1] + log_q[last, words].logsumexp(-1)
                theirs[-1] = theirs[-1] + mass
        if not ours:
            continue
        expected = chunk_likelihoods(torch.stack(ours), torch.stack(theirs), 20.0).mean()
        with torch.no_grad():
            torch.testing.assert_close(distiller(batch)["alm"].double(), expected, rtol=1e-4, atol=1e-5)
    assert used > 10


def test_a_chunk_has_the_mass_that_the_teacher_gives_behind_it(place, rows):
    """Its own next position's, of the same row; none behind a row's last."""
    cache = Cache.open(place / "cache")
    student = open_student(str(place / "fine"), cache, objective=Objective.parse(["alm=1"]))
    alignment = student.reader.read(rows).alignment
    batch = student.collation(stored=frozenset({"likelihood", "word_start"})).batch(rows)
    told, known = rows.word_start_logprob(), batch.targets.word_start.isfinite().numpy()
    np.testing.assert_array_equal(known, alignment.goes_on)
    np.testing.assert_array_equal(
        batch.targets.word_start.numpy()[known], told[alignment.teacher_ends[alignment.goes_on]]
    )
    row_of = np.repeat(np.arange(len(rows)), np.diff(rows.position_offsets))
    ends, last = alignment.teacher_ends, rows.position_offsets[1:] - 1
    own = row_of[alignment.teacher_begins]
    assert (row_of[ends[known]] == own[known]).all()
    behind = alignment.teacher_ends - 1 == last[own]
    assert not known[behind].any()
    assert behind.sum() > 5 < known.sum()


def test_word_1_and_a_cache_without_leave_it_out(place, rows, tmp_path):
    cache = Cache.open(place / "cache")
    assert "word_start" not in Objective.parse(["alm=1,word=1"]).stored(cache.spec)
    plain = replace(cache.spec, scalars=("gold",))
    assert "word_start" not in Objective.parse(["alm=1"]).stored(plain)
    status, said = train(place, place / "fine", tmp_path / "out", losses=("alm=1",), steps=3)
    assert status == 0, said
    assert "the teacher's likelihood of the text and of a word's begin behind them" in said
    status, said = train(place, place / "fine", tmp_path / "other", losses=("alm=1,word=1",), steps=3)
    assert status == 0, said
    assert "a word's begin" not in said
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("out", "other"))
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_merge_has_the_mean_of_the_masses(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        (tmp_path / name).mkdir()
        made = models.causal_teacher(tmp_path / name / "teacher", seed=seed)
        precompute(tmp_path / name, made, "--keep", "all", *TOLD)
    parts = [Rows.concatenate([*Cache.open(tmp_path / n / "cache").read_all()]) for n in ("one", "two")]
    parts = [part.take(np.argsort([bytes(i) for i in part.example_ids])) for part in parts]
    merged = merge_rows(parts, parts[0].spec, Merging(weights=(0.3, 0.7), pick=None))
    masses = [np.exp(part.word_start_logprob().astype(np.float64)) for part in parts]
    expected = np.log(0.3 * masses[0] + 0.7 * masses[1])
    assert merged.word_start_logprob() == pytest.approx(expected, abs=1 / 60)
    assert not np.allclose(*masses)


REFUSED = [
    (("--task", "sequence-classification", "--label_field", "label"), "classifier", "has no meaning for"),
    (("--task", "causal-lm"), "bert", "needs a tokenizer whose vocabulary says"),
]


@pytest.mark.parametrize(("told", "kind", "message"), REFUSED, ids=[kind for _, kind, _ in REFUSED])
def test_what_cannot_say_it_is_refused_before_anything_runs(tmp_path, told, kind, message):
    if kind == "classifier":
        teacher = models.classifier(tmp_path / "teacher")
    else:
        teacher = models.causal_teacher(tmp_path / "teacher")
        word_piece().save_pretrained(teacher)
    path = write_jsonl(tmp_path / "c.jsonl", [{"text": text, "label": 0} for text in TEXTS[:4]])
    common = ("--corpus", path, "--teacher", teacher, "--cache", tmp_path / "cache", "--no_progress")
    status, said = teachonce_main("precompute", *common, *told, "--scalars", "gold", "word_start")
    assert (status, message in said) == (2, True), said
    assert not (tmp_path / "cache").exists()


def test_a_student_whose_vocabulary_is_silent_is_told_what_to_leave_out(place, rows):
    cache = Cache.open(place / "cache")
    student = open_student(str(place / "fine"), cache, objective=Objective.parse(["alm=1"]))
    student.reader._student.tokenizer = word_piece()
    with pytest.raises(StudentError, match=r"alm=1.0,word=1"):
        student.collation(stored=frozenset({"likelihood", "word_start"})).batch(rows)


def test_it_is_exported_and_thinned_away(place, tmp_path, rows):
    import pyarrow.parquet as pq

    status, said = teachonce_main("export", place / "cache", "--out", tmp_path / "plain")
    assert status == 0, said
    tables = [pq.read_table(file) for file in sorted((tmp_path / "plain").rglob("*.parquet"))]
    found = [value for table in tables for row in table["word_start_logprob"].to_pylist() for value in row]
    assert sorted(found) == pytest.approx(sorted(rows.word_start_logprob().tolist()))
    thin = ("--keep", "threshold:1/4", "--scalars", "gold", "--out", tmp_path / "thin", "--no_progress")
    status, said = teachonce_main("thin", place / "cache", *thin)
    assert status == 0, said
    assert Cache.open(tmp_path / "thin").spec.scalars == ("gold",)
    assert list(itertools.islice(Cache.open(tmp_path / "thin").read_all(), 1))
