"""Whole conversations: what reaches the template, and which of its text is an answer."""

import json

import numpy as np
import pytest
import transformers

from pipelines import CorpusConfig
from pipelines.corpus import chat_templates as chat_module
from pipelines.corpus.documents import Source, read_document
from pipelines.corpus.lines import Record
from pipelines.rejects import RejectedError
from schemas.errors import TeacherError
from tests.pipelines import models
from tests.pipelines.corpus.test_chat import TALK, talk
from tests.pipelines.corpus.test_windows import document, tokeniser
from tests.pipelines.helpers import read, run, write_jsonl
from tests.pipelines.models import byte_tokenizer

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
WEATHER = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "reasoning_content": "look it up", "tool_calls": [CALL]},
    {"role": "tool", "name": "get_weather", "tool_call_id": "7", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]
BODY = (
    "{{ m.content if m.content is string else '' }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "{% if m.tool_call_id %}<for>{{ m.tool_call_id }}{{ m.name }}</for>{% endif %}"
)
HEAD = "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{{ date_string or '' }}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
ADDS = HEAD + "{% for m in messages %}<|{{ m.role }}|>" + BODY + "</s>{% endfor %}" + PROMPT
MARKS = (
    HEAD + "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
    "{%- generation %}"
    + BODY
    + "</s>{% endgeneration -%}{% else %}"
    + BODY
    + "</s>{% endif %}\n{% endfor %}"
    + PROMPT
)
THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}</s>{% endfor %}"
    + PROMPT
)
R1 = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{% if m.role == 'assistant' %}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
COUNTS = (
    "{{ messages | length }} messages{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    + PROMPT
)
ENDS = THINKS.replace("<think></think>", "").replace(
    "{% endfor %}", "{% endfor %}{% if not add_generation_prompt %}END{% endif %}"
)


def chat(template, **changes):
    tokenizer = byte_tokenizer.__wrapped__()
    tokenizer.chat_template = template
    return tokeniser("messages", supervise="assistant", max_length=400, tokenizer=tokenizer, **changes)


def answers(maker, messages, **given):
    """Of each example the whole text, and what is supervised in it."""
    made = document(json.dumps(messages))._replace(given=json.dumps(given))
    found = []
    for example in maker.examples(made):
        ids = np.frombuffer(example.input_ids, np.int32)
        places = np.arange(len(ids) - 1)
        if example.position_index is not None:
            places = np.frombuffer(example.position_index, np.int32)
        found.append((maker.tokenizer.decode(ids), maker.tokenizer.decode(ids[places + 1])))
    return found


@pytest.mark.parametrize("template", [ADDS, MARKS])
def test_whole_messages_and_what_else_the_template_reads_reach_it(template):
    maker = chat(template)
    [(text, found)] = answers(maker, WEATHER, tools=TOOLS, date_string="1 May")
    plain = maker.tokenizer.apply_chat_template(WEATHER, tools=TOOLS, date_string="1 May", tokenize=False)
    assert text == plain
    call = "<think>look it up</think><call>" + json.dumps(CALL["function"]) + "</call></s>"
    assert found == call + "It rains.</s>"


@pytest.mark.parametrize("messages", [TALK, WEATHER, TALK[:1] + TALK[1:2] * 2])
def test_marked_answers_are_those_that_transformers_masks(messages):
    maker = chat(MARKS)
    options = {"return_assistant_tokens_mask": True, "return_dict": True}
    truth = maker.tokenizer.apply_chat_template(messages, tools=TOOLS, **options)
    [example] = maker.examples(document(json.dumps(messages))._replace(given=json.dumps({"tools": TOOLS})))
    ids = np.frombuffer(example.input_ids, np.int32)
    mask = np.zeros(len(ids), int)
    mask[np.frombuffer(example.position_index, np.int32) + 1] = 1
    assert ids.tolist() == truth["input_ids"]
    assert mask.tolist() == truth["assistant_masks"]


@pytest.mark.parametrize(
    ("template", "endings"),
    [
        (THINKS, ["<think></think>{}</s>", "<think></think>{}</s>"]),
        (R1, ["{}</s>", "{}</s>"]),
        (COUNTS, ["{}</s>", "{}</s>"]),
        (ENDS, ["{}</s>END", "{}</s>END"]),
    ],
)
def test_a_template_that_rewrites_earlier_turns_gives_one_example_a_turn(template, endings):
    maker = chat(template)
    found = answers(maker, TALK)
    turns = [i for i, message in enumerate(TALK) if message["role"] == "assistant"]
    texts = [maker.tokenizer.apply_chat_template(TALK[: turn + 1], tokenize=False) for turn in turns]
    expected = [end.format(TALK[turn]["content"]) for end, turn in zip(endings, turns, strict=True)]
    if template is R1:  # its generation prompt is no part of the text, and earlier turns stay: one example
        assert found == [(texts[-1], "".join(expected))]
    else:
        assert found == list(zip(texts, expected, strict=True))
    examples = list(maker.examples(talk(TALK)))
    assert [(e.window_index, e.window_count) for e in examples] == [
        (i, len(found)) for i in range(len(found))
    ]
    assert len({e.id for e in examples}) == len(examples)
    again = list(maker.examples(talk(TALK), known=[0]))
    assert again == examples[1:]


def test_a_conversation_may_begin_with_its_answer():
    found = answers(chat(ADDS), [TALK[1], TALK[0], TALK[3]])
    assert [answer for _, answer in found] == [TALK[1]["content"] + "</s>", TALK[3]["content"] + "</s>"]
    assert found[1][0].startswith(found[0][0])


def test_a_template_that_prints_a_list_of_parts_as_python_does_rejects_the_document():
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, TALK[1]]
    with pytest.raises(RejectedError) as caught:
        answers(chat("{% for m in messages %}{{ m.content }}{% endfor %}"), parts)
    assert "knows strings alone" in caught.value.got
    knows = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    )
    [(text, _)] = answers(chat(knows + "{{ p.text }}{% endfor %}{% endif %}{% endfor %}" + PROMPT), parts)
    assert text == "a" + TALK[1]["content"]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "refuses it: Roles must alternate"),
        ("{{ raise_exception('About ' + messages[0].content) }}", "refuses it"),
        ("{{ messages[0].nothing.nothing }}", "has no attribute 'nothing'"),
        ("{% for m in messages %}", "is no template: Unexpected end"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ 'a' * 10**10 }}", "of memory"),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "of memory",
        ),
        ("{% for i in range(99999) %}{{ 'abcdefgh' * 100 }}{% endfor %}", "characters of a conversation"),
    ],
)
def test_a_template_that_fails_says_so_in_its_own_words_without_the_text(template, told):
    with pytest.raises(RejectedError) as caught:
        answers(chat(template), TALK)
    assert told in caught.value.got
    assert TALK[0]["content"] not in caught.value.got


def test_a_template_without_an_end_is_stopped_and_the_third_time_fails_the_run(monkeypatch):
    loops = (
        "{% if messages | length > 3 %}"
        + "{% for a in range(99999) %}" * 3
        + "{% endfor %}" * 3
        + "{% endif %}"
    )
    maker = chat(loops + ADDS)
    [(_, found)] = answers(maker, TALK[:2])
    monkeypatch.setattr(chat_module, "SECONDS", 0.5)
    for _ in range(2):
        with pytest.raises(RejectedError) as caught:
            answers(maker, TALK)
        assert "did not end in 0.5 s" in caught.value.got
    with pytest.raises(TeacherError, match="too long or too much"):
        answers(maker, TALK)
    monkeypatch.undo()
    assert answers(maker, TALK[:2])[0][1] == found, "and the next process goes on"


def test_a_run_stores_each_turn_with_its_tools_and_knows_them_again(tmp_path, monkeypatch):
    template = THINKS.replace("{{ m.content }}", BODY)
    monkeypatch.setattr(models, "CHAT_TEMPLATE", HEAD + template)
    models.byte_tokenizer.cache_clear()
    teacher = models.causal_teacher(tmp_path / "t")
    models.byte_tokenizer.cache_clear()
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"messages": WEATHER, "tools": json.dumps(TOOLS)}])
    flags = {"messages_field": "messages", "supervise": "assistant", "max_length": 512}
    first = run(corpus, teacher, tmp_path / "c", **flags)
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    rows = sorted(read(tmp_path / "c").values(), key=lambda row: row["window_index"])
    expected = [tokenizer.apply_chat_template(WEATHER[:end], tools=TOOLS, tokenize=False) for end in (2, 4)]
    assert [tokenizer.decode(row["input_ids"]) for row in rows] == expected
    found = [tokenizer.decode(row["input_ids"][row["positions"] + 1]) for row in rows]
    assert found[1] == "<think></think>It rains.</s>"
    assert found[0].endswith("</call></s>")
    assert (first.new_documents, first.totals.examples) == (1, 2)
    again = run(corpus, teacher, tmp_path / "c", **flags)
    assert (again.committed, again.known_documents) == (False, 1)
    other = [{"messages": WEATHER, "tools": json.dumps(TOOLS[:0])}, {"messages": WEATHER}]
    third = run(write_jsonl(tmp_path / "d.jsonl", other), teacher, tmp_path / "c", **flags)
    assert third.new_documents == 2, "what the template is given makes another document"


def test_a_plain_conversation_has_the_hash_that_it_always_had():
    corpus = CorpusConfig(files=("c",), messages_field="messages")
    plain = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    forms = [plain, [{"content": m["content"], "role": m["role"], "tool_calls": None} for m in plain]]
    for messages in forms:
        record = Record(0, json.dumps({"messages": messages, "tools": TOOLS, "other": 1}).encode())
        found, _ = read_document(record, Source("c", 0), corpus, None, "jsonl", variables=["documents"])
        assert found.hash.hex() == "950f012e5abeff1252265f61f6201d19"
        more, _ = read_document(record, Source("c", 0), corpus, None, "jsonl", variables=["tools"])
        assert more.hash != found.hash
