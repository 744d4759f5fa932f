"""Masks: so many, where they may stand, by chance, by word; and a cache says what plain transformers says of them."""

from collections import Counter

import numpy as np
import pytest
import transformers

from pipelines.corpus.documents import Document
from pipelines.corpus.tokenization import Tokeniser
from pipelines.tasks.masked_lm import TASK
from schemas import Cache, Spec
from schemas.errors import UsageError
from schemas.policies import KeepAll
from schemas.tasks import MASKED_LM
from tests.pipelines import families, models
from tests.pipelines.families import masked_teacher, masked_words, teachonce_main
from tests.pipelines.helpers import decoded, run, write_jsonl
from tests.pipelines.models import TEXT
from tests.pipelines.oracle import Oracle, check_row

LONG = " ".join(TEXT * 2)
AUTO = transformers.AutoModelForMaskedLM


def maker(**changes):
    settings = {name: changes.pop(name) for name in dict(MASKED_LM.settled({})) if name in changes}
    spec = {"task": "masked-lm", "score": "softmax", "vocab_size": 301, "keep": KeepAll(), "max_length": 24}
    spec |= {"task_settings": MASKED_LM.settled(settings)} | changes
    return Tokeniser.of(masked_words(), Spec(**spec), "text", "tokenizer-hash")


def document(text, number=0, pair=None):
    return Document(number.to_bytes(16, "big"), None, text, pair, None, "c.jsonl", 0)


def arrays(example):
    return tuple(
        np.frombuffer(part, np.int32)
        for part in (example.input_ids, example.position_index, example.gold_ids)
    )


def written(example):
    ids, places, gold = arrays(example)
    ids = ids.copy()
    ids[places] = gold
    return ids


@pytest.mark.parametrize("stride", [0, 5])
@pytest.mark.parametrize("share", [0.001, 0.15, 0.5, 1.0])
def test_so_many_tokens_are_positions_and_none_is_special_or_seen_before(stride, share):
    found = maker(stride=stride, mlm_probability=share)
    text = f"{LONG} a </s> written out, a [MASK] and <pad>"
    ids = np.array(found.tokenizer(text)["input_ids"])
    special, seen = found.tokenizer.all_special_ids, []
    for number, example in enumerate(found.examples(document(text))):
        own, (_, places, gold) = written(example), arrays(example)
        new = own[1 + (stride if number else 0) : -1]
        candidates = np.flatnonzero(~np.isin(new, special))
        assert len(places) == max(1, round(share * len(candidates)))
        assert (np.diff(places) > 0).all()
        assert not np.isin(gold, special).any()
        assert places.min() >= 1 + (stride if number else 0)
        assert (own[0], own[-1]) == (2, 3)
        seen += new.tolist()
    assert seen == ids[1:-1].tolist(), "restored, the windows are the text"


def test_masks_are_a_function_of_example_and_seed_and_each_view_has_its_own():
    one, again, other = (list(maker(views=4, sample_seed=s).examples(document(LONG))) for s in (0, 0, 1))
    assert one == again
    assert not {example.id for example in one} & {example.id for example in other}
    assert len({example.id for example in one}) == len(one)
    assert [example.columns for example in one[:5]] == [(0,), (1,), (2,), (3,), (0,)]
    assert {example.window_count for example in one} == {len(one)}
    by_window = [[arrays(example)[1].tolist() for example in one[i : i + 4]] for i in range(0, len(one), 4)]
    assert all(len({tuple(places) for places in views}) > 1 for views in by_window[:-1])
    assert all((written(one[i]) == written(one[i + 3])).all() for i in range(0, len(one), 4))


def test_a_window_that_is_known_is_left_out_and_the_others_stay_the_same():
    found = maker(views=2)
    every = list(found.examples(document(LONG)))
    assert list(found.examples(document(LONG), known=[0, 3])) == [every[1], every[2], *every[4:]]


def test_the_teacher_sees_masks_random_tokens_and_the_tokens_themselves_by_their_shares():
    found = maker(mlm_probability=0.5, mask_replace_prob=0.6, random_replace_prob=0.3, max_length=128)
    kinds, random, places = Counter(), [], Counter()
    for number in range(400):
        for example in found.examples(document(TEXT[0], number)):
            ids, at, gold = arrays(example)
            places.update(at.tolist())
            for shown, right in zip(ids[at].tolist(), gold.tolist(), strict=True):
                kind = "mask" if shown == 300 else "same" if shown == right else "random"
                kinds[kind] += 1
                random += [shown] * (kind == "random")
    total = sum(kinds.values())
    for kind, share in (("mask", 0.6), ("random", 0.3 * (1 - 1 / 296)), ("same", 0.1 + 0.3 / 296)):
        assert abs(kinds[kind] / total - share) < 4 * (share * (1 - share) / total) ** 0.5, kind
    assert not set(random) & set(found.tokenizer.all_special_ids)
    assert len(set(random)) > 250
    counts = np.array([places[place] for place in sorted(places)])
    assert abs(counts - counts.mean()).max() < 5 * 10, "each token is as likely as any other"


def test_whole_words_are_hidden_whole():
    found = maker(whole_word_mask=True, mask_replace_prob=1.0, random_replace_prob=0.0, max_length=128)
    sizes = []
    for number in range(100):
        for example in found.examples(document(LONG, number)):
            ids, places, _ = arrays(example)
            own = written(example)
            letters = found.tokenizer.convert_ids_to_tokens(own.tolist())
            begins = np.array([letter.startswith("\u0120") or not letter.isalpha() for letter in letters])
            word = np.cumsum(begins)
            hidden = {int(word[place]) for place in places}
            inside = np.flatnonzero(np.isin(word, list(hidden)) & ~np.isin(own, [2, 3]))
            assert set(places.tolist()) <= set(inside.tolist())
            alone = [letters[place].strip("\u0120").isalpha() for place in inside]
            assert set(inside[alone].tolist()) <= set(places.tolist()), "no half of a word of letters stands"
            assert (ids[places] == 300).all()
            sizes.append(len(places) / (len(ids) - 2))
    assert 0.12 < np.mean(sizes) <= 0.16


def test_pairs_are_masked_on_both_sides():
    found = maker(mlm_probability=1.0, max_length=64)
    (example,) = found.examples(document("one two", pair="three four"))
    ids, places, _ = arrays(example)
    assert len(places) == len(ids) - 3


@pytest.mark.parametrize("kind", ["bert", "esm"])
def test_a_cache_says_what_the_models_own_forward_says(tmp_path, kind):
    changes = {"mask_token_id": 300, "token_dropout": True, "position_embedding_type": "rotary"}
    teacher = masked_teacher(tmp_path / "t", kind, **(changes if kind == "esm" else {}))
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": text} for text in [*TEXT, LONG, "a"]])
    given = {"task": "masked-lm", "task_settings": {"views": 2}, "features": ("mean:-1", "cls:1")}
    run(corpus, teacher, tmp_path / "cache", temperatures=(1.0, 2.0), **given)
    oracle, cache, count = Oracle(teacher, auto=AUTO), Cache.open(tmp_path / "cache"), 0
    for rows in cache.read_all():
        for index in range(len(rows)):
            row = decoded(rows.take(np.array([index])))
            truth = oracle.truth(row)
            check_row(row, truth, cache.spec)
            right = truth.logits[row["positions"]]
            right -= np.logaddexp.reduce(right, axis=1, keepdims=True)
            gold = right[np.arange(len(right)), rows.ragged("labels").row(index)]
            known = rows.take(np.array([index])).gold_logprob().values
            np.testing.assert_allclose(known, gold, atol=1 / 64 + 1e-4)
            count += 1
    assert count == len(oracle_windows(teacher)) * 2
    again = run(corpus, teacher, tmp_path / "cache", temperatures=(1.0, 2.0), **given)
    assert (again.known_documents, again.new_documents) == (6, 0)


def oracle_windows(teacher):
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    counts = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in [*TEXT, LONG, "a"]]
    return [start for count in counts for start in range(0, count, 22)]


def test_the_commands_know_the_task(tmp_path):
    teacher = masked_teacher(tmp_path / "t")
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": text} for text in TEXT])
    flags = ("--corpus", corpus, "--teacher", teacher, "--task", "masked-lm")
    cache = ("--cache", tmp_path / "cache", "--no_progress")
    status, said = teachonce_main("inspect", *flags, "--views", "2", "--rows", "1")
    assert status == 0, said
    assert "window 2 of" in said
    assert "[MASK]" in said
    more = ("--views", "2", "--whole_word_mask", "--mlm_probability", "0.3")
    status, said = teachonce_main("precompute", *flags, *cache, *more)
    assert status == 0, said
    settings = dict(Cache.open(tmp_path / "cache").spec.task_settings)
    assert (settings["views"], settings["whole_word_mask"], settings["mlm_probability"]) == (2, True, 0.3)
    status, said = teachonce_main("precompute", *flags, *cache)
    assert status != 0
    assert "--views: cache 2, run" in said
    status, said = teachonce_main("verify", tmp_path / "cache", "--teacher", teacher)
    assert status == 0, said


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--task", "causal-lm", "--views", "2"), "--views has no meaning for causal-lm"),
        (("--task", "masked-lm", "--label_field", "l"), "--label_field has no meaning for masked-lm"),
        (("--task", "masked-lm", "--mask_replace_prob", "0.95"), "shares of one whole"),
        (("--task", "masked-lm", "--views", "0"), "views (1 to 1024) cannot be 0"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_a_line(tmp_path, flags, told):
    teacher = masked_teacher(tmp_path / "t")
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": "a b", "l": 1}])
    status, said = teachonce_main(
        *("precompute", "--corpus", corpus, "--teacher", teacher, "--cache", tmp_path / "cache", *flags)
    )
    assert status == 2
    assert told in said.splitlines()[-1]


@pytest.mark.parametrize("what", ["no mask", "no words", "an encoder-decoder"])
def test_teachers_that_cannot_be_asked_are_refused(tmp_path, what):
    made = masked_words()
    if what == "no mask":
        made = families.tokenizer(special=False)
    if what == "no words":
        made.backend_tokenizer.pre_tokenizer = models.pre_tokenizers.ByteLevel(use_regex=False)
    config = transformers.BartConfig() if what == "an encoder-decoder" else transformers.BertConfig()
    told = {"no mask": "has no mask token", "no words": "are one word", "an encoder-decoder": "no encoder"}
    with pytest.raises(UsageError, match=told[what]):
        TASK.check(config, made, dict(MASKED_LM.settled({"whole_word_mask": True})))
