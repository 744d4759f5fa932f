"""End to end: train, checkpoint, resume, and open the student where this project does not exist."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_llama
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from schemas.cache import Cache
from schemas.errors import NoCacheError, StudentError, UsageError
from trainer import StudentArguments, TrainConfig, train
from trainer.records import Record

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def run(tmp_path: Path, causal_cache: Cache) -> Callable[..., Path]:
    """Trains a tiny student for an epoch and a half; returns its folder."""

    def start(name: str = "out", cache: Cache = causal_cache, **changes: Any) -> Path:
        student = tmp_path / "student.json"
        student.write_text(json.dumps(CONFIG | changes.pop("model", {})))
        config = {"cache": cache.storage.root, "student": str(student), "eval_fraction": 0.2}
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


def logs(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_resumes_as_if_never_interrupted(run: Callable[..., Path], tied: bool) -> None:
    """Tied or not, in the first epoch or the second, with projections, to the last bit."""
    settings: dict[str, Any] = {
        "model": {"tie_word_embeddings": tied},
        "losses": ["kl=1", "ce=0.5", "feature=0.1"],
    }
    whole = run(**settings)
    assert Record.load(whole) == Record.load(whole / "checkpoint-6")
    for step in (6, 18):
        resumed = run(f"again-{step}", resume_from_checkpoint=str(whole / f"checkpoint-{step}"), **settings)
        assert same(whole, resumed)
        projections = "projections.safetensors"
        ours, theirs = load_file(whole / projections), load_file(resumed / projections)
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
        terms = ("loss", "kl", "ce", "feature", "grad_norm")
        after = [{k: log[k] for k in terms} for log in logs(whole) if log["step"] > step + 4 and "kl" in log]
        again = [
            {k: log[k] for k in terms} for log in logs(resumed) if log["step"] > step + 4 and "kl" in log
        ]
        assert after == again
        assert logs(whole)[-1]["epoch"] == logs(resumed)[-1]["epoch"]


def test_resume_with_accumulation_across_the_end_of_an_epoch(run: Callable[..., Path]) -> None:
    """17 batches an epoch, 4 a step: the last step of an epoch has 1."""
    settings: dict[str, Any] = {"gradient_accumulation_steps": 4, "max_steps": 10, "save_steps": 2}
    whole = run(**settings)
    resumed = run("again", resume_from_checkpoint=str(whole / "checkpoint-2"), **settings)
    assert same(whole, resumed)


def test_accumulation_is_a_larger_batch(run: Callable[..., Path]) -> None:
    """The mean goes over the positions of all micro-batches, whatever their lengths: no mean of means."""
    settings: dict[str, Any] = {
        "max_steps": 3,
        "save_strategy": "no",
        "shuffle_row_groups": 100,
        "logging_steps": 1,
    }
    many = run("many", per_device_train_batch_size=8, gradient_accumulation_steps=20, **settings)
    one = run("one", per_device_train_batch_size=200, **settings)
    for a, b in zip(logs(many)[:3], logs(one)[:3], strict=True):
        assert a["kl"] == pytest.approx(b["kl"], rel=1e-4)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_two_runs_are_one(run: Callable[..., Path]) -> None:
    assert same(run("a", max_steps=4), run("b", max_steps=4))
    assert not same(run("a", max_steps=4), run("c", max_steps=4, seed=1))


def test_the_student_learns(run: Callable[..., Path]) -> None:
    found = logs(run(max_steps=60, learning_rate=5e-3, save_strategy="no"))
    kl = [log["kl"] for log in found if "kl" in log]
    assert kl[-1] < 0.9 * kl[0]


def test_the_student_opens_where_this_project_does_not_exist(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = run(model={"tie_word_embeddings": True}, losses=["kl=1", "feature=1"], max_steps=6)
    code = """
import sys, warnings
warnings.simplefilter("error", UserWarning)
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    tokens = AutoTokenizer.from_pretrained(folder)("t5 t6 t7", return_tensors="pt")
    print(model.generate(**tokens, max_new_tokens=3, do_sample=False).tolist())
assert not {"schemas", "trainer", "pipelines"} & set(sys.modules)
try:
    import schemas
except ModuleNotFoundError:
    print("alone")
"""
    # -I: neither this folder nor PYTHONPATH; the finder of an editable install is taken out as well.
    blocked = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
    sites = f"sys.path = [p for p in sys.path if p.rstrip('/') != {str(Path(__file__).parents[2])!r}]\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked + sites + code, str(folder), str(folder / "checkpoint-6")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, other, alone = done.stdout.splitlines()
    assert one == other
    assert alone == "alone"


def test_nothing_in_a_students_folder_is_executable(run: Callable[..., Path]) -> None:
    folder = run(max_steps=1, save_strategy="no")
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".txt", ".jinja"}


def test_evaluation_while_training_and_the_best_at_the_end(run: Callable[..., Path]) -> None:
    folder = run(
        eval_strategy="steps",
        eval_steps=6,
        load_best_model_at_end=True,
        metric_for_best_model="eval_kl",
        greater_is_better=False,
        losses=["kl=1", "ce=0.5", "feature=0.1"],
        max_steps=18,
        learning_rate=3e-2,
    )
    found = [log for log in logs(folder) if "eval_kl" in log]
    assert len(found) == 3
    for log in found:
        assert log["eval_loss"] == pytest.approx(
            log["eval_kl"] + 0.5 * log["eval_ce"] + 0.1 * log["eval_feature"], rel=1e-5
        )
    best = json.loads((folder / "trainer_state.json").read_text())["best_global_step"]
    assert best == min(found, key=lambda log: log["eval_kl"])["step"]
    assert same(folder, folder / f"checkpoint-{best}")


def test_shrink_trains_from_the_teachers_own_layers(
    run: Callable[..., Path], teacher_dir: str, causal_cache: Cache
) -> None:
    folder = run(student="shrink:layers=1", teacher=teacher_dir, max_steps=1, learning_rate=1e-9)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_dir)
    found = weights(folder)["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(found, teacher.model.layers[0].mlp.up_proj.weight, atol=1e-6, rtol=0)


def test_bfloat16_computes_in_it_and_saves_float32(run: Callable[..., Path]) -> None:
    folder = run(max_steps=3, bf16=True, save_strategy="no")
    assert all(w.dtype == torch.float32 for w in weights(folder).values())
    assert all(log["loss"] == log["loss"] for log in logs(folder) if "loss" in log)


def test_activation_checkpointing_reaches_the_student(run: Callable[..., Path]) -> None:
    settings: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "logging_steps": 1}
    plain, checkpointed = run("a", **settings), run("b", activation_checkpointing=True, **settings)
    assert logs(plain)[1]["loss"] == pytest.approx(logs(checkpointed)[1]["loss"], rel=1e-5)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "identity"])
def test_classifiers_train(
    run: Callable[..., Path], class_cache_of: Callable[..., Cache], score: str
) -> None:
    losses = ["mse_logits=1", "ce=0.5", "feature=0.1", *([] if score == "identity" else ["kl=1"])]
    folder = run(
        cache=class_cache_of(score),
        model={"model_type": "bert"},
        losses=losses,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=4,
    )
    assert json.loads((folder / "config.json").read_text())["id2label"].keys() == {"0", "1", "2"}
    (log,) = [log for log in logs(folder) if "eval_loss" in log]
    assert log["eval_ce"] > 0


class TestRefusals:
    """What cannot go well is said before any work, in one line."""

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"data_seed": 5}, "another seed.*expected 42, got 5"),
            ({"per_device_train_batch_size": 4}, "another batch_size.*expected 8, got 4"),
            ({"eval_fraction": 0.3}, "another eval_fraction"),
            ({"shuffle_row_groups": 2}, "another shuffle_row_groups"),
            ({"gradient_accumulation_steps": 2}, "another batches_a_step"),
        ],
    )
    def test_a_resume_onto_another_stream(
        self, run: Callable[..., Path], changes: dict[str, Any], named: str
    ) -> None:
        checkpoint = run(max_steps=2, save_steps=2) / "checkpoint-2"
        with pytest.raises(UsageError, match=named):
            run("again", resume_from_checkpoint=str(checkpoint), **changes)

    def test_a_resume_on_another_cache(
        self, run: Callable[..., Path], class_cache_of: Callable[..., Cache]
    ) -> None:
        checkpoint = run(max_steps=2, save_steps=2) / "checkpoint-2"
        with pytest.raises(UsageError, match="another header_hash"):
            run("again", cache=class_cache_of(), resume_from_checkpoint=str(checkpoint))

    def test_a_resume_takes_the_version_of_its_checkpoint(self, run: Callable[..., Path]) -> None:
        folder = run(max_steps=2, save_steps=2)
        path = folder / "checkpoint-2" / "teachonce.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 7}))
        with pytest.raises(NoCacheError, match="7"):
            run("again", resume_from_checkpoint=str(path.parent))
        with pytest.raises(UsageError, match="another version"):
            run("again", resume_from_checkpoint=str(path.parent), cache_version=0)

    @pytest.mark.parametrize("where", ["last", "/nowhere/checkpoint-3"])
    def test_a_resume_from_nothing(self, run: Callable[..., Path], where: str) -> None:
        with pytest.raises(UsageError, match=r"no.*checkpoint"):
            run(resume_from_checkpoint=where)

    def test_a_resume_from_what_is_not_ours(self, run: Callable[..., Path], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"teachonce\.json"):
            run(resume_from_checkpoint=str(tmp_path))
        (tmp_path / "teachonce.json").write_text("{}")
        with pytest.raises(UsageError, match="cannot be read"):
            run(resume_from_checkpoint=str(tmp_path))

    def test_last_is_the_newest_checkpoint(self, run: Callable[..., Path]) -> None:
        settings: dict[str, Any] = {"save_steps": 2, "lr_scheduler_type": "constant", "warmup_steps": 0.0}
        run(max_steps=4, **settings)
        again = run(max_steps=6, resume_from_checkpoint="last", **settings)
        assert same(again, run("whole", max_steps=6, **settings))

    def test_no_cache(self, run: Callable[..., Path], tmp_path: Path) -> None:
        with pytest.raises(NoCacheError, match="no cache"):
            train(
                TrainConfig(cache=str(tmp_path / "none"), student="x.json"),
                StudentArguments(output_dir=str(tmp_path / "out"), use_cpu=True),
            )

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("dataloader_num_workers", 2),
            ("label_smoothing_factor", 0.1),
            ("auto_find_batch_size", True),
            ("torch_compile", True),
        ],
    )
    def test_flags_without_a_meaning_here(self, run: Callable[..., Path], flag: str, value: Any) -> None:
        with pytest.raises(UsageError, match=f"--{flag} has no place here"):
            run(**{flag: value})

    def test_two_gpus_in_one_process(self, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(StudentArguments, "n_gpu", 2)
        with pytest.raises(UsageError, match="torchrun --nproc_per_node 2 -m teachonce train"):
            run()

    def test_labels_that_are_not_there(
        self, run: Callable[..., Path], class_cache_of: Callable[..., Cache]
    ) -> None:
        with pytest.raises(StudentError, match="labels"):
            run(cache=class_cache_of(labelled=False), model={"model_type": "bert"}, losses=["ce=1"])

    def test_nothing_held_out_to_evaluate_on(self, run: Callable[..., Path]) -> None:
        with pytest.raises(UsageError, match="--eval_fraction"):
            run(eval_fraction=0.0, eval_strategy="epoch")

    def test_nothing_left_to_train_on(self, run: Callable[..., Path]) -> None:
        with pytest.raises(UsageError, match="no row is left"):
            run(eval_fraction=1 - 2**-53)

    @pytest.mark.parametrize(("name", "value"), [("eval_fraction", 1.0), ("shuffle_row_groups", 0)])
    def test_settings_of_nonsense(self, run: Callable[..., Path], name: str, value: float) -> None:
        with pytest.raises(UsageError, match=f"--{name}.*got {value}"):
            run(**{name: value})


def test_a_deeper_teacher_without_a_header_is_as_deep_as_its_features(causal_cache: Cache) -> None:
    from trainer.training import teacher_layers

    assert teacher_layers(causal_cache) == 2


def test_a_teacher_of_another_seed_is_another_student(run: Callable[..., Path], tmp_path: Path) -> None:
    """A folder is opened with its weights: a step of almost no size leaves them."""
    folder = make_llama(tmp_path / "start", seed=9)
    out = run(student=folder, max_steps=1, learning_rate=1e-9, save_strategy="no")
    ours, theirs = weights(out), weights(Path(folder))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=0)
