"""Students of other tokenizers from one cache, by the real commands: what they read, what they learn from, and what is
measured, against plain transformers."""

import functools
import itertools
import json
import math

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from schemas import Cache
from schemas.errors import StudentError
from schemas.rows.rows import Rows
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import write_jsonl
from tests.trainer.reading.test_alignment import by_loop, side
from tests.trainer.reading.tokenizers import byte_level
from trainer.evaluation.evaluation import HeldOut
from trainer.losses.objective import Objective
from trainer.reading.reader import Reader
from trainer.students.student import Student
from trainer.students.students import open_student
from trainer.training.training import make_distiller

WORDS = ["the", "cat", "sat", "on", "mat", "naïve", "café", "🤗", "漢字", "12345", "tokenizer", "other", "\n"]
TEXTS = [
    " ".join(np.random.default_rng(number).choice(WORDS, 6 + number % 30).tolist()) + f" {number}"
    for number in range(60)
]
STEPS = (
    "--use_cpu",
    "--eval_fraction",
    "0.3",
    "--per_device_train_batch_size",
    "8",
    "--learning_rate",
    "1e-2",
)
LOSSES = ("alm=1", "projected_kl=1", "ce=0.5")


def student_folder(folder, tokenizer, **changes):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), **{**shape, **ids, "max_position_embeddings": 256, **changes}
    )
    return models.save(transformers.LlamaForCausalLM(config), tokenizer, folder)


def precompute(place, teacher, *more, task="causal-lm", records=None):
    path = write_jsonl(place / "corpus.jsonl", records or [{"text": text} for text in TEXTS])
    told = ("--corpus", path, "--teacher", teacher, "--task", task, "--cache", place / "cache")
    status, said = teachonce_main("precompute", *told, "--no_progress", *more)
    assert status == 0, said
    return Cache.open(place / "cache")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A byte-level teacher without a begin token, in windows that overlap; students, of which one has a begin."""
    place = tmp_path_factory.mktemp("causal")
    made = models.causal_teacher(place / "teacher")
    precompute(place, made, "--keep", "all", "--features", "mean:-1", "--max_length", "24", "--stride", "5")
    for name, tokenizer in (("fine", byte_level(258)), ("coarse", byte_level(420, bos=True, eos=True))):
        student_folder(place / name, tokenizer)
    return place


@pytest.fixture
def cache(place):
    return Cache.open(place / "cache")


def train(place, student, out, *more, losses=LOSSES, steps=30):
    named = ("--student", student, "--output_dir", out, "--losses", *losses, "--max_steps", str(steps))
    return teachonce_main("train", "--cache", place / "cache", *named, *STEPS, *more)


def evaluated(place, student, capsys):
    capsys.readouterr()
    told = ("--cache", place / "cache", "--student", student, "--speed_seconds", "0", "--json")
    status, said = teachonce_main("evaluate", *told, "--eval_fraction", "0.3")
    assert status == 0, said
    return json.loads(said)["metrics"]


@functools.cache
def log_probabilities(folder, ids):
    """Of each next token, in float64, by the plain model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return found[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()


@pytest.mark.parametrize("name", ["fine", "coarse"])
def test_a_student_learns_is_saved_with_its_own_tokenizer_and_measured_by_the_byte(
    place, tmp_path, capsys, name
):
    status, said = train(place, place / name, tmp_path / "out", losses=(*LOSSES, "feature=0.1"))
    assert status == 0, said
    assert "projected_kl from all: exact, over the ids with which some of the student's agree" in said
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(place / name).get_vocab()
    before, after = (evaluated(place, folder, capsys) for folder in (place / name, tmp_path / "out"))
    assert after["bits_per_byte"] != before["bits_per_byte"]
    assert after["teacher_bits_per_byte"] == before["teacher_bits_per_byte"]
    # the first windows of held-out texts, by plain transformers and a loop over places
    model, teacher = str(tmp_path / "out"), AutoTokenizer.from_pretrained(place / "teacher")
    sums, size = np.zeros(2), 0
    held = HeldOut(cache=Cache.open(place / "cache"), eval_fraction=0.3, batch_size=8)
    for rows in held.rows():
        for row in range(len(rows)):
            ids = rows.input_ids.row(row).tolist()
            index, count = (int(rows.array(f"window_{what}")[row]) for what in ("index", "count"))
            data = b"".join(bytes_of(teacher, one) for one in ids)
            lead = next(at for at in range(4) if at == len(data) or data[at] & 0xC0 != 0x80)
            text = data[lead:].decode(errors="ignore")
            ours = side(tokenizer, text)
            if ours.ids[-1] == 1 and index + 1 < count:  # a window that goes on has no end
                ours = ours._replace(ids=ours.ids[:-1], ends=ours.ends[:-1], exact=ours.exact[:-1])
            ours = ours._replace(ends=[max(lead, end + lead) for end in ours.ends])
            ends = np.cumsum([len(bytes_of(teacher, one)) for one in ids]).tolist()
            theirs = ours._replace(ids=ids, ends=ends, exact=[True] * len(ids), prefix=0)
            new = rows.position_index()[rows.position_offsets[row] : rows.position_offsets[row + 1]] + 1
            predicted = [place in set(new.tolist()) for place in range(len(ids))]
            gold = np.zeros(len(ids))
            gold[new] = rows.gold_logprob().row(row)
            for a, b, c, d in _chunks(ours, theirs, predicted, lead):
                log_q = log_probabilities(model, tuple(ours.ids))
                sums += log_q[a - 1 : b - 1].sum(), gold[c:d].sum()
                size += ends[d - 1] - (ends[c - 1] if c else 0)
    assert size == after["chunk_bytes"] > 1000
    expected = -sums / size / math.log(2)
    assert after["bits_per_byte"] == pytest.approx(expected[0], rel=1e-5)
    assert after["teacher_bits_per_byte"] == pytest.approx(expected[1], rel=1e-5)


def _chunks(ours, theirs, predicted, lead):
    found = by_loop(ours, theirs, predicted)
    return found if lead == 0 else [chunk for chunk in found if chunk[0] > ours.prefix or chunk[0] > 0]


def bytes_of(tokenizer, index):
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]  # GPT-2's letters for what does not print
    letters = {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(rest)}
    return bytes(letters[letter] for letter in tokenizer.convert_ids_to_tokens(int(index)))


def batches(student: Student, rows: Rows, losses):
    objective = Objective.parse(losses)
    collation = student.collation(stored=objective.stored(rows.spec))
    return objective, collation.batch(rows)


def test_with_an_equal_tokenizer_everything_is_as_without(place, cache):
    """The same tokens, the same positions, and the losses by their own names."""
    rows = Rows.concatenate([*cache.read_all()])
    folder = student_folder(place / "same", AutoTokenizer.from_pretrained(place / "teacher"))
    plain, again = ["kl=1", "ce=1"], ["projected_kl=1", "ce=1", "alm=1,tau=3"]
    usual = open_student(str(folder), cache)
    reads = open_student(str(folder), cache, objective=Objective.parse(again))
    read = reads.reader.read(rows).rows.input_ids  # a window that begins within a word may be cut otherwise
    same = [np.array_equal(read.row(row), rows.input_ids.row(row)) for row in range(len(rows))]
    rows = rows.take(np.flatnonzero(same))
    assert len(rows) > 10
    assert (usual.reader is None, reads.aligns) == (True, True)
    found = {}
    for student, losses in ((usual, plain), (reads, again)):
        objective, batch = batches(student, rows, losses)
        distiller = make_distiller(student, cache, objective).eval()
        terms = distiller(batch)
        terms["loss"].backward()
        found[losses[0]] = batch, terms, student.model.lm_head.weight.grad.clone()
    (a, one, _), (b, two, _) = found["kl=1"], found["projected_kl=1"]
    assert torch.equal(a.input_ids, b.input_ids)
    assert torch.equal(a.token, b.token)
    assert torch.equal(a.targets.gold, b.targets.gold)
    assert a.counts.tolist() == [a.counts[0].item()] * 2 + [len(rows)] == b.counts.tolist()
    torch.testing.assert_close(one["ce"], two["ce"])
    torch.testing.assert_close(one["kl"], two["projected_kl"], rtol=1e-4, atol=1e-5)
    gold = torch.from_numpy(rows.gold_logprob().values)
    torch.testing.assert_close(b.targets.teacher, gold, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["fine", "coarse"])
def test_each_token_of_a_document_is_predicted_once_over_its_windows(place, cache, name):
    rows = Rows.concatenate([*cache.read_all()])
    student = open_student(str(place / name), cache, objective=Objective.parse(["alm=1"]))
    _, batch = batches(student, rows, ["alm=1", "projected_kl=1"])
    sizes = batch.targets.num_bytes
    totals = {}
    chunks = batch.row[batch.targets.begins]
    for row, size in zip(chunks.tolist(), sizes.tolist(), strict=True):
        key = rows.array("document_hash")[row].tobytes()
        totals[key] = totals.get(key, 0) + size
    assert int((rows.array("window_count") > 2).sum()) > 10
    said = {bytes(h): 0 for h in rows.array("document_hash")}
    teacher = AutoTokenizer.from_pretrained(place / "teacher")
    for row in range(len(rows)):
        ids = rows.input_ids.row(row)
        new = rows.position_index()[rows.position_offsets[row] : rows.position_offsets[row + 1]] + 1
        said[rows.array("document_hash")[row].tobytes()] += sum(
            len(bytes_of(teacher, int(ids[one]))) for one in new
        )
    for key, size in totals.items():
        assert 0.5 * said[key] < size <= said[key]  # nothing twice; at a window's edge a little is lost


def test_texts_are_read_once_and_epochs_after_that_are_the_same(place, cache, monkeypatch):
    rows = Rows.concatenate([*cache.read_all()])
    student = open_student(str(place / "fine"), cache, objective=Objective.parse(["alm=1"]))
    first = student.collation(stored=frozenset({"likelihood"})).batch(rows)
    monkeypatch.setattr(type(student.reader._student), "encode", None)
    order = np.arange(len(rows))[::-1].copy()
    again = student.collation(stored=frozenset({"likelihood"})).batch(rows.take(order))
    assert int(first.counts[1]) == int(again.counts[1])
    torch.testing.assert_close(first.targets.teacher.sum(), again.targets.teacher.sum())


def test_what_does_not_fit_in_memory_is_read_again(place, cache):
    rows = Rows.concatenate([*cache.read_all()])
    tokenizers = [AutoTokenizer.from_pretrained(place / name) for name in ("fine", "teacher")]
    small, large = (Reader(*tokenizers, cache.spec, limit=256) for _ in range(2))
    small._free = 1000
    for _ in range(2):
        a, b = small.read(rows), large.read(rows)
        assert (a.rows.input_ids.values == b.rows.input_ids.values).all()
        assert (a.alignment.teacher_begins == b.alignment.teacher_begins).all()
    assert len(small._held) < 10 < len(large._held) == len(rows)


def test_a_student_that_reads_less_at_once_loses_the_end_of_a_text(place, cache, tmp_path):
    rows = Rows.concatenate([*cache.read_all()])
    short = student_folder(tmp_path / "short", byte_level(258), max_position_embeddings=20)
    batch = [
        batches(open_student(str(folder), cache, objective=Objective.parse(["alm=1"])), rows, ["alm=1"])[1]
        for folder in (short, place / "fine")
    ]
    assert batch[0].input_ids.shape[1] == 20 < batch[1].input_ids.shape[1]
    assert 0 < int(batch[0].counts[0]) < int(batch[1].counts[0])
    assert torch.equal(batch[0].input_ids[0, :20], batch[1].input_ids[0, :20])


SERVED = {
    "kl": (
        ["kl=1"],
        r"kl compares token by token.*Use --losses alm=1.0.*projected_kl=1.0.*ce=1.0.*config \.json",
    ),
    "jsd": (["alm=1", "jsd=1"], r"jsd compares token by token.*Use --losses alm=1.0"),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_loss_that_compares_token_by_token_is_refused_with_those_that_do_not(place, tmp_path, name):
    losses, expected = SERVED[name]
    status, said = train(place, place / "fine", tmp_path / "out", losses=losses)
    assert status == 2
    with pytest.raises(StudentError, match=expected):
        open_student(str(place / "fine"), Cache.open(place / "cache"), objective=Objective.parse(losses))
    assert "Traceback" not in said


def test_what_aligns_does_not_stand_beside_what_does_not(place, cache):
    with pytest.raises(StudentError, match=r"alm and kl cannot stand together.*Leave kl out"):
        open_student(str(place / "teacher"), cache, objective=Objective.parse(["alm=1", "kl=1"]))


def test_several_students_of_several_tokenizers_share_one_decode(place, tmp_path):
    told = {
        "cache": str(place / "cache"),
        "losses": ["alm=1", "ce=1"],
        "max_steps": 4,
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "students": [
            {"student": str(place / name), "output_dir": str(tmp_path / name)} for name in ("fine", "coarse")
        ],
    }
    (tmp_path / "students.yaml").write_text(json.dumps(told))
    status, said = teachonce_main("train", "--students", tmp_path / "students.yaml")
    assert status == 0, said
    for name, steps in itertools.product(("fine", "coarse"), [4]):
        alone = tmp_path / f"{name}-alone"
        flags = ("--use_cpu", "--per_device_train_batch_size", "8", "--max_steps", str(steps))
        named = ("--student", place / name, "--output_dir", alone, "--losses", "alm=1", "ce=1")
        status, said = teachonce_main("train", "--cache", place / "cache", *named, *flags)
        assert status == 0, said
        a, b = (
            AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (alone, tmp_path / name)
        )
        assert all(torch.equal(a[key], b[key]) for key in a)
