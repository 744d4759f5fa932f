"""Every causal and masked language model class of transformers, tiny: it works as `docs/models.md` says that it does.

What works was compared with plain transformers, score by score (`trial.py`). Ten families of each task run always, the
others where the marker `architectures` is asked for.
"""

from pathlib import Path

import pytest

from tests.architectures.table import PAGE, outcomes_of
from tests.architectures.tiny_models import CAUSAL, MASKED, NAMES
from tests.architectures.trial import TASKS, tried

FAMILIES = {
    CAUSAL: "bloom gemma2 gpt2 gpt_neox llama mamba mistral opt qwen2 qwen3",
    MASKED: "albert bert deberta-v2 distilbert electra esm modernbert mpnet roberta xlm-roberta",
}
"""What most people have."""
UNOPENED = "the teacher cannot be opened: "
"""Transformers refuses a folder before there is a class to name: it reads no config of the kind that it wrote."""
SAID = outcomes_of(PAGE.read_text()) if PAGE.exists() else {}


def cases() -> list:
    found = []
    for task in TASKS:
        always = FAMILIES[task].split()
        for name in NAMES[task]:
            marks = () if name in always else (pytest.mark.architectures,)
            found.append(pytest.param(task, name, id=f"{task}-{name}", marks=marks))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "name"), cases())
def test_a_class_works_or_is_refused_as_the_page_says(task: str, name: str, tmp_path: Path) -> None:
    trial = tried(task, name, tmp_path)
    for refusal in trial.refusals:
        assert "\n" not in refusal.line
        assert NAMES[task][name] in refusal.line or UNOPENED in refusal.line, refusal.line
    assert SAID.get((task, name)) == trial.outcome, "docs/models.md says otherwise: run `make models`"


def test_the_page_lists_no_class_that_transformers_lacks() -> None:
    assert {key for key in SAID if key[0] in TASKS} == {
        (task, name) for task in TASKS for name in NAMES[task]
    }
