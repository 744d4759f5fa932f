"""One student for several tasks: each opens by its Auto class, is measured as any student, and shares one backbone."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from schemas.errors import StudentError, UsageError
from tests.pipelines import models
from tests.pipelines.families import teachonce_main
from tests.several import LOOP, make_caches, precompute, tasks_file
from trainer import StudentArguments, TasksConfig, TrainConfig, train_tasks
from trainer.checkpoints.records import Record
from trainer.checkpoints.whole_folders import check_whole
from trainer.students.shared_backbone import share_backbone

TASKS = {
    "topic": {"losses": {"kl": 1, "ce": 0.5}},
    "words": {"losses": ["kl=1"], "temperature": 1},
    "meaning": {"losses": ["feature=1,distance=cosine"]},
}
AUTO = {
    "topic": transformers.AutoModelForSequenceClassification,
    "words": transformers.AutoModelForTokenClassification,
    "meaning": transformers.AutoModel,
}
MEASURED = {"topic": "accuracy", "words": "agreement", "meaning": "cosine_to_teacher"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_caches(tmp_path_factory.mktemp("several"))


def train(place, out, *flags, tasks=TASKS, **common):
    file = tasks_file(place, out.parent / f"{out.name}.yaml", out, tasks, **common)
    return teachonce_main("train", "--tasks", file, *flags)


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """With dropout, uncertainty, two batches a step and an evaluation on the way."""
    out = tmp_path_factory.mktemp("out") / "student"
    status, said = train(place, out, **USUAL)
    assert status == 0, said
    return out, said


USUAL = {
    "uncertainty": True,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
}


def body(folder, task):
    found = load_file(folder / task / "model.safetensors")
    return {name.removeprefix("bert."): weight for name, weight in found.items()}


def test_each_task_opens_by_its_auto_class_and_has_the_backbone_of_all(trained):
    out, _ = trained
    for task, auto in AUTO.items():
        model = auto.from_pretrained(out / task)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out / task)
        with torch.no_grad():
            assert torch.isfinite(model(**tokenizer("a text", return_tensors="pt"))[0]).all()
    bodies = [body(out, task) for task in TASKS]
    common = set.intersection(*map(set, bodies))
    assert sum(name.startswith("encoder.layer.1") for name in common) == 16
    for other in bodies[1:]:
        assert all(torch.equal(bodies[0][name], other[name]) for name in common)


def test_each_task_is_measured_as_any_student(trained, place, capsys):
    out, _ = trained
    for task, metric in MEASURED.items():
        capsys.readouterr()
        told = ("--cache", place / task, "--student", out / task, "--speed_seconds", "0", "--json")
        status, said = teachonce_main("evaluate", *told)
        assert status == 0, said
        found = json.loads(said)
        assert found["eval_fraction"] == 0.2
        assert found["metrics"][metric] > 0
        losses = TASKS[task]["losses"]
        assert set(Record.load(out / task).losses) == {text.partition("=")[0] for text in losses}


def test_a_log_tells_each_task_apart(trained):
    out, said = trained
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    names = {name for line in history for name in line}
    wanted = {"topic_kl", "topic_ce", "words_kl", "meaning_feature", "topic_sigma"}
    assert wanted | {"eval_topic_loss", "eval_words_kl", "eval_meaning_feature"} <= names
    assert "3 tasks share a backbone" in said
    evaluated = [line for line in history if "eval_topic_loss" in line][-1]
    assert evaluated["eval_topic_loss"] == pytest.approx(
        evaluated["eval_topic_kl"] + 0.5 * evaluated["eval_topic_ce"]
    )
    sigmas = load_file(out / "tasks.safetensors")["log_variances"]
    assert sigmas.shape == (3,)
    assert bool((sigmas != 0).all())


def test_all_tasks_learn(place, tmp_path):
    out = tmp_path / "out"
    own = {"max_steps": 60, "eval_strategy": "steps", "eval_steps": 20, "sampling": 0.0}
    status, said = train(place, out, **own)
    assert status == 0, said
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    for task in TASKS:
        losses = [line[f"eval_{task}_loss"] for line in history if f"eval_{task}_loss" in line]
        assert losses[-1] < losses[0], task


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_ends_in_the_same_bits(trained, place, tmp_path, step):
    whole, _ = trained
    out = tmp_path / "student"
    status, said = train(place, out, **USUAL)
    assert status == 0, said
    for name in {4, 8, 12} - {step}:
        _remove(out / f"checkpoint-{name}")
    _remove(out, but=f"checkpoint-{step}")
    status, said = train(place, out, "--resume_from_checkpoint", "auto", **USUAL)
    assert status == 0, said
    for task in TASKS:
        ours, theirs = (load_file(folder / task / "model.safetensors") for folder in (out, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), task
    sigmas = [load_file(folder / "tasks.safetensors")["log_variances"] for folder in (out, whole)]
    assert torch.equal(*sigmas)
    check_whole(out / "checkpoint-12")
    status, said = train(place, out, "--resume_from_checkpoint", "auto", **USUAL)
    assert status == 0
    assert "nothing to do" in said
    status, said = train(place, out, "--resume_from_checkpoint", "auto", **USUAL | {"uncertainty": False})
    assert status == 2
    assert "another uncertainty" in said


def _remove(folder, but=None):
    for path in sorted(folder.rglob("*"), reverse=True):
        if but is None or but not in path.parts:
            if path.is_dir():
                if not list(path.iterdir()):
                    path.rmdir()
            else:
                path.unlink()
    if but is None:
        folder.rmdir()


def test_one_tasks_step_leaves_the_others_heads(place, tmp_path):
    """In one step, which is one task's, its head and the backbone move, and no other head does."""
    out = tmp_path / "out"
    status, said = train(
        place, out, max_steps=1, save_steps=1, logging_steps=1, warmup_steps=0, weight_decay=0.1
    )
    assert status == 0, said
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    ran = {name.partition("_")[0] for line in history for name in line} & TASKS.keys()
    zero = tmp_path / "zero"
    status, said = train(
        place, zero, max_steps=1, save_steps=1, logging_steps=1, warmup_steps=0, learning_rate=1e-30
    )
    assert status == 0, said
    for task in ("topic", "words"):
        before, after = (load_file(folder / task / "model.safetensors") for folder in (zero, out))
        assert torch.equal(before["classifier.weight"], after["classifier.weight"]) == (task not in ran)
        word = "bert.encoder.layer.0.output.dense.weight"
        assert not torch.equal(before[word], after[word])


def config(place, *names, **changes):
    common = {"student": str(place / "student.json"), "eval_fraction": 0.2}
    tasks = {
        name: TrainConfig(cache=str(place / name), losses=_flags(TASKS[name]["losses"]), **common)
        for name in names
    }
    return TasksConfig(tasks=tasks, **changes)


def _flags(losses):
    return [f"{k}={v}" for k, v in losses.items()] if isinstance(losses, dict) else list(losses)


REFUSED = [
    ({"tasks": {"topic": TASKS["topic"]}}, "several tasks are two or more"),
    ({"tasks": TASKS | {"checkpoint-3": TASKS["topic"]}}, "a task's name is a folder's"),
    ({"tasks": TASKS | {"topic": {"learning_rate": 1}}}, "a task has no such key of its own"),
    ({"tasks": TASKS | {"topic": {"share": 2}}}, "all tasks have a share, or none has"),
    ({"tasks": TASKS, "sampling": 2}, "sampling must be from 0 to 1"),
    ({"tasks": TASKS, "uncertainty": "yes please"}, "uncertainty is true or false"),
    ({"tasks": TASKS, "lora": ["r=2"], "student": "somewhere"}, "--lora does not go with several tasks"),
    ({"tasks": TASKS, "stages": ["kl=1"]}, "stages"),
    ({"tasks": TASKS, "student": "linear"}, "a student without a backbone"),
    ({"tasks": TASKS, "overwrite_output_dir": True}, "--overwrite_output_dir does not go with"),
    ({"tasks": TASKS, "load_best_model_at_end": True, "eval_strategy": "steps"}, "names no metric"),
    (
        {"tasks": {n: t | {"share": 1e-9 if n == "words" else 1} for n, t in TASKS.items()}},
        "has no step in an epoch",
    ),
]


@pytest.mark.parametrize(("told", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused(place, tmp_path, told, message):
    status, said = train(place, tmp_path / "out", **told)
    assert (status, message in said) == (2, True), said


def test_a_name_that_stands_twice_is_refused(place, tmp_path):
    file = tasks_file(place, tmp_path / "t.yaml", tmp_path / "out", TASKS)
    file.write_text(file.read_text().replace("  words:", "  topic:"))
    status, said = teachonce_main("train", "--tasks", file)
    assert status == 2
    assert "the key topic stands there twice" in said
    status, said = teachonce_main("train", "--tasks", file, "--students", file)
    assert status == 2
    assert "--students does not go with --tasks" in said
    status, said = teachonce_main("train", "--tasks", file, "--cache", place / "topic")
    assert status == 2


def test_caches_of_different_tokenizers_are_refused(place, tmp_path):
    made = models.token_classifier(tmp_path / "tagger", ("A", "B"), "roberta")
    rows = [{"tokens": ["a", str(n)], "tags": ["A", "B"]} for n in range(20)]
    fields = ("--words_field", "tokens", "--label_field", "tags")
    precompute(tmp_path, "other", rows, made, "--task", "token-classification", *fields)
    tasks = {"topic": TASKS["topic"], "other": {"cache": str(tmp_path / "other"), "losses": ["kl=1"]}}
    status, said = train(place, tmp_path / "out", tasks=tasks)
    assert status == 2
    assert "have different tokenizers" in said
    assert "tokenizer" in said


def test_tasks_without_a_common_backbone_are_refused():
    shape = {"vocab_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    narrow, wide = (
        transformers.BertModel(transformers.BertConfig(hidden_size=size, **shape)) for size in (8, 16)
    )
    with pytest.raises(StudentError, match="have no backbone in common"):
        share_backbone({"a": narrow, "b": wide})
    shape |= {"hidden_size": 8, "num_key_value_heads": 2}
    other = transformers.LlamaModel(transformers.LlamaConfig(**shape))
    with pytest.raises(StudentError, match="have no backbone in common"):
        share_backbone({"a": narrow, "b": other})


def test_shares_and_python(place, tmp_path):
    arguments = {
        **{name: value for name, value in LOOP.items() if name != "eval_fraction"},
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "logging_steps": 1.0,
        "save_steps": 2.0,
    }
    told = config(place, "topic", "words", shares={"topic": 1.0, "words": 3.0})
    assert train_tasks(told, StudentArguments(**arguments)).steps == 2
    assert Record.load(tmp_path / "out").settings["shares"] == {"topic": 1.0, "words": 3.0}
    one, other = TrainConfig(cache="c", student="s", lanes=4), TrainConfig(cache="d", student="s")
    with pytest.raises(UsageError, match="cannot differ in lanes"):
        TasksConfig(tasks={"a": one, "b": other})


def test_a_resumed_run_reads_the_versions_that_it_began_with(tmp_path):
    caches = make_caches(tmp_path)
    out = tmp_path / "out"
    assert train(caches, out, max_steps=4, save_steps=2)[0] == 0
    task = ("--task", "sequence-classification", "--label_field", "label")
    precompute(tmp_path, "topic", [{"text": "new", "label": 0}], tmp_path / "classifier", *task)
    _remove(out, but="checkpoint-2")
    status, said = train(caches, out, "--resume_from_checkpoint", "auto", max_steps=4, save_steps=2)
    assert status == 0, said
    assert [cache["version"] for cache in Record.load(out).caches] == [0, 0, 0]
