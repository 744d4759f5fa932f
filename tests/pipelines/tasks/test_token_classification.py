"""Words and their labels, under tokenizers that treat blanks in every way there is: which token, and which class."""

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from pipelines.corpus.documents import Document
from pipelines.corpus.labels import LabelMap
from pipelines.corpus.tokenization import Tokeniser
from pipelines.corpus.words import read_words, span_labels, word_labels
from pipelines.rejects import RejectedError
from schemas import Spec
from schemas.policies import KeepAll
from tests.pipelines.models import byte_tokenizer

IOB = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
IOBES = (*IOB, "E-PER", "S-PER", "E-LOC", "S-LOC")
PLAIN = ("O", "PER", "LOC")
TEXTS = ["Ada Lovelace met", "Ada  met  London", " Ada met ", "\u00e9t\u00e9 \u5317\u4eac met ."]


def of_characters(pre_tokenizer):
    """A tokenizer whose tokens are single characters, all that there are."""
    found = {"[UNK]": 0} | {one: at for at, one in enumerate(sorted({"\u2581", *"".join(TEXTS)}), 1)}
    made = Tokenizer(models.BPE(found, [], unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizer
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "metaspace": lambda: of_characters(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "metaspace, a blank before": lambda: of_characters(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "words": lambda: of_characters(pre_tokenizers.Whitespace()),
}


def maker(name, names=IOB, **changes):
    spec = {"task": "token-classification", "score": "softmax", "vocab_size": len(names), "keep": KeepAll()}
    spec |= {"max_length": 200, "label_names": names} | changes
    return Tokeniser.of(TOKENIZERS[name](), Spec(**spec), "text", "tokenizer-hash")


def read(tokeniser, document):
    """Of each position the token's number and its class."""
    (example,) = tokeniser.examples(document)
    places, gold = (
        np.frombuffer(part, np.int32).tolist() for part in (example.position_index, example.gold_ids)
    )
    return places, [tokeniser.spec.label_names[one] for one in gold]


def of_spans(text, *spans, names=IOB):
    labels = LabelMap.of(names, len(names), "softmax")._replace(by_word=True)
    told = [{"start": start, "end": end, "label": label} for start, end, label in spans]
    label = span_labels(told, labels, "entities", text)
    return Document(b"0" * 16, None, text, None, label, "c.jsonl", 0)


def of_words(words, tags, names=IOB):
    labels = LabelMap.of(names, len(names), "softmax")._replace(by_word=True)
    text, spans, _ = read_words(words, "tokens")
    label = word_labels(tags, labels, "tags", len(words))
    return Document(b"0" * 16, None, text, None, label, "c.jsonl", 0, words=spans)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_position_is_on_the_token_of_a_words_first_letter_and_blanks_are_no_words(name, text):
    tokeniser, words = maker(name), text.split()
    offsets = tokeniser.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    places, _ = read(tokeniser, of_spans(text))
    begins = [text.index(word) for word in words]
    assert len(places) == len(words)
    for place, begin in zip(places, begins, strict=True):
        start, end = offsets[place]
        assert start <= begin < end
        assert not text[start:begin].strip()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_and_spans_say_the_same(name):
    words, tags = ["Ada", "Lovelace", "met", "London"], ["B-PER", "I-PER", "O", "B-LOC"]
    tokeniser = maker(name)
    spans = of_spans(" ".join(words), (0, 12, "PER"), (17, 23, "LOC"))
    assert read(tokeniser, of_words(words, tags)) == read(tokeniser, spans)


@pytest.mark.parametrize("span", [(0, 3), (0, 4), (1, 2), (2, 4)])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_span_is_of_the_words_that_it_shares_a_letter_with(name, span):
    """A blank at its end is no word's, and part of a word is all of it."""
    assert read(maker(name), of_spans("Ada met", (*span, "PER")))[1] == ["B-PER", "O"]


@pytest.mark.parametrize(
    ("names", "one", "two", "three"),
    [
        (IOB, ["B-PER"], ["B-PER", "I-PER"], ["B-PER", "I-PER", "I-PER"]),
        (IOBES, ["S-PER"], ["B-PER", "E-PER"], ["B-PER", "I-PER", "E-PER"]),
        (PLAIN, ["PER"], ["PER"] * 2, ["PER"] * 3),
        (("O", "I-PER"), ["I-PER"], ["I-PER"] * 2, ["I-PER"] * 3),
    ],
)
def test_the_classes_of_a_span_are_the_teachers(names, one, two, three):
    for end, expected in ((3, one), (7, two), (14, three)):
        document = of_spans("Ada met London .", (0, end, "PER"), names=names)
        found = read(maker("words", names), document)[1]
        assert found == [*expected, *["O"] * (4 - len(expected))]


@pytest.mark.parametrize(
    ("names", "label", "got"),
    [
        (IOB, "B-PER", "a class of one word, as span 1"),
        (IOB, "ORG", "a string that names none, as span 1"),
        (("O", "B-1", "I-1"), 1, "a whole number, as span 1"),
        (("O", "B-PER", "B-PER", "I-PER"), "PER", "a name that several classes have, as span 1"),
    ],
)
def test_a_label_that_is_none_or_two_is_rejected_with_its_place(names, label, got):
    with pytest.raises(RejectedError) as caught:
        of_spans("Ada met", (0, 3, label), names=names)
    assert caught.value.got == got
    with pytest.raises(RejectedError) as caught:
        of_words(["Ada", "met"], ["O", 1])
    assert (caught.value.got, caught.value.expected) == (
        "a whole number, as label 2",
        "a class by the teacher's name",
    )


@pytest.mark.parametrize("stride", [0, 3])
def test_over_windows_each_word_is_a_position_once_and_on_its_own_token(stride):
    """Windows that a word is cut by, and one inside a word, which has none."""
    words = ["Ada", "Lovelace", "met", "London", "Ada", "met"]
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-PER", "O"]
    whole, cut, document = maker("bytes"), maker("bytes", max_length=7, stride=stride), of_words(words, tags)
    (tokens,) = cut.texts(document)
    windows = cut.inputs.windows(tokens)
    found = [place for window in windows for place in window.tokens[window.positions].tolist()]
    gold = [IOB[one] for window in windows for one in window.gold]
    assert len(windows) > 2
    assert (found, gold) == read(whole, document)
    assert gold == tags
