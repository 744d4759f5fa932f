"""What is one error before a run, and what `inspect --corpus` shows of it: by the real commands."""

import json
import os

import pytest
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models

import teachonce
from pipelines.corpus import chat_templates as chat_module
from tests.pipelines import models
from tests.pipelines.helpers import compress, write_jsonl, write_parquet

TALK = {
    "messages": [
        {"role": "user", "content": "hi\x1b]52;c;aa\x07"},
        {"role": "assistant", "content": "yo\u202e"},
    ]
}
CHAT = ("--messages_field", "messages")
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A config and a tokenizer: of a teacher whose weights must not be looked for."""
    whole = models.causal_teacher(tmp_path_factory.mktemp("whole") / "t")
    (whole / "model.safetensors").unlink()
    return whole


@pytest.fixture
def templated(tokenizer_folder, tmp_path):
    """That folder with another chat template."""

    def made(template):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "t")
        (tmp_path / "t" / "config.json").write_bytes((tokenizer_folder / "config.json").read_bytes())
        return tmp_path / "t"

    return made


def inspect(capsys, corpus, teacher, *flags):
    status = teachonce.main(["inspect", "--corpus", str(corpus), "--teacher", str(teacher), *flags])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("verb", ["precompute", "plan", "inspect"])
def test_a_field_that_no_record_has_is_one_error_that_names_those_there_are(
    tmp_path, tokenizer_folder, capsys, verb, kind
):
    rows = [{"text": "a", "id": 1, "\x1b[31m": "x"}]
    write = write_jsonl if kind == "jsonl" else write_parquet
    corpus = write(tmp_path / f"c.{kind}", rows)
    cache = [] if verb == "inspect" else ["--task", "causal-lm", "--cache", str(tmp_path / "cache")]
    where = ["--corpus", str(corpus), "--teacher", str(tokenizer_folder), *cache]
    assert teachonce.main([verb, *where, "--text_field", "body"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--text_field body: none of the first 1 records" in line
    assert "\\x1b[31m, id, text" in line
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}", "is no template"),
        ("{{ raise_exception('No system role') }}", "No system role"),
        ("{{ messages[0].nothing.nothing }}", "no attribute 'nothing'"),
        ("{{ 'a' * 10**10 }}", "GiB of memory"),
        ("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, "did not end in 1 s"),
        ({"rag": TEMPLATE}, "no default"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_error(
    tmp_path, templated, capsys, monkeypatch, template, told
):
    chat_module.renderer().ask({"variables": []})  # so that the second is not spent on starting
    monkeypatch.setattr(chat_module, "SECONDS", 1.0)
    corpus = write_jsonl(tmp_path / "c.jsonl", [TALK])
    status, _, err = inspect(capsys, corpus, templated(template), *CHAT)
    assert status == 2
    [line] = err.splitlines()
    assert told in line


def test_a_template_that_needs_what_only_the_corpus_has_is_used(tmp_path, templated, capsys):
    needs = (
        "{% if not date_string %}{{ raise_exception('which day?') }}{% endif %}{{ date_string }}" + TEMPLATE
    )
    corpus = write_jsonl(tmp_path / "c.jsonl", [{**TALK, "date_string": "1 May"}, TALK])
    status, out, _ = inspect(capsys, corpus, templated(needs), *CHAT)
    assert status == 0
    assert "1 May<|user|>" in out
    assert "rejected: chat_template: expected a conversation" in out
    assert "refuses it: which day?" in out


def test_the_default_of_several_templates_is_used_and_that_for_tools_where_there_are_some(
    tmp_path, templated, capsys
):
    teacher = templated({"default": TEMPLATE, "tool_use": "{{ tools | tojson }}" + TEMPLATE})
    tools = json.dumps([{"type": "function", "function": {"name": "f"}}])
    corpus = write_jsonl(tmp_path / "c.jsonl", [TALK, {**TALK, "tools": tools}])
    status, out, _ = inspect(capsys, corpus, teacher, *CHAT, "--json")
    texts = ["".join(part["text"] for part in row["examples"][0]["text"]) for row in json.loads(out)]
    assert status == 0
    assert texts[1] == '[{"type": "function", "function": {"name": "f"}}]' + texts[0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tools": "no json"}, "field tools, expected a list of objects"),
        ({"tools": [3]}, "field tools, expected a list of objects"),
        ({"chat_template_kwargs": {"add_generation_prompt": True}}, "field chat_template_kwargs"),
    ],
)
def test_what_else_a_record_gives_the_template_is_checked(tmp_path, templated, capsys, fields, told):
    corpus = write_jsonl(tmp_path / "c.jsonl", [{**TALK, **fields}, TALK])
    status, out, _ = inspect(capsys, corpus, templated("{{ tools }}" + TEMPLATE), *CHAT)
    assert status == 0
    assert told in out


def test_tools_of_another_name_for_a_template_that_knows_none_are_refused(tmp_path, templated, capsys):
    corpus = write_jsonl(tmp_path / "c.jsonl", [TALK])
    status, _, err = inspect(capsys, corpus, templated(TEMPLATE), *CHAT, "--tools_field", "functions")
    assert status == 2
    assert "reads no tools" in err


@pytest.mark.parametrize("flags", [CHAT, ("--prompt_field", "p", "--completion_field", "c")])
def test_a_tokenizer_that_tells_no_offsets_is_one_error(
    tmp_path, tokenizer_folder, capsys, monkeypatch, flags
):
    slow = type("Slow", (transformers.PythonBackend,), {"vocab_size": 3, "get_vocab": lambda _: {}})
    opened = slow(eos_token="</s>", chat_template=TEMPLATE)
    monkeypatch.setattr(slow, "_tokenize", lambda _, text, **__: list(text))
    monkeypatch.setattr(slow, "_convert_token_to_id", lambda *_: 1)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: opened)
    corpus = write_jsonl(tmp_path / "c.jsonl", [{**TALK, "p": "a", "c": "b"}])
    status, _, err = inspect(capsys, corpus, tokenizer_folder, *flags)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "does not tell where its tokens stand" in err


def test_what_is_supervised_stands_in_brackets_or_in_colour_and_steers_no_terminal(
    tmp_path, tokenizer_folder, capsys, monkeypatch
):
    corpus = write_jsonl(tmp_path / "c.jsonl", [TALK, b"", b"{", {"messages": []}, TALK])
    status, out, _ = inspect(capsys, corpus, tokenizer_folder, *CHAT, "--rows", "3")
    assert status == 0
    assert "<|user|>hi\\x1b]52;c;aa\\x07</s><|assistant|>[[yo\\u202e</s>]]" in out
    assert [f"line {n}\n" in out for n in (1, 2, 3, 4, 5)] == [True, False, True, True, False]
    assert "rejected: not_json: expected one JSON object a line" in out
    assert "rejected: empty: field messages" in out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, coloured, _ = inspect(capsys, corpus, tokenizer_folder, *CHAT, "--rows", "1")
    assert "[[" not in coloured
    assert "\x1b[1;32myo\\u202e</s>\x1b[0m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[[yo" in inspect(capsys, corpus, tokenizer_folder, *CHAT, "--rows", "1")[1]


def test_labels_are_shown_as_they_are_read(tmp_path, capsys):
    teacher = models.classifier(tmp_path / "t", problem_type="multi_label_classification")
    corpus = write_jsonl(
        tmp_path / "c.jsonl", [{"text": "a\nb", "label": ["label1"]}, {"text": "a", "label": [7]}]
    )
    task = ("--task", "sequence-classification", "--label_field", "label")
    status, out, _ = inspect(capsys, corpus, teacher, *task)
    assert status == 0
    assert "label (0.0, 1.0, 0.0), read as names" in out
    assert "[CLS]a\\n\n    b[SEP]" in out
    assert "rejected: unknown_label: field label, expected a class" in out


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_plain_file_is_refused_before_it_is_opened(tmp_path, tokenizer_folder, capsys, kind):
    place = tmp_path / "c.jsonl"
    os.mkfifo(place) if kind == "pipe" else place.mkdir()
    status, _, err = inspect(capsys, place, tokenizer_folder)
    assert (status, len(err.splitlines())) == (2, 1)
    assert f"a {kind}" in err


def test_a_packed_line_beyond_the_limit_is_a_reject_and_the_next_is_read(tmp_path, tokenizer_folder, capsys):
    rows = [{"text": "a"}, {"text": "b" * 10**6}, {"text": "c"}]
    corpus = compress(write_jsonl(tmp_path / "c.jsonl", rows), ".zst")
    status, out, _ = inspect(
        capsys, corpus, tokenizer_folder, "--max_line_bytes", "1000", "--supervise", "all"
    )
    assert status == 0
    assert "line_too_long: expected at most 1,000 bytes a line (--max_line_bytes), got 1,000,012 bytes" in out
    assert "line 3\n" in out


def test_a_link_to_itself_matches_nothing(tmp_path, tokenizer_folder, capsys):
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "c.jsonl")
    status, _, err = inspect(capsys, tmp_path / "c.jsonl", tokenizer_folder)
    assert (status, len(err.splitlines())) == (2, 1)


def word_tokenizer():
    """Whole words, blanks left out."""
    inner = Tokenizer(token_models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


def test_of_a_tokenizer_without_blanks_the_answers_words_are_supervised(tmp_path, tokenizer_folder, capsys):
    word_tokenizer().save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "config.json").write_bytes((tokenizer_folder / "config.json").read_bytes())
    rows = [{"p": "a ", "c": "b a"}, {"p": "a", "c": " b"}, {"p": "a", "c": "b"}]
    corpus = write_jsonl(tmp_path / "c.jsonl", rows)
    flags = ("--prompt_field", "p", "--completion_field", "c", "--max_length", "16")
    _, out, _ = inspect(capsys, corpus, tmp_path / "t", *flags)
    assert [line.split("[[")[1].split() for line in out.splitlines() if "[[" in line][:2] == [
        ["b", "a", "</s>]]"],
        ["b", "</s>]]"],
    ]


CALLS = {
    "messages": [
        {"role": "user", "content": "weather?", "name": None},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "w"}}], "weight": 1},
        {"role": "tool", "content": "rain", "tool_call_id": "7"},
        {"role": "assistant", "content": "It rains.", "weight": 0},
    ],
    "tools": [{"type": "function", "function": {"name": "w"}}],
}
READS_CALLS = TEMPLATE.replace(
    "</s>", "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}</s>"
)


@pytest.mark.parametrize(
    ("template", "unread"),
    [
        (
            TEMPLATE,
            ["tool_call_id (2 of them)", "tool_calls (2 of them)", "tools (2 of them)", "weight (2 of them)"],
        ),
        (READS_CALLS, ["tool_call_id (2 of them)", "tools (2 of them)", "weight (2 of them)"]),
        (READS_CALLS + "{{ tools and tools | tojson }}", ["tool_call_id (2 of them)", "weight (2 of them)"]),
        (TEMPLATE + "{{ messages | tojson }}{{ tools }}", []),
    ],
)
def test_what_a_template_does_not_read_of_a_conversation_is_told(
    tmp_path, templated, capsys, template, unread
):
    """Whatever its name: what changes no text when it is taken away."""
    corpus = write_jsonl(tmp_path / "c.jsonl", [CALLS, TALK, CALLS])
    _, _, err = inspect(capsys, corpus, templated(template), *CHAT)
    told = [line for line in err.splitlines() if "does not read" in line]
    expected = (
        f" teachonce: of the first 3 conversations the chat template does not read: {', '.join(unread)}. "
    )
    assert [line[24:] for line in told] == ([expected + "The teacher will not see it"] if unread else [])


def test_a_corpus_without_a_record_is_told(tmp_path, tokenizer_folder, capsys):
    (tmp_path / "c.jsonl").write_text("\n\n")
    assert inspect(capsys, tmp_path / "c.jsonl", tokenizer_folder) == (0, "the corpus holds no record\n", "")
    assert inspect(capsys, tmp_path / "c.jsonl", tokenizer_folder, "--json") == (0, "[]\n", "")
