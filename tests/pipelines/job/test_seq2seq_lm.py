"""Sources and targets: a cache says what an encoder-decoder says of each token of a target, one text at a time."""

import json
import string

import pytest
import transformers

from pipelines.tasks.tasks import TEACHER_TASKS
from schemas import Cache
from schemas.errors import TeacherError, TooManyRejectsError, UsageError
from schemas.policies import parse_keep
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import read, run, write_jsonl
from tests.pipelines.oracle import Oracle, check_labels, check_row

AUTO = transformers.AutoModelForSeq2SeqLM
TASK = {"task": "seq2seq-lm", "target_field": "target", "max_length": 48}
KINDS = {
    "t5": ("t5", {}),
    "t5 untied": ("t5", {"tie_word_embeddings": False}),
    "bart": ("bart", {}),
    "marian untied": ("marian", {"tie_word_embeddings": False}),
    "mbart": ("mbart", {}),
    "nllb": ("m2m_100", {}),
}
CHARS = [*(f"▁{part}" for part in ("", "the", "a")), "▁", *string.ascii_letters, *string.digits, ".", "'"]
NAMES = ["<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys(CHARS)]


def tokenizer_of(kind):
    """Those of mBART and NLLB say source and target in languages of their own."""
    if kind == "mbart":
        vocab = [(name, -1.0 * (place > 3)) for place, name in enumerate(NAMES)]
        return transformers.MBartTokenizer(vocab=vocab, src_lang="en_XX", tgt_lang="ro_RO")
    if kind == "nllb":
        vocab = {name: place for place, name in enumerate(NAMES)}
        return transformers.NllbTokenizer(vocab=vocab, merges=[], src_lang="eng_Latn", tgt_lang="fra_Latn")
    return None


def corpus(path, count=9, **more):
    """Long sources of short targets, and the other way round."""
    lines = [
        {"text": f"{i} runs once. " * (1 + i % 3), "target": f"said {i} " * (1 + (2 * i) % 3)} | more
        for i in range(count)
    ]
    return write_jsonl(path, lines)


@pytest.mark.parametrize("name", KINDS)
def test_a_cache_says_what_a_plain_forward_says(tmp_path, name):
    kind, changes = KINDS[name]
    if words := tokenizer_of(name):
        changes = changes | {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    made = models.seq2seq_teacher(tmp_path / "t", kind, tokenizer=words, **changes)
    run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", keep=parse_keep("top_k:20"), **TASK)
    opened, judge = Cache.open(tmp_path / "c"), Oracle(made, auto=AUTO)
    assert opened.spec.required_features[-1] == "task:seq2seq-lm"
    own = transformers.AutoTokenizer.from_pretrained(made)
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    wanted = [
        (own(line["text"])["input_ids"], own(text_target=line["target"])["input_ids"]) for line in lines
    ]
    found = []
    for row in read(opened).values():
        source, ids = int(row["source_tokens"]), row["input_ids"]
        found.append((ids[:source].tolist(), ids[source:].tolist()))
        assert row["positions"].tolist() == list(range(source - 1, len(ids) - 1))
        truth = judge.truth(row)
        assert check_row(row, truth, opened.spec) == 0
        check_labels(row, truth, ids[source:])
    assert sorted(found) == sorted(wanted)


def test_a_target_ends_also_where_the_tokenizer_does_not_end_it(tmp_path):
    made = models.seq2seq_teacher(tmp_path / "t", tokenizer=models.byte_tokenizer())
    run(corpus(tmp_path / "c.jsonl", 3), made, tmp_path / "c", **TASK)
    rows = read(Cache.open(tmp_path / "c")).values()
    assert all(row["input_ids"][-1] == 1 for row in rows)
    assert not any(1 in row["input_ids"][:-1] for row in rows)


GOOD = {"text": "The teacher", "target": "runs once."}
LONG = "a b c d e f g " * 9
BAD = {
    "field_missing": [{"text": "a"}, {"target": "a"}, {"text": "a", "target": None}],
    "empty": [{"text": "a", "target": " "}, {"text": "", "target": "a"}],
    "not_a_string": [{"text": "a", "target": ["b"]}],
    "too_long": [{"text": LONG, "target": "a"}, {"text": "a", "target": LONG}],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return models.seq2seq_teacher(tmp_path_factory.mktemp("t5") / "t")


def test_what_is_wrong_is_rejected_with_its_reason(tmp_path, teacher):
    bad = [one for records in BAD.values() for one in records]
    path = write_jsonl(tmp_path / "c.jsonl", [GOOD, *bad])
    summary = run(path, teacher, tmp_path / "c", max_reject_fraction=0.95, **TASK)
    assert dict(summary.rejects) == {reason: len(records) for reason, records in BAD.items()}
    (told,) = (tmp_path / "c/_teachonce/rejects").glob("*.jsonl")
    said = told.read_text()
    for expected in ("a source of at most 48 tokens", "a target of at most 48 tokens", "target"):
        assert expected in said
    with pytest.raises(TooManyRejectsError, match="too_long"):
        run(write_jsonl(path, [GOOD, *BAD["too_long"]]), teacher, tmp_path / "d", **TASK)


def test_a_source_is_cut_where_that_is_asked_for_and_a_target_never(tmp_path, teacher):
    path = write_jsonl(tmp_path / "c.jsonl", [GOOD, *BAD["too_long"]])
    cut = {"task_settings": {"truncate_source": True}, "max_reject_fraction": 0.5}
    summary = run(path, teacher, tmp_path / "c", **TASK, **cut)
    assert (dict(summary.rejects), summary.truncated_pairs) == ({"too_long": 1}, 1)
    rows = sorted(read(Cache.open(tmp_path / "c")).values(), key=lambda row: int(row["source_tokens"]))
    whole = models.ending_tokenizer()(LONG)["input_ids"]
    assert rows[1]["input_ids"][:48].tolist() == [*whole[:47], whole[-1]]
    assert [int(row["source_tokens"]) for row in rows][1:] == [48]


def test_flags_that_do_not_fit_are_refused(tmp_path, teacher):
    path, causal = corpus(tmp_path / "c.jsonl", 3), models.causal_teacher(tmp_path / "lm")

    def refused(match, made=teacher, **changes):
        with pytest.raises(UsageError, match=match):
            run(path, made, tmp_path / "c", **TASK | changes)

    refused("seq2seq-lm needs targets.*--target_field", target_field=None)
    refused("--target_field tgt: none of the first", target_field="tgt")
    refused("--stride has no meaning for seq2seq-lm", stride=4)
    chat = {"target_field": None, "messages_field": "text"}
    refused("--messages_field has no meaning for seq2seq-lm", **chat)
    refused("LlamaForCausalLM is no encoder-decoder", causal)
    refused("--target_field has no meaning for causal-lm", causal, task="causal-lm")
    plain = {"task": "causal-lm", "target_field": None}
    refused(r"T5ForConditionalGeneration is an encoder-decoder.*--task seq2seq-lm", **plain)
    refused("its states are two lists", features=("mean:-1",))


def test_a_teacher_of_two_vocabularies_or_without_its_languages_is_refused(tmp_path):
    check = TEACHER_TASKS["seq2seq-lm"].check
    apart = transformers.MarianConfig(vocab_size=50, decoder_vocab_size=60)
    with pytest.raises(UsageError, match="a vocabulary for sources and another for targets"):
        check(apart, models.ending_tokenizer(), {})
    words = tokenizer_of("nllb")
    words.tgt_lang = None
    with pytest.raises(UsageError, match="does not say which is its tgt_lang"):
        check(transformers.M2M100Config(), words, {})


def test_a_decoder_that_sees_no_source_or_its_own_target_is_refused(tmp_path):
    made, path = models.seq2seq_teacher(tmp_path / "t", "bart"), corpus(tmp_path / "c.jsonl", 3)
    model = AUTO.from_pretrained(made)
    for layer in model.model.decoder.layers:
        layer.encoder_attn.out_proj.weight.data.zero_()
    model.save_pretrained(made)
    with pytest.raises(TeacherError, match="BartForConditionalGeneration sees nothing of a source"):
        run(path, made, tmp_path / "c", **TASK)
    ahead = models.seq2seq_teacher(tmp_path / "a", "bart", is_causal=False)
    with pytest.raises(
        TeacherError, match="BartForConditionalGeneration sees the tokens that it is to predict"
    ):
        run(path, ahead, tmp_path / "c", **TASK)


def test_the_nightly_laws_and_a_student_from_the_commands(tmp_path, teacher):
    """Nothing new, a changed target, a deleted document; other verbs; train, evaluate; the student opens plainly."""
    path, cache, out = tmp_path / "c.jsonl", tmp_path / "cache", tmp_path / "out"
    lines = [{"id": i, "text": f"{i} runs once.", "target": f"said {i} twice"} for i in range(24)]
    write_jsonl(path, lines)
    told = ("--corpus", path, "--teacher", teacher, "--task", "seq2seq-lm", "--target_field", "target")
    told += ("--id_field", "id", "--max_length", "48")
    night = ("precompute", *told, "--cache", cache, "--keep_text", "--no_progress")

    def said(*words):
        status, text = teachonce_main(*words)
        assert status == 0, (words, text)
        return text

    for _ in range(2):
        said(*night)
        assert (Cache.open(cache).version, len(read(Cache.open(cache)))) == (0, 24)
    lines[0]["target"] = "said otherwise"
    write_jsonl(path, lines[:-1])
    said(*night, "--replace", "--prune")
    rows = read(Cache.open(cache)).values()
    assert sorted(row["text_pair"] for row in rows) == sorted(line["target"] for line in lines[:-1])
    assert "mean KL" in said("verify", cache, "--teacher", teacher)
    assert "[[said otherwise</s>]]" in said("inspect", *told, "--rows", "1")
    said("thin", cache, "--out", tmp_path / "thin", "--keep", "threshold:1/8", "--no_progress")
    small = ("--use_cpu", "--eval_fraction", "0.3", "--per_device_train_batch_size", "8", "--max_steps", "4")
    student = ("--student", "shrink:encoder=2,decoder=1", "--teacher", teacher, "--output_dir", out)
    said("train", "--cache", cache, *student, *small, "--losses", "kl=1", "ce=1", "--adversarial", "fgm=0.5")
    config = AUTO.from_pretrained(out).config
    assert (config.num_layers, config.num_decoder_layers) == (2, 1)
    measured = said("evaluate", "--cache", cache, "--student", out, "--speed_seconds", "0")
    for name in ("perplexity", "top1_agreement", "chrf", "bleu", "rouge_l", "written_rows"):
        assert name in measured
