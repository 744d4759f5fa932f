"""Heads of several kinds on one backbone: answers to questions, vocabularies tied to the embeddings, and classes; and
the cards, by which all are trained again."""

import json
import re
import shlex

import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.pipelines.helpers import documents
from tests.pipelines.job.test_question_answering import record
from tests.several import STUDENT, precompute, tasks_file

SHORT = {"max_steps": 6, "save_steps": 6, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 6}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
SENTENCES = ["Ada met him there.", "Nobody said so at all.", "In London it rains."]
KINDS = {
    "bert": {
        "topic": ("AutoModelForSequenceClassification", "accuracy"),
        "answers": ("AutoModelForQuestionAnswering", "f1"),
    },
    "llama": {
        "text": ("AutoModelForCausalLM", "kl_nats"),
        "other": ("AutoModelForCausalLM", "kl_nats"),
        "topic": ("AutoModelForSequenceClassification", "accuracy"),
    },
}


def labelled() -> list:
    return [row | {"label": number % 3} for number, row in enumerate(documents(30))]


def bert_caches(place) -> None:
    label = ("--task", "sequence-classification", "--label_field", "label")
    precompute(place, "topic", labelled(), models.classifier(place / "classifier"), *label)
    questions = [
        record(f"Who was number {n}?", text + f" {n}.", text.split()[0])
        for n in range(10)
        for text in SENTENCES
    ]
    fields = ("--text_field", "question", "--text_pair_field", "context", "--label_field", "answers")
    asked = ("--task", "question-answering", *fields)
    precompute(place, "answers", questions, models.answerer(place / "answerer"), *asked)


def llama_caches(place) -> None:
    for name, seed in (("text", 0), ("other", 1)):
        made = models.causal_teacher(place / f"{name}-teacher", seed=seed)
        precompute(place, name, documents(30), made, "--task", "causal-lm", "--keep", "all")
    torch.manual_seed(2)
    words = models.byte_tokenizer()
    shape = {key: value for key, value in LLAMA.items() if key != "model_type"}
    config = transformers.LlamaConfig(
        vocab_size=len(words), num_attention_heads=2, num_labels=3, pad_token_id=0, **shape
    )
    made = models.save(transformers.LlamaForSequenceClassification(config), words, place / "classifier")
    label = ("--task", "sequence-classification", "--label_field", "label")
    precompute(place, "topic", labelled(), made, *label)


@pytest.fixture(scope="module", params=["llama", "bert"])
def trained(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    (llama_caches if request.param == "llama" else bert_caches)(place)
    shape = LLAMA if request.param == "llama" else STUDENT
    tied = {"tie_word_embeddings": True, "pad_token_id": 0}
    (place / "student.json").write_text(json.dumps({**shape, "num_attention_heads": 2, **tied}))
    tasks = {name: {"losses": {"kl": 1}} for name in KINDS[request.param]}
    tasks["topic"]["losses"]["ce"] = 0.5
    file = tasks_file(place, place / "tasks.yaml", place / "out", tasks, **SHORT)
    status, said = teachonce_main("train", "--tasks", file)
    assert status == 0, said
    return place, request.param


def test_each_opens_by_its_auto_class_and_is_measured(trained, capsys):
    place, kind = trained
    for task, (auto, metric) in KINDS[kind].items():
        folder = place / "out" / task
        model = getattr(transformers, auto).from_pretrained(folder)
        words = transformers.AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            assert torch.isfinite(model(**words("a text", return_tensors="pt"))[0]).all()
        capsys.readouterr()
        told = ("--cache", place / task, "--student", folder, "--speed_seconds", "0", "--json")
        status, said = teachonce_main("evaluate", *told)
        assert status == 0, said
        assert metric in json.loads(said)["metrics"], said


def test_a_head_that_is_tied_stays_tied_to_the_backbone_of_all(trained):
    place, kind = trained
    tables = []
    for task, (auto, _) in KINDS[kind].items():
        model = getattr(transformers, auto).from_pretrained(place / "out" / task)
        tables.append(model.get_input_embeddings().weight)
        if auto == "AutoModelForCausalLM":
            assert model.get_output_embeddings().weight is tables[-1], task
    assert all(torch.equal(tables[0], other) for other in tables[1:])


def test_the_file_on_a_card_gives_the_same_weights(trained, tmp_path, monkeypatch):
    place, kind = trained
    texts = {task: (place / "out" / task / "README.md").read_text() for task in KINDS[kind]}
    for task, text in texts.items():
        assert ModelCard(text).data.library_name == "transformers"
        assert text.splitlines()[next(i for i, one in enumerate(text.splitlines()) if one.startswith("# "))]
        assert "| kl |" in text, task
        assert "after step 6" in text
        header = json.loads((place / task / "_teachonce" / "spec.json").read_text())
        assert f"| task | {header['spec']['task']} |" in text
    text = texts["topic"]
    told = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert set(told["tasks"]) == set(KINDS[kind])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    words = shlex.split(re.search(r"```bash\n(.*)\n```", text)[1])
    assert words[0] == "teachonce"
    status, said = teachonce_main(*words[1:], "--use_cpu", "true", "--disable_tqdm", "true")
    assert status == 0, said
    for task in KINDS[kind]:
        one, other = (
            load_file(folder / task / "model.safetensors") for folder in (place / "out", tmp_path / "again")
        )
        assert all(torch.equal(one[name], other[name]) for name in one), task


def test_an_edited_card_stays_and_harms_no_resume(trained):
    place, _ = trained
    card = place / "out" / "topic" / "README.md"
    before = card.read_text()
    card.write_text("mine")
    file = place / "tasks.yaml"
    status, said = teachonce_main("train", "--tasks", file, "--resume_from_checkpoint", "auto")
    assert (status, "nothing to do" in said) == (0, True), said
    assert card.read_text() == "mine"
    card.write_text(before)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("torch_compile", ["true"]),
        ("batching", ["pack"]),
        ("lora", ["r=2"]),
        ("stages", ["share=0.5 kl=1", "kl=1"]),
    ],
)
def test_what_goes_with_one_task_alone_is_refused_by_its_name(trained, tmp_path, flag, words):
    """Of a student that can be opened again, and of tasks that name no losses: else those are refused first."""
    place, kind = trained
    tasks = {name: {} if flag == "stages" else {"losses": {"kl": 1}} for name in KINDS[kind]}
    student = str(place / "out" / "topic")
    file = tasks_file(place, tmp_path / "t.yaml", tmp_path / "out", tasks, **SHORT | {"student": student})
    status, said = teachonce_main("train", "--tasks", file, f"--{flag}", *words)
    assert status == 2
    assert re.search(rf"--{flag}.* does not go with several tasks", said), said
    assert "Traceback" not in said
