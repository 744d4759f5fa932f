"""What a classifier gains by each other way to distil it, over a plain student of as many steps: a row each.

WordNet glosses of 45 classes; the teacher is a fine-tuned MiniLM (`examples/make_wordnet_teacher.py`). The plain
student begins as two of its six layers and is taught by `kl=1`. With the same start, batches and steps: by labels
alone, by a student like itself (a second generation), by the merged caches of three students (a distilled ensemble),
and beside a second task. Without a backbone: a linear map, and an MLP, on the teacher's features. Three students
together, by mean, vote and fitted weights. And the best of a sweep of as many steps a trial. All on glosses that
nobody was trained on.

    python benchmarks/assets.py data --only minilm
    python benchmarks/assets.py data --only wordnet
    python examples/make_wordnet_teacher.py --data data --out data/wordnet-teacher
    python benchmarks/several_classifiers.py          # some minutes on one core; what is there is kept

A part of it, as `--also tasks sweep` names it, has results of its own: `results/several-classifiers-sweep-tasks.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from gains import Row, evaluated, finish, measured, run, said, trained
from quality_parts import ROOT

sys.path.insert(0, str(ROOT / "examples"))

from make_wordnet_teacher import EVAL_FRACTION, read_glosses, sample

METRICS = ("accuracy", "agreement", "kl_nats")
MEANING = ("cosine_to_teacher",)
USUAL = {
    "per_device_train_batch_size": 16,
    "learning_rate": 3e-4,
    "warmup_steps": 0.1,
    "eval_fraction": EVAL_FRACTION,
}
ALSO = ("ensembles", "tasks", "sweep")
SPACE = {
    "losses": {"kl": 1.0, "ce": {"uniform": [0, 1]}},
    "temperature": [1, 2, 4],
    "learning_rate": {"log": [1e-4, 3e-3]},
}


def main() -> None:
    arguments = parse_arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    glosses = sample(read_glosses(arguments.data / "wordnet.jsonl"), arguments.glosses)
    (folder / "glosses.jsonl").write_text("".join(json.dumps(one._asdict()) + "\n" for one in glosses))
    classify(folder, arguments.teacher, "topic")
    told = ("--student", str(arguments.teacher), "--eval_fraction", str(EVAL_FRACTION))
    found = evaluated(folder / "teacher.json", folder / "topic", *told)["metrics"]
    rows = [said(Row("the teacher", 1, {key: found[key] for key in METRICS}))]
    for seed in arguments.seeds:
        rows += of_seed(folder, arguments, seed)
        if "tasks" in arguments.also:
            rows += both_tasks(folder, arguments, seed)
    if "ensembles" in arguments.also:
        rows += ensembles(folder, arguments)
    if "sweep" in arguments.also:
        rows += searched(folder, arguments)
    part = "" if set(arguments.also) == set(ALSO) else "-".join(["", *sorted(arguments.also)])
    finish(f"several-classifiers{part}", rows, vars(arguments), plain="plain")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = ROOT / "data"
    parser.add_argument("--data", type=Path, default=data, help="made by assets.py")
    parser.add_argument("--teacher", type=Path, default=data / "wordnet-teacher")
    parser.add_argument("--folder", type=Path, default=data / "several-classifiers")
    parser.add_argument("--also", nargs="*", choices=ALSO, default=ALSO, help="beside single students")
    parser.add_argument("--glosses", type=int, default=3_000)
    parser.add_argument("--steps", type=int, default=100, help="of each student")
    parser.add_argument("--trials", type=int, default=4, help="of the sweep")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    return parser.parse_args()


def of_seed(folder: Path, arguments: argparse.Namespace, seed: int) -> Iterator[Row]:
    """The students of one seed, each trained and measured."""
    shrink = ("--student", "shrink:layers=2", "--teacher", str(arguments.teacher))

    def row(name: str, *flags: str, cache: str = "topic", start: tuple[str, ...] = shrink) -> Row:
        out = folder / f"{name.replace(' ', '-').replace(':', '-')}-{seed}"
        trained(out, "--cache", str(folder / cache), *start, *_flags(arguments.steps, seed), *flags)
        return measured(name, seed, out, folder / "topic", METRICS)

    yield row("labels alone", "--losses", "ce=1")
    yield row("plain", "--losses", "kl=1")
    classify(folder, folder / f"plain-{seed}", f"plain-{seed}-said")
    yield row("generation 2", "--losses", "kl=1", cache=f"plain-{seed}-said")
    for name, rate in (("linear", "1e-2"), ("mlp:256", "1e-3")):
        yield row(name, "--losses", "kl=1", "--learning_rate", rate, start=("--student", name))


def both_tasks(folder: Path, arguments: argparse.Namespace, seed: int) -> Iterator[Row]:
    """The second task alone, and both in one student."""
    precompute(folder, arguments.data / "minilm", "meaning", "feature-extraction")
    out = folder / f"plain-meaning-{seed}"
    shrink = ("--student", "shrink:layers=2", "--teacher", str(arguments.teacher))
    trained(out, "--cache", str(folder / "meaning"), *shrink, *_flags(arguments.steps, seed),
            "--losses", "feature=1,distance=cosine")  # fmt: skip
    yield measured("plain, meaning", seed, out, folder / "meaning", MEANING)
    for share, steps in (("as many steps", arguments.steps), ("as many of each", 2 * arguments.steps)):
        yield from two_tasks(folder, arguments, seed, share, steps)


def two_tasks(folder: Path, arguments: argparse.Namespace, seed: int, name: str, steps: int) -> Iterator[Row]:
    """One student of both tasks, measured on each."""
    out = folder / f"two-tasks-{steps}-{seed}"
    topic = {"cache": str(folder / "topic"), "losses": {"kl": 1}, "share": 1}
    meaning = {"cache": str(folder / "meaning"), "losses": ["feature=1,distance=cosine"], "share": 1}
    told = {"student": "shrink:layers=2", "teacher": str(arguments.teacher), **USUAL}
    told |= {"max_steps": steps, "seed": seed, "tasks": {"topic": topic, "meaning": meaning}}
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(told, sort_keys=False))
    trained(out, "--tasks", str(file))
    for task, metrics in (("topic", METRICS), ("meaning", MEANING)):
        yield measured(f"two tasks, {name}: {task}", seed, out / task, folder / task, metrics)


def ensembles(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """The plain students of all seeds, and the first by labels alone, together; then as one student."""
    members = [folder / f"plain-{seed}" for seed in arguments.seeds]
    members.append(folder / f"labels-alone-{arguments.seeds[0]}")
    for how in ("mean", "vote", "fitted"):
        flags = ("--students", *map(str, members), "--ensemble", how)
        found = evaluated(folder / f"ensemble-{how}.json", folder / "topic", *flags)
        together = found["ensemble"]["metrics"]
        yield said(Row(f"ensemble, {how}", 1, {key: together.get(key) for key in METRICS}))
        if how == "fitted":
            for number, one in enumerate(found["students"]):
                own = {key: one["metrics"][key] for key in METRICS}
                yield said(Row(f"its member {members[number].name}, on the same half", 1, own))
    caches = []
    for member in members:
        classify(folder, member, f"{member.name}-said")
        caches.append(str(folder / f"{member.name}-said"))
    run("merge", *caches, "--out", str(folder / "ensemble-said"), "--no_progress")
    for seed in arguments.seeds:
        out = folder / f"distilled-{seed}"
        trained(out, "--cache", str(folder / "ensemble-said"), "--student", "shrink:layers=2", "--teacher",
                str(arguments.teacher), "--losses", "kl=1", *_flags(arguments.steps, seed))  # fmt: skip
        yield measured("ensemble distilled", seed, out, folder / "topic", METRICS)


def searched(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """The best of a sweep, by the agreement and accuracy on the glosses that it was chosen by."""
    space, study = folder / "space.yaml", folder / "study"
    fixed = {"student": "shrink:layers=2", "teacher": str(arguments.teacher), "max_steps": arguments.steps}
    told = USUAL | fixed | {"seed": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True} | SPACE
    space.write_text(yaml.safe_dump(told, sort_keys=False))
    run("sweep", str(folder / "topic"), "--space", str(space), "--study", str(study), "--trials",
        str(arguments.trials), "--parallel", "2", "--pruner", "none")  # fmt: skip
    best = study / "best"
    found = evaluated(folder / "best.json", folder / "topic", "--student", str(best))["metrics"]
    yield said(Row(f"best of {arguments.trials} trials", 1, {key: found[key] for key in METRICS}))


def classify(folder: Path, teacher: Path, name: str) -> None:
    """One classifier's cache; a second time nothing is done."""
    features = ("--features", "mean:-1") if name == "topic" else ()
    precompute(folder, teacher, name, "sequence-classification", "--label_field", "label", *features)


def precompute(folder: Path, teacher: Path, name: str, task: str, *more: str) -> None:
    run("precompute", "--corpus", str(folder / "glosses.jsonl"), "--teacher", str(teacher), "--task", task,
        "--cache", str(folder / name), "--max_length", "64", "--no_progress", *more)  # fmt: skip


def _flags(steps: int, seed: int) -> list[str]:
    told = USUAL | {"max_steps": steps, "seed": seed}
    return [part for key, value in told.items() for part in (f"--{key}", str(value))]


if __name__ == "__main__":
    main()
