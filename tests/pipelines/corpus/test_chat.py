"""Instruction data: what the student is to learn is supervised, and nothing else."""

import itertools
import json

import numpy as np
import pytest
from tokenizers import pre_tokenizers, processors

from pipelines.rejects import RejectedError
from tests.pipelines.corpus.test_windows import document, tokeniser
from tests.pipelines.models import byte_tokenizer

TALK = [
    {"role": "user", "content": "What is a cache?"},
    {"role": "assistant", "content": "What the teacher said: na\u00efve \U0001f600."},
    {"role": "user", "content": "And a shard?"},
    {"role": "assistant", "content": "A file."},
]


def supervised(maker, made):
    """The targets of all windows of a document, as text."""
    found = []
    for example in maker.examples(made):
        ids = np.frombuffer(example.input_ids, np.int32)
        places = np.arange(len(ids) - 1)
        if example.position_index is not None:
            places = np.frombuffer(example.position_index, np.int32)
        found += ids[places + 1].tolist()
    return maker.tokenizer.decode(found, skip_special_tokens=False)


def talk(messages):
    return document(json.dumps(messages))


@pytest.mark.parametrize("length", [400, 23])
@pytest.mark.parametrize("stride", [0, 3])
def test_only_the_assistants_turns_are_supervised_with_their_ends(length, stride):
    maker = tokeniser("messages", supervise="assistant", max_length=length, stride=stride)
    expected = "".join(m["content"] + "</s>" for m in TALK if m["role"] == "assistant")
    found = supervised(maker, talk(TALK))
    if length == 400 or stride:
        assert found == expected
    else:
        assert len(found) <= len(expected), "a window's first token has no context"


def test_all_is_every_token_but_the_first():
    maker = tokeniser("messages", supervise="all", max_length=400)
    whole = maker.tokenizer.apply_chat_template(TALK, tokenize=False)
    assert supervised(maker, talk(TALK)) == whole[1:]


def test_a_talk_without_an_assistant_has_nothing_to_learn():
    maker = tokeniser("messages", supervise="assistant", max_length=400)
    with pytest.raises(RejectedError, match="nothing_supervised"):
        list(maker.examples(talk(TALK[:1])))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[0].nothing.nothing }}",
        "{% for m in messages %}",
    ],
)
def test_a_template_that_fails_rejects_the_document(template):
    tokenizer = byte_tokenizer.__wrapped__()
    tokenizer.chat_template = template
    maker = tokeniser("messages", supervise="assistant", max_length=400, tokenizer=tokenizer)
    with pytest.raises(RejectedError, match="chat_template"):
        list(maker.examples(talk(TALK)))


def test_a_completion_is_supervised_with_the_end_of_text_and_its_prompt_is_not():
    made = document("Say what a cache is: ", "A dozen bytes a token.")
    maker = tokeniser("prompt", supervise="assistant", max_length=400)
    assert supervised(maker, made) == "A dozen bytes a token.</s>"
    whole = tokeniser("prompt", supervise="all", max_length=400)
    assert supervised(whole, made) == "ay what a cache is: A dozen bytes a token.</s>"


def test_a_token_that_overlaps_the_completion_belongs_to_it():
    maker = tokeniser("prompt", supervise="assistant", max_length=400)
    text, tokens = "the teacher", byte_tokenizer().tokenize
    cut = next(i for i in range(1, len(text)) if tokens(text[:i]) + tokens(text[i:]) != tokens(text))
    found = supervised(maker, document(text[:cut], text[cut:]))
    assert found.endswith(text[cut:] + "</s>")
    assert len(found) > len(text[cut:] + "</s>"), "the token that was cut is whole"


@pytest.mark.parametrize(
    ("prompt", "completion"), [("Answer: ", "teacher"), ("Answer:", " teacher"), ("Answer: ", "teacher</s>")]
)
def test_a_first_token_that_begins_in_the_prompts_blank_is_supervised(prompt, completion):
    maker = tokeniser("prompt", supervise="assistant", max_length=400)
    assert supervised(maker, document(prompt, completion)) == " teacher</s>"


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_characters_of_an_answer_are_all_supervised_however_offsets_are_told(trim_offsets, add_prefix_space):
    tokenizer = byte_tokenizer.__wrapped__()
    inner = tokenizer.backend_tokenizer
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    inner.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    maker = tokeniser("prompt", supervise="assistant", max_length=400, tokenizer=tokenizer)
    prompts = ["Q:", "Q: ", "Q:  ", "Q\n\n", "\u00e9\U0001f600 "]
    completions = ["teacher", " teacher", "\U0001f600\U0001f601", " .", "\n a"]
    for prompt, completion in itertools.product(prompts, completions):
        ids = tokenizer(prompt + completion + "</s>")["input_ids"]
        # by bytes, of which each token of this tokenizer has its own: the first that ends behind the prompt
        sizes = [len(byte_text(tokenizer, [token])) for token in ids]
        blank = sizes[0] > 0 and add_prefix_space and not prompt.startswith(" ")
        ends = np.cumsum(sizes) - blank
        first = int(np.argmax(ends > len(prompt.encode())))
        assert supervised(maker, document(prompt, completion)) == tokenizer.decode(ids[first:])


def byte_text(tokenizer, ids):
    """One character for each byte of the tokens."""
    return "".join(tokenizer.convert_ids_to_tokens(ids))
