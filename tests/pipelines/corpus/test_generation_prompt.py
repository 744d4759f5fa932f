"""A chat template that does not heed `add_generation_prompt` is warned of, where that matters; others are not."""

import shutil

import pytest
import transformers

import teachonce
from pipelines.corpus.chat_templates import Chat
from tests.pipelines import models
from tests.pipelines.helpers import write_jsonl
from tests.pipelines.models import byte_tokenizer

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
HEEDS = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
THINKS = TURNS + "{% if add_generation_prompt %}<|assistant|><think></think>{% endif %}"
TEMPLATES = {
    "turns": (TURNS, "<|assistant|>", "<|assistant|>"),
    "marked answers": (MARKED, "", "<|assistant|>"),
    "no words before an answer": (BRACKETS, "", ""),
    "heeds it": (HEEDS, "", ""),
    "says more when asked": (THINKS, "", ""),
    "refuses all": ("{{ raise_exception('no') }}", "", ""),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_words_that_begin_an_answer(name):
    template, supervised, unasked = TEMPLATES[name]
    tokenizer = byte_tokenizer().__class__(tokenizer_object=byte_tokenizer().backend_tokenizer)
    tokenizer.chat_template = template
    assert Chat(tokenizer).unheeded(prompt=False) == supervised
    assert Chat(tokenizer).unheeded(prompt=True) == unasked


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "'<|assistant|>', which begins an answer, is supervised as part of it"),
        (
            ("--generate", "greedy"),
            "'<|assistant|>', which begins an answer, is not said when the teacher is asked",
        ),
        (("--supervise", "all"), None),
    ],
)
def test_it_is_told_before_the_teacher_runs(tmp_path, capsys, flags, words):
    teacher = models.causal_teacher(tmp_path / "teacher")
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    tokenizer.chat_template = TURNS
    shutil.rmtree(teacher / "additional_chat_templates", ignore_errors=True)
    tokenizer.save_pretrained(teacher)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    asked = talk[:1] if "--generate" in flags else talk
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"messages": asked}])
    line = ["inspect", "--corpus", corpus, "--teacher", teacher, "--messages_field", "messages", *flags]
    capsys.readouterr()  # what was told while the teacher was made
    assert teachonce.main([str(word) for word in line]) == 0
    err = capsys.readouterr().err
    assert (err.count("\n"), words in err) == (1, True) if words else err == ""


def test_supervise_without_answers_is_refused(tmp_path, capsys):
    teacher = models.causal_teacher(tmp_path / "teacher")
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": "one"}])
    line = ["inspect", "--corpus", corpus, "--teacher", teacher, "--supervise"]
    assert teachonce.main([str(word) for word in (*line, "assistant")]) == 2
    assert "--supervise assistant has no effect on texts without answers" in capsys.readouterr().err
    assert teachonce.main([str(word) for word in (*line, "all")]) == 0
