"""The teacher itself: what it cannot score is rejected alone, what it does to its head is known or refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers

from pipelines.config import TeacherConfig
from pipelines.fingerprint.fingerprint import make_header, resolve
from pipelines.scoring import handler
from pipelines.teacher import model as teacher_module
from pipelines.teacher.devices import pick_device
from pipelines.teacher.heads import Head
from pipelines.teacher.model import Batch, Teacher
from pipelines.teacher.opening import open_teacher
from schemas import Cache
from schemas.errors import MismatchError, TeacherError, TooManyRejectsError, UsageError
from schemas.model_heads import head_transform
from tests.pipelines import models
from tests.pipelines.helpers import config, documents, read, rejects, run, write_jsonl


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory, teacher):
    """The session's teacher, but one token's embedding is not a number: its examples, and no others, are lost."""
    folder = tmp_path_factory.mktemp("poisoned") / "teacher"
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    head = model.lm_head.weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer("~")["input_ids"][0]] = torch.nan
    return models.save(model, tokenizer, folder)


def test_what_is_not_finite_is_rejected_alone(tmp_path, poisoned, corpus, teacher, whole):
    every = [json.loads(line) for line in corpus.read_text().splitlines()]
    bad = [{"text": f"{d['text'][:20]} ~ {i}"} for i, d in enumerate(every[:5])]
    file = write_jsonl(
        tmp_path / "c.jsonl", [r for pair in zip(every, [*bad, *[b""] * 19], strict=True) for r in pair]
    )
    flags = {"max_reject_fraction": 0.5, "features": ("mean:-1",)}
    summary = run(file, poisoned, tmp_path / "c", unit_tokens=300, **flags)
    assert dict(summary.rejects) == {"not_finite": 5}
    lines = rejects(tmp_path / "c", summary)
    offsets = {file.read_bytes().index(json.dumps(record).encode()) for record in bad}
    assert {line["offset"] for line in lines} == offsets
    assert all(bytes.fromhex(line["id"]) not in read(tmp_path / "c") for line in lines)
    kept, clean = read(tmp_path / "c"), read(whole[0])
    assert {row["input_ids"].tobytes() for row in kept.values()} == {
        row["input_ids"].tobytes() for row in clean.values()
    }
    found = {row["input_ids"].tobytes(): row["entropy"] for row in kept.values()}
    for row in clean.values():
        assert found[row["input_ids"].tobytes()] == pytest.approx(row["entropy"], abs=1 / 32 + 1e-4)
    assert Cache.open(tmp_path / "c").verify().examples == len(clean)


def test_too_many_that_are_not_finite_fail_the_run_and_commit_nothing(tmp_path, poisoned):
    file = write_jsonl(tmp_path / "c.jsonl", [{"text": f"~ {i}"} for i in range(3)] + documents(3))
    with pytest.raises(TooManyRejectsError, match="3 of 6 documents are rejected, most as not_finite"):
        run(file, poisoned, tmp_path / "c")
    assert not (tmp_path / "c" / "_delta_log").exists()


def limited(monkeypatch, tokens, kind=torch.OutOfMemoryError):
    """A device whose memory holds `tokens` padded tokens a batch. Returns the sizes that did fit."""
    answer, sizes = Teacher.answer, []

    def run_out(self, batch):
        if batch.input_ids.numel() > tokens:
            raise kind("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(batch.input_ids.numel())
        return answer(self, batch)

    monkeypatch.setattr(Teacher, "answer", run_out)
    return sizes


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_halves_a_batch_until_it_fits(tmp_path, teacher, corpus, whole, monkeypatch, kind):
    sizes = limited(monkeypatch, 50, kind)
    summary = run(corpus, teacher, tmp_path / "c", batch_tokens=400)
    assert max(sizes) <= 50
    assert summary.rejects == {}
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()


def test_the_single_example_that_is_too_large_is_rejected_alone(tmp_path, teacher, monkeypatch):
    long = {"text": "A long one, " * 12, "id": "the long one"}
    small = [{"text": f"{i} short", "id": f"{i}"} for i in range(9)]
    file = write_jsonl(tmp_path / "c.jsonl", [*small, long])
    limited(monkeypatch, 40)
    summary = run(file, teacher, tmp_path / "c", id_field="id", max_length=200, max_reject_fraction=0.2)
    [line] = rejects(tmp_path / "c", summary)
    assert (line["reason"], line["id"]) == ("too_large", "the long one")
    assert {row["document_id"] for row in read(tmp_path / "c").values()} == {d["id"] for d in small}


def test_any_other_error_of_the_teacher_is_an_error(tmp_path, teacher, corpus, monkeypatch):
    limited(monkeypatch, 10, RuntimeError)
    with pytest.raises(Exception, match="nothing was committed"):
        run(corpus, teacher, tmp_path / "c")
    assert not (tmp_path / "c" / "_delta_log").exists()


def opened(folder, corpus, **changes):
    """A teacher as a worker opens it."""
    made = config(corpus, folder, "unused", **changes)
    return open_teacher(made.teacher, make_header(made, resolve(made.teacher)).spec, str(folder))


@pytest.mark.parametrize(
    "change",
    [lambda logits: logits + torch.arange(logits.shape[-1]) / 50, lambda logits: logits * 1.05],
)
def test_a_model_that_does_more_to_its_logits_is_refused_by_name(teacher, corpus, monkeypatch, change):
    forward = transformers.LlamaForCausalLM.forward

    def more(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = change(output.logits)
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", more)
    with pytest.raises(TeacherError, match="LlamaForCausalLM does something to its logits"):
        opened(teacher, corpus)


def test_a_head_of_another_width_is_refused(teacher, corpus, monkeypatch):
    narrow = Head.of
    monkeypatch.setattr(
        Head, "of", classmethod(lambda cls, m: (h := narrow(m))._replace(weight=h.weight[:-1]))
    )
    with pytest.raises(TeacherError, match="not as wide"):
        opened(teacher, corpus)


def test_a_model_without_a_linear_head_is_refused(teacher):
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    model.set_output_embeddings(torch.nn.Identity())
    with pytest.raises(TeacherError, match="no linear head: LlamaForCausalLM"):
        Head.of(model)


@pytest.mark.parametrize(
    ("config", "expected"),
    [({}, 1), ({"logits_scaling": 4.0}, 0.25), ({"logit_scale": 0.5}, 0.5), ({"logit_scale": None}, 1)],
)
def test_multipliers_are_read_from_the_config(config, expected):
    assert head_transform(config).multiplier == expected


def test_weights_that_are_missing_are_an_error_and_never_random(tmp_path, teacher, corpus):
    """`from_pretrained` by itself invents a head that the file lacks, and a run would cache noise."""
    folder = shutil.copytree(teacher, tmp_path / "headless")
    with pytest.raises(TeacherError, match=r"score\.weight"):
        opened(folder, corpus, task="sequence-classification")


def test_weights_that_cannot_be_read_are_one_line(tmp_path, teacher, corpus):
    folder = shutil.copytree(teacher, tmp_path / "broken")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(TeacherError, match="cannot be opened") as caught:
        run(corpus, folder, tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_opened_only_where_that_is_allowed(tmp_path, teacher, corpus):
    folder = shutil.copytree(teacher, tmp_path / "pickled")
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"holds no weights.*--allow_pickle"):
        run(corpus, folder, tmp_path / "c")
    assert run(corpus, folder, tmp_path / "c", allow_pickle=True).committed


def test_a_worker_that_finds_another_teacher_stops(tmp_path, teacher, corpus, monkeypatch):
    honest = handler.make_fingerprint

    def other(config, folder, opened):
        return replace(honest(config, folder, opened), weights="0" * 64)

    monkeypatch.setattr(handler, "make_fingerprint", other)
    with pytest.raises(MismatchError, match="a worker found another teacher"):
        run(corpus, teacher, tmp_path / "c")


def test_cuda_without_cuda_is_a_usage_error(tmp_path, teacher, corpus, monkeypatch):
    monkeypatch.setattr(teacher_module.torch.cuda, "is_available", lambda: False)
    assert (pick_device("auto").type, pick_device("cpu").type) == ("cpu", "cpu")
    with pytest.raises(UsageError, match="--device cuda: torch sees no CUDA device"):
        run(corpus, teacher, tmp_path / "c", device="cuda")


def test_a_teacher_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="teacher cannot be ''"):
        TeacherConfig(path="", task="causal-lm")


def test_logits_stand_in_the_same_memory_batch_after_batch(teacher, corpus):
    """And of two who read at once, each has memory of its own."""
    with torch.inference_mode():
        asked = opened(teacher, corpus)
        texts = [torch.tensor([[5, 9, 13, 17]]), torch.tensor([[6, 20, 7]])]
        batches = [one_text(ids) for ids in texts]
        plain = [asked.model(input_ids=ids).logits[0].float() for ids in texts]
        places = []
        for batch, expected in zip(batches, plain, strict=True):
            for logits in asked.logits(batch):
                places.append(logits.data_ptr())
                torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert places[0] == places[1]
        for first, second in zip(*map(asked.logits, batches), strict=True):
            for logits, expected in zip((first, second), plain, strict=True):
                torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def one_text(ids):
    """A batch of one text, every token a position."""
    tokens = torch.arange(ids.shape[1])
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        token_type_ids=None,
        position_rows=torch.zeros_like(tokens),
        position_tokens=tokens,
        labels=torch.full_like(tokens, -1),
        uniforms=torch.zeros(len(tokens), 0, dtype=torch.float64),
    )
