"""The teacher writes: a cache holds what plain `generate` writes of each prompt alone, and its scores of just that."""

import copy
import itertools
import json
import re

import numpy as np
import pytest
import torch
import transformers

from pipelines.scoring import written
from schemas import Cache
from schemas.errors import MismatchError
from schemas.generation import parse_generation
from schemas.policies import TopK
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import read, run, write_jsonl
from tests.pipelines.oracle import Oracle, check_labels, check_row

NEW, ENDS = 9, [1, *range(4, 300, 9)]
PROMPT = {"prompt_field": "ask", "supervise": "assistant", "max_length": 64}
ASKED = ["Who runs once?", "Who trains?", "A cache", "Nothing is lost and", "Who stores?", "Who trains them?"]


def corpus(path, asked=ASKED, **more):
    return write_jsonl(path, [{"ask": text, **more} for text in asked])


def prompts(cache, tokenizer):
    """Rows by what stands before their first position's next token."""
    return {
        tokenizer.decode(row["input_ids"][: row["positions"][0] + 1]): row for row in read(cache).values()
    }


def how(text, new=NEW):
    return {"generation": parse_generation(text, new)}


def gpt2(folder):
    return models.causal_teacher(folder, kind="gpt2", n_positions=512, n_embd=32, n_layer=2, n_head=2)


TEACHERS = {
    "llama": models.causal_teacher,
    "gpt2": gpt2,
    "gemma2": lambda folder: models.causal_teacher(folder, kind="gemma2"),
}


@pytest.mark.parametrize(
    ("kind", "way", "options"),
    [
        ("llama", "greedy", {}),
        ("llama", "beams:3", {"num_beams": 3}),
        ("gpt2", "greedy", {}),
        ("gemma2", "greedy", {}),
    ],
)
def test_a_cache_holds_what_the_teacher_writes_of_each_prompt_alone(tmp_path, kind, way, options):
    made = TEACHERS[kind](tmp_path / "t")
    # what a folder says of sampling is the user's to say; what ends a text is the teacher's
    told = {"eos_token_id": ENDS, "do_sample": True, "temperature": 0.3, "repetition_penalty": 5.0}
    (made / "generation_config.json").write_text(json.dumps(told))
    summary = run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", **PROMPT, **how(way))
    assert (summary.totals.examples, dict(summary.rejects)) == (len(ASKED), {})
    spec, oracle = Cache.open(tmp_path / "c").spec, Oracle(made)
    assert spec.generation.end_ids == tuple(ENDS)
    model = transformers.AutoModelForCausalLM.from_pretrained(made).eval()
    model.generation_config = transformers.GenerationConfig()
    tokenizer, lengths = models.byte_tokenizer(), set()
    rows = prompts(tmp_path / "c", tokenizer)
    assert rows.keys() == set(ASKED)
    for text, row in rows.items():
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        settings = transformers.GenerationConfig(
            max_new_tokens=NEW, do_sample=False, eos_token_id=ENDS, pad_token_id=0, **options
        )
        found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0]
        own = found[ids.shape[1] :].tolist()
        ends = [place for place, one in enumerate(own) if one in ENDS]
        own = own[: ends[0] + 1] if ends else own
        assert row["input_ids"].tolist() == ids[0].tolist() + own
        assert row["positions"].tolist() == [ids.shape[1] - 1 + place for place in range(len(own))]
        truth = oracle.truth(row)
        check_row(row, truth, spec)
        check_labels(row, truth, np.array(own))
        lengths.add(len(own))
    assert len(lengths) > 1, "some are ended, some are cut"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return models.causal_teacher(tmp_path_factory.mktemp("teacher"))


def test_a_drawn_text_is_a_matter_of_seed_and_example_alone(tmp_path, teacher):
    path = corpus(tmp_path / "c.jsonl")
    ways = {
        "a": {"batch_tokens": 4096},
        "b": {"batch_tokens": 1, "unit_tokens": 1},
        "c": {"sample_seed": 1},
    }
    found = {}
    for name, changes in ways.items():
        run(path, teacher, tmp_path / name, **PROMPT, **how("sample:temperature=0.7,top_k=20"), **changes)
        rows = prompts(tmp_path / name, models.byte_tokenizer())
        found[name] = {text: row["input_ids"].tolist() for text, row in rows.items()}
    assert found["a"] == found["b"]
    assert found["a"] != found["c"]


def test_a_conversation_is_answered_where_the_assistant_is_to_speak(tmp_path, teacher):
    """What the corpus has the assistant say last is left out: the teacher says it."""
    asked = [
        [{"role": "user", "content": "Who runs?"}],
        [
            {"role": "user", "content": "Hm."},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "Why?"},
        ],
        [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "Rows."}],
    ]
    lines = [
        {"id": str(i), "messages": messages}
        for i, messages in enumerate([*asked, [{"role": "assistant", "content": "alone"}]])
    ]
    path = write_jsonl(tmp_path / "c.jsonl", lines)
    told = {
        "messages_field": "messages",
        "supervise": "assistant",
        "max_length": 64,
        "max_reject_fraction": 0.5,
    }
    summary = run(path, teacher, tmp_path / "c", id_field="id", **told, **how("greedy"))
    assert dict(summary.rejects) == {"nothing_supervised": 1}
    tokenizer = models.byte_tokenizer()
    asked[2] = asked[2][:1]
    expected = {
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in asked
    }
    assert prompts(tmp_path / "c", tokenizer).keys() == expected


def test_a_template_that_ends_in_a_special_token_asks_with_it(tmp_path):
    made, tokenizer = (
        models.causal_teacher(tmp_path / "t", vocab_size=310),
        copy.deepcopy(models.byte_tokenizer()),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|assistant|>"]})
    tokenizer.save_pretrained(made)
    path = write_jsonl(tmp_path / "c.jsonl", [{"messages": [{"role": "user", "content": "Who?"}]}])
    told = {"messages_field": "messages", "supervise": "assistant", "max_length": 64}
    run(path, made, tmp_path / "c", **told, **how("greedy"))
    (row,) = read(tmp_path / "c").values()
    assert row["input_ids"][row["positions"][0]] == tokenizer.convert_tokens_to_ids("<|assistant|>")


def test_what_leaves_no_room_is_rejected_and_counted(tmp_path, teacher):
    path = corpus(tmp_path / "c.jsonl", [*ASKED, "word " * 80])
    told = PROMPT | {"max_reject_fraction": 0.5}
    summary = run(path, teacher, tmp_path / "c", **told, **how("greedy"))
    assert (summary.totals.examples, dict(summary.rejects)) == (len(ASKED), {"too_long": 1})


def test_the_next_night_writes_what_is_new_alone(tmp_path, teacher, monkeypatch):
    told = []
    honest = written.continuations
    monkeypatch.setattr(
        written,
        "continuations",
        lambda t, ids, keys, source: told.append(len(keys)) or honest(t, ids, keys, source),
    )
    run(corpus(tmp_path / "c.jsonl", ASKED[:4]), teacher, tmp_path / "c", **PROMPT, **how("greedy"))
    before = read(tmp_path / "c")
    assert sum(told) == 4
    told.clear()
    summary = run(corpus(tmp_path / "c.jsonl", ASKED[:4]), teacher, tmp_path / "c", **PROMPT, **how("greedy"))
    assert (summary.totals.examples, told) == (0, [])
    run(corpus(tmp_path / "c.jsonl", ASKED[1:]), teacher, tmp_path / "c", **PROMPT, **how("greedy"), prune=True,
        max_prune_fraction=1.0)  # fmt: skip
    assert sum(told) == 2
    after = read(tmp_path / "c")
    assert len(after.keys() & before.keys()) == 3
    for changes in (how("beams:2"), how("greedy", NEW + 1), {}):
        with pytest.raises((MismatchError, ValueError)):
            run(corpus(tmp_path / "c.jsonl"), teacher, tmp_path / "c", **PROMPT, **changes)


def test_what_does_not_fit_is_halved_and_written_all_the_same(tmp_path, teacher, monkeypatch):
    path = corpus(tmp_path / "c.jsonl", [*ASKED, "Who stands"])
    told = PROMPT | {"batch_tokens": 4096, "max_reject_fraction": 0.5, "keep": TopK(k=4)}
    run(path, teacher, tmp_path / "whole", **told, **how("greedy"))
    honest, long = written.continuations, len(models.byte_tokenizer()(ASKED[0])["input_ids"])
    beyond = sum(len(models.byte_tokenizer()(text)["input_ids"]) == long for text in [*ASKED, "Who stands"])

    def tight(scorer, ids, keys, source):
        if len(ids) > 1 or ids.shape[1] == long:
            raise torch.OutOfMemoryError("no room")
        return honest(scorer, ids, keys, source)

    monkeypatch.setattr(written, "continuations", tight)
    summary = run(path, teacher, tmp_path / "tight", **told, **how("greedy"))
    assert dict(summary.rejects) == {"too_large": beyond}
    whole, found = read(tmp_path / "whole"), read(tmp_path / "tight")
    assert found
    assert len(whole) == len(found) + beyond
    assert all(row["input_ids"].tolist() == whole[key]["input_ids"].tolist() for key, row in found.items())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--generate", "greedy"], "generate .without --prompt_field or --messages_field"),
        (["--generate", "greedily", "--prompt_field", "ask"], "greedy, beams:B or sample"),
        (["--generate", "beams:1", "--prompt_field", "ask"], "num_beams"),
        (["--generate", "sample:top_p=2", "--prompt_field", "ask"], "top_p"),
        (["--generate", "greedy:3", "--prompt_field", "ask"], "greedy, beams:B or sample"),
        (["--generate", "greedy", "--prompt_field", "ask", "--completion_field", "ask"], "beside completion"),
        (
            ["--generate", "greedy", "--prompt_field", "ask", "--stride", "2"],
            "stride .a prompt is one window",
        ),
        (["--generate", "greedy", "--prompt_field", "ask", "--max_length", "20"], "max_length .no more than"),
        (["--generate", "greedy", "--prompt_field", "ask", "--max_new_tokens", "600"], "leaves no room"),
        (["--prompt_field", "ask"], "without completion_field or --generate"),
        (["--completion_field", "ask"], "completion_field alone"),
        (["--max_new_tokens", "5"], "--max_new_tokens has no effect without --generate"),
    ],
)
def test_nonsense_is_refused(tmp_path, teacher, words, named):
    told = ("--corpus", corpus(tmp_path / "c.jsonl"), "--teacher", teacher, "--task", "causal-lm")
    status, said = teachonce_main("precompute", *told, "--cache", tmp_path / "c", "--no_progress", *words)
    assert status == 2
    assert re.search(named, said), said


def test_other_tasks_write_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"generate .of this task. cannot be 'masked-lm'"):
        run("c.jsonl", "t", tmp_path / "c", task="masked-lm", prompt_field="ask", **how("greedy"))


def test_from_the_commands_to_a_student(tmp_path, teacher):
    path = corpus(tmp_path / "c.jsonl", [f"{text} {i}" for text, i in itertools.product(ASKED, range(6))])
    told = ("--corpus", path, "--teacher", teacher, "--prompt_field", "ask", "--generate", "sample:top_p=0.9")
    told += ("--max_new_tokens", "12", "--max_length", "64")
    status, said = teachonce_main("inspect", *told, "--rows", "1")
    assert status == 0, said
    assert "13 tokens, which the teacher answers" in said
    cache, begun = tmp_path / "c", ("--task", "causal-lm", "--cache", tmp_path / "c")
    status, planned = teachonce_main(
        "plan", *told, *begun, "--json", "--sample_tokens", "100", "--no_progress"
    )
    assert status == 0, planned
    status, said = teachonce_main(
        "precompute", *told, "--task", "causal-lm", "--cache", cache, "--no_progress"
    )
    assert status == 0, said
    for verb in (("verify", cache, "--teacher", teacher), ("inspect", cache)):
        status, said = teachonce_main(*verb)
        assert status == 0, said
    assert "sample:top_p=0.9" in said
    expected, tokens = json.loads(planned)["expected"], Cache.open(cache).record.totals.tokens
    assert expected["size_bytes"] == pytest.approx(Cache.open(cache).size_bytes, rel=0.35)
    assert tokens <= json.loads(planned)["tokens"], (
        "counted is what answers may have, reckoned with what they had"
    )
    student = ("--student", teacher, "--output_dir", tmp_path / "s", "--max_steps", "2", "--use_cpu")
    status, said = teachonce_main("train", "--cache", cache, *student, "--losses", "kl=1", "ce=0.1")
    assert status == 0, said
    status, said = teachonce_main("evaluate", "--cache", cache, "--student", tmp_path / "s")
    assert status == 0, said


def test_a_model_that_cannot_write_is_refused(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "can_generate", classmethod(lambda _: False))
    status, said = teachonce_main(
        *(
            "precompute",
            "--corpus",
            corpus(tmp_path / "c.jsonl"),
            "--teacher",
            teacher,
            "--task",
            "causal-lm",
        ),
        *("--prompt_field", "ask", "--generate", "greedy", "--max_length", "300"),
        *("--cache", tmp_path / "c", "--no_progress"),
    )
    assert status != 0
    assert "LlamaForCausalLM cannot write texts" in said
