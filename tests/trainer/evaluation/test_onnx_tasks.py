"""`evaluate --export onnx` of every task: ONNX Runtime alone gives what plain transformers gives, at sizes that
the exporter has not seen.
"""

from __future__ import annotations

import json
import shlex

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

import teachonce
from tests.docs import inputs

TASKS = {
    "seq2seq-lm": (
        inputs.translations,
        "--corpus wmt.jsonl --text_field de --target_field en --teacher ./mt-teacher",
        "Seq2SeqLM",
    ),
    "image-classification": (
        inputs.pictures,
        "--corpus digits.parquet --teacher ./teacher",
        "ImageClassification",
    ),
    "feature-extraction": (inputs.embeddings, "--corpus texts.jsonl --teacher ./embedder", ""),
    "image-feature-extraction": (
        inputs.pictures,
        "--corpus digits.parquet --features mean:-1 --teacher ./teacher",
        "",
    ),
    "object-detection": (
        inputs.detections,
        "--corpus scenes.parquet --label_field objects --teacher ./detector",
        "ObjectDetection",
    ),
    "question-answering": (
        inputs.answers,
        "--corpus squad.jsonl --text_field question --text_pair_field context --label_field answers "
        "--teacher ./qa-teacher",
        "QuestionAnswering",
    ),
    "token-classification": (
        inputs.spans,
        "--corpus ner.jsonl --words_field tokens --label_field tags --teacher ./ner-teacher",
        "TokenClassification",
    ),
    "pair-score": (
        inputs.rankings,
        "--corpus lists.jsonl --passages_field docs --label_field label --teacher ./reranker",
        "SequenceClassification",
    ),
}


def given(session, model, rows, length):
    """Random inputs of these sizes, by what the file asks for."""
    generator = torch.Generator().manual_seed(length)
    found = {}
    for one in session.get_inputs():
        if one.name == "pixel_values":
            found[one.name] = torch.randn(rows, *one.shape[1:], generator=generator)
        elif one.name.endswith("input_ids"):
            found[one.name] = torch.randint(4, 200, (rows, length), generator=generator)
        else:
            found[one.name] = (torch.ones if one.name.endswith("mask") else torch.zeros)(rows, length).long()
    return found


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task, tmp_path, monkeypatch, capsys):
    make, line, kind = TASKS[task]
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    student = line.split("--teacher ./")[1]
    run = f"precompute --task {task} --cache ./cache --no_progress {line}"
    assert teachonce.main(shlex.split(run)) == 0
    capsys.readouterr()
    measure = (
        f"evaluate --cache ./cache --student ./{student} --device cpu --eval_fraction 0.5 --speed_seconds 0"
    )
    assert teachonce.main(shlex.split(f"{measure} --export onnx --json")) == 0, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out)["export"]
    assert 0 <= told["largest_difference"] < 1e-4 * told["largest_value"]
    session = onnxruntime.InferenceSession(told["path"], providers=["CPUExecutionProvider"])
    model = getattr(transformers, f"AutoModel{f'For{kind}' if kind else ''}").from_pretrained(student).eval()
    names = [one.name for one in session.get_outputs()]
    for rows, length in ((1, 4), (3, 9)):
        asked = given(session, model, rows, length)
        found = session.run(None, {name: value.numpy() for name, value in asked.items()})
        with torch.no_grad():
            expected = model(**asked)
        assert names
        for name, one in zip(names, found, strict=True):
            assert name in expected
            np.testing.assert_allclose(one, expected[name].numpy(), atol=1e-4)
