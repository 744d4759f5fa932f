"""Draws of what a teacher writes have the distribution that was asked for."""

import numpy as np
import pytest
import torch
import transformers

from pipelines import TeacherConfig
from pipelines.teacher.generate import continuations
from pipelines.teacher.opening import open_teacher
from schemas import Cache
from schemas.errors import UsageError
from tests.pipelines import models
from tests.pipelines.helpers import run
from tests.pipelines.job.test_generate import ASKED, PROMPT, corpus, how, teacher

__all__ = ["teacher"]


@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("sample", {}),
        ("sample:temperature=0.5", {"temperature": 0.5}),
        ("sample:top_k=3", {"top_k": 3}),
        ("sample:temperature=2.0,top_p=0.6", {"temperature": 2.0, "top_p": 0.6}),
    ],
)
def test_draws_are_of_the_distribution_that_is_asked_for(tmp_path, teacher, way, options):
    """4,000 draws of the first token against its probabilities, as transformers' own warpers make them."""
    run(corpus(tmp_path / "c.jsonl", ASKED[:1]), teacher, tmp_path / "c", **PROMPT, **how(way, 1))
    spec = Cache.open(tmp_path / "c").spec
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher).eval()
    ids, count = torch.tensor([models.byte_tokenizer()(ASKED[0])["input_ids"]]), 4000
    opened = open_teacher(TeacherConfig(path=str(teacher), task="causal-lm"), spec, str(teacher))
    keys = [number.to_bytes(16, "big") for number in range(count)]
    drawn = np.concatenate(continuations(opened, ids.repeat(count, 1), keys))
    scores = model(ids).logits[:, -1]
    for warper in (
        transformers.TemperatureLogitsWarper(options.get("temperature", 1.0)),
        transformers.TopKLogitsWarper(options.get("top_k", 300)),
        transformers.TopPLogitsWarper(options.get("top_p", 1.0)),
    ):
        scores = warper(ids, scores)
    expected = scores.detach().softmax(-1)[0].double().numpy()
    seen = np.bincount(drawn, minlength=len(expected)) / count
    assert not seen[expected == 0].any()
    spread = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(seen - expected) <= 5 * spread + 3 / count).all()


def test_a_generation_config_that_is_none_is_named(tmp_path):
    made = models.causal_teacher(tmp_path / "t")
    (made / "generation_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"generation_config.json cannot be read"):
        run(corpus(tmp_path / "c.jsonl"), made, tmp_path / "c", **PROMPT, **how("greedy"))


def test_units_have_room_for_the_longest_answers(tmp_path, teacher):
    path = corpus(tmp_path / "c.jsonl", [f"{i} {text}" for i, text in enumerate(ASKED * 4)])
    summary = run(path, teacher, tmp_path / "c", **PROMPT, **how("greedy", 40), unit_tokens=400)
    assert summary.shards >= 3
