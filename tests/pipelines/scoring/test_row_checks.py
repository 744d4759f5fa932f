"""Whatever a corpus or a teacher says, nothing is committed that the cache's own reader refuses."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

import pipelines.scoring.units
import schemas.shards.rewrite
import teachonce
from pipelines.corpus.examples import Example
from pipelines.scoring.row_checks import askable
from pipelines.tolerances import BAD_ANSWER, BAD_INPUT, NO_TOKENS
from schemas import Cache
from tests.pipelines.helpers import read, run, write_jsonl
from tests.pipelines.models import save
from tests.synthetic import causal_spec, class_spec


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """A classifier whose tokenizer drops U+200B and adds no special token."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "aa": 2, "<unk>": 3}, unk_token="<unk>"))
    words.normalizer = normalizers.Replace("\u200b", "")
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=4, pad_token_id=0, num_labels=3, **shape)
    return save(
        transformers.LlamaForSequenceClassification(config), tokenizer, tmp_path_factory.mktemp("blind") / "t"
    )


def command(corpus, teacher, cache, *more):
    flags = ["--corpus", corpus, "--teacher", teacher, "--cache", cache, "--task", "sequence-classification"]
    return teachonce.main([str(flag) for flag in ("precompute", *flags, "--no_progress", *more)])


def test_a_text_without_tokens_is_rejected_alone_and_poisons_nothing(tmp_path, blind, capsys):
    """With others, and quite alone; it is remembered, and not tried again."""
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": "aa aa"}, {"text": "\u200b"}, {"text": "aa"}])
    assert command(corpus, blind, tmp_path / "cache", "--max_reject_fraction", "1") == 0
    assert teachonce.main(["verify", str(tmp_path / "cache")]) == 0
    (rejects,) = (tmp_path / "cache" / "_teachonce" / "rejects").iterdir()
    assert json.loads(rejects.read_text())["reason"] in (NO_TOKENS, "nothing_supervised")
    assert command(corpus, blind, tmp_path / "cache") == 0
    cache = Cache.open(tmp_path / "cache")
    assert (cache.version, cache.totals.examples) == (0, 2)
    alone = write_jsonl(tmp_path / "d.jsonl", [{"text": "\u200b\u200b"}])
    assert command(alone, blind, tmp_path / "other", "--max_reject_fraction", "1") == 0
    capsys.readouterr()


def example(ids, *, places=(0,), label=None, **more):
    return Example(
        id=bytes(16),
        document_hash=bytes(16),
        window_index=0,
        window_count=1,
        input_ids=np.array(ids, np.int32).tobytes(),
        token_type_ids=np.zeros(len(ids), np.int32).tobytes(),
        position_index=np.array(places, np.int32).tobytes(),
        label=label,
        **{"document_id": None, "text": None, "text_pair": None, "file": "f", "offset": 0, **more},
    )


TEXT = class_spec()
UNFIT = {
    "no tokens": (TEXT, example([]), NO_TOKENS),
    "a negative id": (TEXT, example([1, -1]), BAD_INPUT),
    "an id beyond the embedding": (TEXT, example([1, 99]), BAD_INPUT),
    "too many tokens": (TEXT, example([1] * 33), BAD_INPUT),
    "a class that is none": (TEXT, example([1], label=3), BAD_INPUT),
    "a class below 0": (TEXT, example([1], label=-1), BAD_INPUT),
    "a label that is no number": (
        class_spec(score="sigmoid"),
        example([1], label=[0.0, np.nan, 1.0]),
        BAD_INPUT,
    ),
    "labels too few": (class_spec(score="sigmoid"), example([1], label=[0.0, 1.0]), BAD_INPUT),
    "half a surrogate": (TEXT, example([1], text="a\ud800"), BAD_INPUT),
    "an id of half a surrogate": (TEXT, example([1], document_id="\udfff"), BAD_INPUT),
    "a place behind the tokens": (causal_spec(), example([1, 2], places=(1,)), BAD_INPUT),
    "places that go back": (causal_spec(), example([1, 2, 3], places=(1, 0)), BAD_INPUT),
    "a target beyond the head": (causal_spec(), example([1, 60]), BAD_INPUT),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_asked_is_rejected_before_the_teacher_is(name):
    spec, bad, reason = UNFIT[name]
    good = example([1, 2], label=None)
    fine, rejects = askable([good, bad, good], spec, 90)
    assert (fine, rejects) == ([good, good], [(bad, reason)])
    assert askable([bad], spec, 90) == ([], [(bad, reason)])


@pytest.mark.parametrize("broken", ["features", "top_logprob", "logsumexp", "ids"])
def test_what_the_teacher_says_wrongly_is_rejected_alone(tmp_path, corpus, teacher, broken, monkeypatch):
    """Answers that passed for finite, and that no reader would take."""
    real, spoilt = pipelines.scoring.units.encode_sound, []

    @torch.inference_mode()  # as its answers were made
    def spoil(examples, answer, spec):
        hit = [i for i, one in enumerate(examples) if one.id[0] < 40]
        spoilt.extend(examples[i].id for i in hit)
        counts = np.array([one.num_positions for one in examples])
        first = (np.cumsum(counts) - counts)[hit]
        if broken == "features":
            answer.features[0][hit, 0] = torch.inf
        elif broken == "ids":
            answer.selected.ids[first, 0] = -1
        else:
            getattr(answer.selected, broken)[first] = torch.nan
        return real(examples, answer, spec)

    monkeypatch.setattr(pipelines.scoring.units, "encode_sound", spoil)
    more = {"features": ("mean:-1",), "temperatures": (1.0, 2.0), "scalars": None}
    more = {name: value for name, value in more.items() if value is not None}
    summary = run(corpus, teacher, tmp_path / "c", max_reject_fraction=1.0, **more)
    assert spoilt
    assert summary.rejects.keys() == {BAD_ANSWER}
    Cache.open(tmp_path / "c").verify()
    assert not read(tmp_path / "c").keys() & {*spoilt}


def test_a_poisoned_cache_is_mended_and_stays_so(tmp_path, blind, capsys):
    """As an earlier release left it: the checks before and after the teacher are taken away once."""
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": "aa aa"}, {"text": "\u200b"}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines.scoring.units, "askable", lambda examples, *_: (list(examples), []))
        patch.setattr(
            pipelines.scoring.units,
            "encode_sound",
            lambda e, a, s: ([pipelines.scoring.row_checks.encode(e, a, s)], []),
        )
        patch.setattr(pipelines.scoring.units.Rows, "check", lambda *_, **__: None)
        patch.setattr(schemas.shards.rewrite, "check_counts", lambda *_: None)
        assert command(corpus, blind, tmp_path / "cache") == 0
    path = str(tmp_path / "cache")
    assert teachonce.main(["verify", path]) == 1
    assert teachonce.main(["verify", path, "--repair"]) == 0
    assert teachonce.main(["verify", path]) == 0
    assert command(corpus, blind, tmp_path / "cache", "--max_reject_fraction", "1") == 0
    assert teachonce.main(["verify", path]) == 0
    assert Cache.open(path).totals.examples == 1
    capsys.readouterr()
