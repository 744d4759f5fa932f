"""Windows: over any document, length and stride each token that has context is a target exactly once."""

import itertools
import random

import numpy as np
import pytest

from pipelines.corpus.documents import Document
from pipelines.corpus.tokenization import Tokeniser
from pipelines.rejects import RejectedError
from pipelines.tasks.causal_lm import NextTokens
from pipelines.tasks.windows import Tokens, edges, edges_of_texts
from schemas import Spec
from schemas.policies import KeepAll
from tests.pipelines.models import TEXT, byte_tokenizer

SPEC = {"task": "causal-lm", "score": "softmax", "vocab_size": 300, "keep": KeepAll(), "max_length": 16}


def windows(tokens, max_length, stride):
    return NextTokens(Spec(**SPEC | {"max_length": max_length, "stride": stride})).windows(tokens)


def tokens_of(length, prefix=0, suffix=0, supervised=None):
    """A document of `length` tokens of its own between special ones; a token's id is its place."""
    total = prefix + length + suffix
    special = np.ones(total, bool)
    special[prefix : prefix + length] = False
    ids = np.arange(total, dtype=np.int32)
    supervised = np.ones(total, bool) if supervised is None else supervised
    return Tokens(ids, np.zeros(total, np.int32), special, supervised)


def targets(found):
    """The document's tokens that the windows predict, in order of the windows."""
    return [int(t) for window in found for t in window.tokens[window.positions + 1]]


def with_context(length, prefix, suffix, max_length, stride):
    """The tokens that must be targets, by the words of the law: each where it is new, if something is before it."""
    body = max_length - prefix - suffix
    expected = []
    for place in range(length):
        number = 0 if place < body else 1 + (place - body) // (body - stride)
        before = prefix + place - number * (body - stride)
        if before >= 1:
            expected.append(prefix + place)
    return expected + list(range(max(1, prefix + length), prefix + length + suffix))


def cases(count):
    dice = random.Random(0)
    for _ in range(count):
        prefix, suffix, length = dice.randrange(3), dice.randrange(3), dice.randrange(1, 60)
        max_length = prefix + suffix + dice.randrange(1, 20)
        stride = dice.randrange(max_length - prefix - suffix)
        if max_length >= 2:
            yield length, prefix, suffix, max_length, stride


def test_the_edges_of_many_texts_are_those_of_each():
    dice = random.Random(0)
    for _ in range(200):
        texts = [np.array([dice.random() < 0.5 for _ in range(dice.randrange(6))], bool) for _ in range(5)]
        known = [edges(tokens_of(len(text))._replace(special=text)) for text in texts]
        assert edges_of_texts(np.concatenate(texts), np.cumsum([len(text) for text in texts])) == known


def test_each_token_with_context_is_a_target_exactly_once():
    for length, prefix, suffix, max_length, stride in cases(3000):
        found = windows(tokens_of(length, prefix, suffix), max_length, stride)
        assert targets(found) == with_context(length, prefix, suffix, max_length, stride)


def test_only_supervised_tokens_are_targets_each_once():
    dice = np.random.default_rng(0)
    for length, prefix, suffix, max_length, stride in cases(1000):
        supervised = dice.random(prefix + length + suffix) < 0.3
        found = windows(tokens_of(length, prefix, suffix, supervised), max_length, stride)
        every = with_context(length, prefix, suffix, max_length, stride)
        assert targets(found) == [t for t in every if supervised[t]]
        assert all(len(window.positions) for window in found)


def test_windows_are_stretches_that_cover_the_document_and_share_the_stride():
    for length, prefix, suffix, max_length, stride in cases(1000):
        if max_length - suffix == 1:
            continue  # one token a window has no context anywhere
        found = windows(tokens_of(length, prefix, suffix), max_length, stride)
        bodies = []
        for window in found:
            assert len(window.tokens) <= max_length
            assert window.tokens[:prefix].tolist() == list(range(prefix))
            body = window.tokens[(window.tokens >= prefix) & (window.tokens < prefix + length)]
            assert body.tolist() == list(range(body[0], body[-1] + 1))
            bodies.append(body)
        for before, after in itertools.pairwise(bodies):
            assert before[-1] - after[0] + 1 == stride
        covered = {t for body in bodies for t in body.tolist()}
        lost = set(range(prefix, prefix + length)) - covered
        assert lost <= {prefix + length - 1}, "only a last token without context may have no window"
        assert not lost or prefix + stride == 0 or length == 1


def tokeniser(kind="text", *, bert=False, task="causal-lm", tokenizer=None, **changes):
    opened = tokenizer or byte_tokenizer(bert=bert)
    spec = Spec(**SPEC | {"task": task} | changes)
    return Tokeniser.of(opened, spec, kind, "tokenizer-hash")


def document(text, pair=None, key=None):
    return Document(b"h" * 16, key, text, pair, None, "c.jsonl", 0)


@pytest.mark.parametrize("bert", [False, True])
@pytest.mark.parametrize("stride", [0, 5])
def test_examples_of_real_text_hold_its_tokens_in_order(bert, stride):
    maker = tokeniser(bert=bert, stride=stride)
    text = " ".join(TEXT)
    every = maker.tokenizer(text)["input_ids"]
    examples = list(maker.examples(document(text)))
    assert {example.window_count for example in examples} == {len(examples)}
    assert [example.window_index for example in examples] == list(range(len(examples)))
    assert len({example.id for example in examples}) == len(examples)
    found = every[:2] if bert else every[:1]
    for example in examples:
        ids = np.frombuffer(example.input_ids, np.int32)
        places = np.arange(len(ids) - 1)
        if example.position_index is not None:
            places = np.frombuffer(example.position_index, np.int32)
        new = ids[places + 1].tolist()
        found = [*found, *(new[1:] if bert and example.window_index == 0 else new)]
        assert example.position_index is None or len(places) < len(ids) - 1
    lost = 0 if stride or bert else len(examples) - 1
    assert len(found) == len(every) - lost
    assert found == every or lost


def test_known_windows_are_left_out_and_the_others_keep_their_ids():
    maker = tokeniser()
    every = list(maker.examples(document(" ".join(TEXT))))
    some = list(maker.examples(document(" ".join(TEXT)), known=[0, 2]))
    assert some == [example for example in every if example.window_index not in (0, 2)]


def test_how_a_document_is_tokenised_is_part_of_every_id():
    same = {next(tokeniser().examples(document(TEXT[0]))).id for _ in range(2)}
    changes = [{"max_length": 17}, {"stride": 1}, {"supervise": "assistant"}]
    others = {next(tokeniser(**change).examples(document(TEXT[0]))).id for change in changes}
    assert len(same | others) == 4


def test_a_long_text_to_classify_gives_windows_of_one_position_each():
    maker = tokeniser(bert=True, task="sequence-classification", has_token_type_ids=True, stride=3)
    examples = list(maker.examples(document(" ".join(TEXT))))
    body = []
    for example in examples:
        ids = np.frombuffer(example.input_ids, np.int32).tolist()
        assert (ids[0], ids[-1], len(ids) <= 16) == (2, 3, True)
        assert np.frombuffer(example.position_index, np.int32).tolist() == [0]
        body += ids[1:-1] if example.window_index == 0 else ids[4:-1]
    assert [2, *body, 3] == maker.tokenizer(" ".join(TEXT))["input_ids"]


def test_a_pair_is_one_window_cut_longest_first():
    maker = tokeniser(bert=True, task="sequence-classification", has_token_type_ids=True, has_text_pair=True)
    [example] = maker.examples(document(" ".join(TEXT), "Two."))
    ids, types = (np.frombuffer(part, np.int32) for part in (example.input_ids, example.token_type_ids))
    second = maker.tokenizer("Two.", add_special_tokens=False)["input_ids"]
    assert len(ids) == 16
    assert ids[types == 1].tolist() == [*second, 3]
    assert example.text_pair == "Two."
    [whole] = maker.examples(document("A", "B"))
    assert np.frombuffer(whole.input_ids, np.int32).tolist() == maker.tokenizer("A", "B")["input_ids"]


@pytest.mark.parametrize("bert", [False, True])
@pytest.mark.parametrize("pair", [None, "Two."])
def test_documents_that_are_tokenised_together_give_the_same_examples(bert, pair):
    kind = {"task": "sequence-classification", "has_token_type_ids": bert} if pair else {"stride": 3}
    maker = tokeniser(bert=bert, **kind)
    texts = [*TEXT, " ".join(TEXT), "x", "", TEXT[0]]
    batch = [(document(text, pair), [0] if text == TEXT[1] else []) for text in texts]
    alone = []
    for one, known in batch:
        try:
            alone.append(list(maker.examples(one, known)))
        except RejectedError as error:
            alone.append(str(error))
    together = [one if isinstance(one, list) else str(one) for one in maker.batch(batch)]
    assert together == alone
    assert pair or any(isinstance(one, str) for one in together)
