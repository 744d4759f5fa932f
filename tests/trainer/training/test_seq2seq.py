"""Students that read a source and say its target: batches, losses and texts, beside transformers' own."""

import gc
import logging
import weakref

import numpy as np
import pytest
import sacrebleu
import torch
import torch.nn.functional as F
import transformers

from schemas.decoder_inputs import decoder_inputs
from schemas.errors import StudentError, UsageError
from schemas.policies import KeepAll
from schemas.tasks import SEQ2SEQ_LM
from tests.synthetic import random_rows, source_spec
from tests.trainer.tiny import tiny_tokenizer
from trainer.losses.objective import Objective
from trainer.metrics import texts
from trainer.models.heads import check_head
from trainer.models.shrink import parse_shrink, shrunk
from trainer.students.compatibility import check_trainable
from trainer.students.packed_trial import check_packs
from trainer.students.student import Student
from trainer.students.trial import try_student
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.distiller import Distiller

VOCAB = 50
TASK = STUDENT_TASKS["seq2seq-lm"]
HALVES = {
    f"{half}_{name}": size
    for half in ("encoder", "decoder")
    for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
}
KINDS = {
    "t5": {"model_type": "t5", "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "t5 untied": {"model_type": "t5", "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    | {"tie_word_embeddings": False},
    "bart": {"model_type": "bart", "init_std": 0.3, "bos_token_id": 2, **HALVES},
    "m2m": {"model_type": "m2m_100", "init_std": 0.3, "bos_token_id": 2, **HALVES},
}


def student_of(kind, **more):
    told = {"vocab_size": VOCAB, "d_model": 16, "pad_token_id": 0, "eos_token_id": 1, "dropout": 0.0}
    told |= {"decoder_start_token_id": 1, "dropout_rate": 0.0, "max_position_embeddings": 64}
    told |= {
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
        **KINDS[kind],
        **more,
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(told.pop("model_type"), **told)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    return Student(model=model, tokenizer=tiny_tokenizer(VOCAB), task=SEQ2SEQ_LM)


@pytest.fixture(scope="module")
def rows():
    spec = source_spec(keep=KeepAll(), vocab_size=VOCAB, temperatures=(1.0,), scalars=())
    return random_rows(spec, 7).rows


def apart(rows):
    """Each row's source and target."""
    for index, source in enumerate(rows.array("source_tokens").tolist()):
        ids = torch.from_numpy(rows.input_ids.row(index).astype(np.int64))
        yield ids[:source], ids[source:]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_one_text_at_a_time(rows, kind):
    student = student_of(kind)
    objective = Objective.parse(["ce=1", "kl=1"])
    model = Distiller(student.model, objective, score="softmax", task=TASK).train()
    batch = student.collation().batch(rows)
    found = model(batch)
    logits = torch.cat(
        [
            student.model(input_ids=source[None], labels=target[None]).logits[0]
            for source, target in apart(rows)
        ]
    )
    gold = torch.cat([target for _, target in apart(rows)])
    ours = logits.log_softmax(-1)
    kept = torch.from_numpy(rows.kept_logprobs()).view(-1, VOCAB).log_softmax(-1)
    teacher = torch.empty_like(kept).scatter_(1, torch.from_numpy(rows.kept_ids).long().view(-1, VOCAB), kept)
    ce, kl = F.nll_loss(ours, gold), F.kl_div(ours, teacher, reduction="batchmean", log_target=True)
    torch.testing.assert_close(found["ce"], ce, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["kl"], kl, atol=1e-5, rtol=1e-4)
    weights = [weight for weight in student.model.parameters() if weight.requires_grad]
    theirs = torch.autograd.grad(ce + kl, weights, allow_unused=True)
    for a, b in zip(torch.autograd.grad(found["loss"], weights, allow_unused=True), theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def test_a_batch_pads_sources_and_targets_apart(rows):
    student = student_of("t5")
    batch = student.collation().batch(rows)
    sources, targets = ([len(one) for one in each] for each in zip(*apart(rows), strict=True))
    assert batch.input_ids.shape == (7, max(sources))
    assert batch.decoder_input_ids.shape == (7, max(targets))
    assert (batch.attention_mask.sum(1).tolist(), batch.num_tokens) == (sources, sum(sources + targets))
    assert batch.padded_tokens == 7 * (max(sources) + max(targets))
    assert batch.decoder_input_ids[:, 0].tolist() == [1] * 7
    for row, (_, target) in enumerate(apart(rows)):
        assert batch.decoder_input_ids[row, 1 : len(target)].tolist() == target[:-1].tolist()
        assert batch.token[batch.row == row].tolist() == list(range(len(target)))


@pytest.mark.parametrize("kind", ["t5", "bart", "m2m"])
def test_students_that_shift_alike_share_batches_and_hold_no_weights(kind):
    one, other = student_of(kind), student_of(kind)
    assert one.collation() == other.collation()
    assert len({one.collation(), other.collation(), student_of("t5").collation()}) == (
        1 if kind == "t5" else 2
    )
    model = weakref.ref(one.model)
    held = one.collation()
    del one
    gc.collect()
    assert model() is None
    targets = torch.tensor([[5, 6, 7], [8, -100, -100]])
    assert held.shift(targets).tolist() == decoder_inputs(other.model, targets).tolist()


def test_a_class_that_does_not_say_how_begins_with_what_its_config_names():
    student = student_of("m2m")
    assert not hasattr(student.model, "prepare_decoder_input_ids_from_labels")
    targets = torch.tensor([[5, 6, 7], [8, -100, -100]])
    assert decoder_inputs(student.model, targets).tolist() == [[1, 5, 6], [1, 8, 0]]
    student.model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id of M2M100ForConditionalGeneration"):
        decoder_inputs(student.model, targets)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_tried_in_both_its_halves(kind):
    student = student_of(kind)
    told = {"task": SEQ2SEQ_LM, "pad_id": 0, "max_length": 32, "generates": True}
    try_student(student.model, **told)
    check_head(student.model, TASK.run, has_source=True)
    if kind in ("bart", "m2m"):
        student.model.get_decoder().config.is_causal = False
        with pytest.raises(StudentError, match="sees the token after it"):
            try_student(student.model, **told)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_each_half_is_shrunk_apart(kind, tmp_path):
    names = ("num_layers", "num_decoder_layers") if kind == "t5" else ("encoder_layers", "decoder_layers")
    more = dict(zip(names, (5, 4), strict=True))
    teacher = student_of(kind, **more).model.eval()
    with pytest.raises(StudentError, match="at most 4, got 5"):
        shrunk(teacher, 5, TASK.auto, has_halves=True)
    shrunk(teacher, parse_shrink("shrink:encoder=3,decoder=2"), TASK.auto, has_halves=True).save_pretrained(
        tmp_path
    )
    student = TASK.auto.from_pretrained(tmp_path).eval()
    for half, kept in ((teacher.get_encoder(), (0, 1, 3)), (teacher.get_decoder(), (0, 2))):
        name = "block" if kind == "t5" else "layers"
        layers = getattr(half, name)
        setattr(half, name, torch.nn.ModuleList(layers[number] for number in kept))
    ids = torch.arange(5, 12)[None]
    given = {"input_ids": ids, "labels": ids.flip(1), "use_cache": False}
    torch.testing.assert_close(student(**given).logits, teacher(**given).logits)
    assert (len(_layers(student.get_encoder())), len(_layers(student.get_decoder()))) == (3, 2)


def _layers(half):
    return getattr(half, "block", None) or half.layers


def test_halves_are_an_encoder_decoders():
    with pytest.raises(StudentError, match="no encoder-decoder"):
        shrunk(torch.nn.Linear(1, 1), parse_shrink("shrink:encoder=1,decoder=1"), TASK.auto)
    for wrong in ("shrink:encoder=1", "shrink:decoder=1,encoder=1", "shrink:encoder=0,decoder=1"):
        with pytest.raises(UsageError, match="shrink:encoder=N,decoder=M"):
            parse_shrink(wrong)


def test_what_a_student_writes_is_compared_as_sacrebleu_does(rows):
    student = student_of("bart")
    student.model.eval()
    found = texts.text_metrics(student.model, student.tokenizer, [rows], pad_id=0, device=torch.device("cpu"))
    student.model.generation_config.forced_eos_token_id = None  # nobody taught it
    written, wanted = [], []
    most = int(1.5 * max(len(target) for _, target in apart(rows))) + 1
    for source, target in apart(rows):
        ids = student.model.generate(source[None], max_new_tokens=most, num_beams=1, do_sample=False)
        written.append(student.tokenizer.decode(ids[0], skip_special_tokens=True))
        wanted.append(student.tokenizer.decode(target, skip_special_tokens=True))
    assert found["written_rows"] == 7
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, [wanted]).score)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, [wanted]).score)
    assert found["chrf"] > 0
    perfect = texts._compared(wanted, wanted)
    assert [round(perfect[name], 4) for name in ("chrf", "bleu", "rouge_l")] == [100, 100, 1]
    for one, other in (
        ("a b c d", "A, c: d e"),
        ("\u044f \u0438 \u0442\u044b", "\u042f \u0438 \u043e\u043d"),
    ):
        share = 2 / 3 if len(one) < 7 else 0.75
        assert texts._compared([one], [other])["rouge_l"] == pytest.approx(share)


def test_without_the_libraries_nothing_is_written_and_that_is_said(rows, monkeypatch, caplog):
    monkeypatch.setattr(texts, "_PACKAGES", ("sacrebleu", "a_package_that_is_nowhere"))
    with caplog.at_level(logging.WARNING):
        assert texts.text_metrics(None, None, [rows], pad_id=0, device=torch.device("cpu")) == {}
    assert "a_package_that_is_nowhere not installed (pip install 'teachonce[text]')" in caplog.text


def test_who_cannot_be_a_student():
    with pytest.raises(StudentError, match=r"no encoder-decoder cannot be a student of seq2seq-lm.*llama"):
        check_trainable(transformers.LlamaConfig(), SEQ2SEQ_LM, "s")
    with pytest.raises(StudentError, match="its students read two texts"):
        check_packs(SEQ2SEQ_LM)
