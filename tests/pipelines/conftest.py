"""Teachers and caches that many tests look at, made once a session."""

import shutil

import pytest
import torch

from tests.pipelines import models
from tests.pipelines.helpers import documents, run, write_jsonl
from tests.pipelines.people import FLAGS, people
from tests.pipelines.remembered import remember

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _beam_asks_itself_once():
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        yield


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """A tiny causal LM: 300 tokens, tied head."""
    return models.causal_teacher(tmp_path_factory.mktemp("teacher") / "llama")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A tiny classifier of 3 classes, whose tokenizer adds special tokens."""
    return models.classifier(tmp_path_factory.mktemp("classifier") / "bert")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """24 documents, of which the longer give several windows of 24 tokens."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", documents(24))


@pytest.fixture(scope="session")
def whole(tmp_path_factory, teacher, corpus):
    """A finished run over `corpus`: its cache and its summary. Look, and change nothing."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    summary = run(corpus, teacher, cache, unit_tokens=400, row_group_tokens=100)
    return cache, summary


@pytest.fixture(scope="session")
def _nights(tmp_path_factory, teacher):
    """Two nights of the real precompute, twelve people, then eighteen."""
    folder = tmp_path_factory.mktemp("nights")
    for night, count in enumerate((12, 18)):
        run(write_jsonl(folder / f"{night}.jsonl", people(count)), teacher, folder / "cache", **FLAGS)
    return folder


@pytest.fixture
def nights(_nights, tmp_path):
    """A copy of their cache, and the second night's corpus."""
    return shutil.copytree(_nights / "cache", tmp_path / "cache"), _nights / "1.jsonl"
