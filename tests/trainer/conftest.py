"""A tiny teacher, caches of what it says, and a run that distils from them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.utils.memory
import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, LlamaForCausalLM

from schemas.cache import Cache
from schemas.policies import KeepAll
from schemas.spec import Spec
from tests.trainer.caches import (
    FEATURES,
    causal_columns,
    causal_spec,
    class_columns,
    finished_rows,
    write_cache,
)
from tests.trainer.tiny import STUDENT, make_bert, make_llama, random_examples
from trainer import StudentArguments, TrainConfig, train


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """For tiny tensors threads cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _no_collections() -> Iterator[None]:
    """Every training begins with a search of all that Python holds, to free a device's memory: half of a tiny one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerate.utils.memory, "gc", SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_llama(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def causal_cache(tmp_path_factory: pytest.TempPathFactory, teacher_dir: str) -> Cache:
    """150 examples of about 20 tokens, two examples a document, top-32 of 200."""
    model = LlamaForCausalLM.from_pretrained(teacher_dir).eval()
    spec = causal_spec()
    examples = random_examples(150)
    rows = finished_rows(spec, causal_columns(model, examples, spec), [i // 2 for i in range(150)])
    return write_cache(tmp_path_factory.mktemp("caches") / "causal", rows)


@pytest.fixture(scope="session")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def class_cache_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Cache]:
    """Builds a classification cache for a score, from a tiny BERT."""

    def build(
        score: str = "softmax",
        num_labels: int = 3,
        labelled: bool = True,
        rows: int = 90,
        features: tuple[int, ...] = (0,),
    ) -> Cache:
        folder = tmp_path_factory.mktemp("class")
        model = BertForSequenceClassification.from_pretrained(
            make_bert(folder / "teacher", num_labels=num_labels)
        ).eval()
        spec = Spec(
            task="sequence-classification",
            score=score,  # type: ignore[arg-type]
            vocab_size=num_labels,
            keep=KeepAll(),
            max_length=64,
            scalars=("entropy", "gold", "logsumexp"),
            features=tuple(FEATURES[place] for place in features),
        )
        rng, labels = np.random.default_rng(1), []
        for i in range(rows):
            if not labelled or i % 10 == 9:
                labels.append(None)
            elif score == "softmax":
                labels.append(int(rng.integers(num_labels)))
            elif score == "sigmoid":
                labels.append(rng.integers(0, 2, num_labels).astype(np.float32))
            else:
                labels.append(rng.normal(size=num_labels).astype(np.float32))
        columns = class_columns(model, random_examples(rows, seed=3), labels, spec)
        return write_cache(folder / "cache", finished_rows(spec, columns))

    return build


@pytest.fixture
def run(tmp_path: Path, causal_cache: Cache) -> Callable[..., Path]:
    """Trains a tiny student for an epoch and a half; returns its folder."""

    def start(name: str = "out", cache: Cache = causal_cache, **changes: Any) -> Path:
        student = tmp_path / "student.json"
        student.write_text(json.dumps(STUDENT | changes.pop("model", {})))
        sources = changes.pop("caches", cache.storage.root)
        config = {"cache": sources, "student": str(student), "eval_fraction": 0.2}
        names = set(TrainConfig.__dataclass_fields__)
        config |= {key: value for key, value in changes.items() if key in names}
        arguments = {
            "output_dir": str(tmp_path / name),
            "max_steps": 22,
            "per_device_train_batch_size": 8,
            "logging_steps": 5,
            "save_steps": 6,
            "save_total_limit": 10,
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        arguments |= {key: value for key, value in changes.items() if key not in names}
        for key in {"logging_steps", "save_steps", "eval_steps"} & arguments.keys():
            arguments[key] = float(arguments[key])  # as transformers declares them; checked when tests run
        trained = train(TrainConfig(**config), StudentArguments(**arguments))
        assert not [t for t in threading.enumerate() if t.name == "teachonce-ahead"]
        return Path(trained.output_dir)

    return start
