"""Each task once on Prism: the rows that the in-process runner leaves, column by column, and a second run that
finds nothing new."""

import json

import pytest

from schemas import Cache
from tests.detectors import detector, scenes, write_scenes
from tests.engines.jobs import precompute
from tests.engines.servers import engine
from tests.images import image_teacher, images, write_parquet
from tests.pipelines import models
from tests.pipelines.families import masked_teacher
from tests.pipelines.helpers import documents, same_columns, write_jsonl
from tests.pipelines.job.test_pair_score import reranker

TEXTS = [one["text"] for one in documents(30)]


def words(place):
    names = ("O", "B-X", "I-X")
    records = [
        {"words": text.split(), "tags": [names[at % 2] for at, _ in enumerate(text.split())]}
        for text in TEXTS
    ]
    flags = {"words_field": "words", "label_field": "tags"}
    return write_jsonl(place / "c.jsonl", records), models.token_classifier(place / "t", names), flags


def answers(place):
    records = [
        {
            "question": f"Who was number {at}?",
            "context": text,
            "answers": {"text": [text.split()[0]], "answer_start": [text.index(text.split()[0])]},
        }
        for at, text in enumerate(TEXTS)
    ]
    flags = {"text_field": "question", "text_pair_field": "context", "label_field": "answers"}
    flags |= {"max_length": 48, "stride": 4}
    return write_jsonl(place / "c.jsonl", records), models.answerer(place / "t"), flags


def targets(place):
    records = [{"text": text, "target": text[::-1]} for text in TEXTS]
    flags = {"target_field": "target", "max_length": 256, "keep": "top_k:9"}
    return write_jsonl(place / "c.jsonl", records), models.seq2seq_teacher(place / "t"), flags


def pairs(place):
    records = [{"text": text[:9], "docs": [text, text[::-1]], "label": [1, 0]} for text in TEXTS]
    flags = {"passages_field": "docs", "label_field": "label"}
    return (
        write_jsonl(place / "c.jsonl", records),
        reranker(place / "t"),
        flags,
    )


def embeddings(place):
    path = write_jsonl(place / "c.jsonl", [{"text": text} for text in TEXTS])
    return path, models.embedder(place / "t"), {"keep": None, "max_length": 48}


def pictures(place):
    path = write_parquet(place / "c.parquet", images(12))
    flags = {"image_field": "image", "label_field": "label", "max_length": None, "unit_tokens": 3}
    return path, image_teacher(place / "t"), flags


def embedded_pictures(place):
    path, teacher, flags = pictures(place)
    return path, teacher, {**flags, "label_field": None, "keep": None, "features": "mean:-1"}


def detections(place):
    path = write_scenes(place / "c.parquet", scenes(12))
    flags = {"image_field": "image", "label_field": "objects", "max_length": None, "unit_tokens": 3}
    return path, detector(place / "t"), flags


def masks(place):
    path = write_jsonl(place / "c.jsonl", [{"text": text} for text in TEXTS])
    return path, masked_teacher(place / "t"), {"views": 2}


TASKS = {
    "token-classification": words,
    "question-answering": answers,
    "seq2seq-lm": targets,
    "pair-score": pairs,
    "feature-extraction": embeddings,
    "image-classification": pictures,
    "image-feature-extraction": embedded_pictures,
    "object-detection": detections,
    "masked-lm": masks,
}


def on_prism():
    return ["--runner=PrismRunner", f"--prism_location={engine('bin/prism')}", "--environment_type=LOOPBACK"]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_leaves_the_same_rows(tmp_path, task):
    beam = on_prism()
    corpus, teacher, flags = TASKS[task](tmp_path)
    shape = {"task": task, "keep": "all", "max_length": 24, "batch_tokens": 512, **flags}
    asked = {flag: value for flag, value in shape.items() if value is not None}
    left_out = [flag for flag, value in shape.items() if value is None]
    plain, other = tmp_path / "plain", tmp_path / "other"
    told = {"report": tmp_path / "report", "without": left_out, **asked}
    (wanted,) = precompute(corpus, teacher, plain, **told)
    first, again = precompute(corpus, teacher, other, beam=beam, times=2, **told)
    same_columns(Cache.open(other), Cache.open(plain))
    assert Cache.open(other).verify().examples == wanted["totals"]["examples"] > 10
    assert (first["documents"], first["rejects"]) == (wanted["documents"], wanted["rejects"])
    assert first["shards"] > 1
    assert (again["committed"], again["new_documents"]) == (False, 0)
    assert json.dumps(Cache.open(other).header.to_json()) == json.dumps(Cache.open(plain).header.to_json())
