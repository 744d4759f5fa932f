"""A sweep's trials P at once, from one decode, against the same trials one by one: the ratio of processor time.

* **at once**: `teachonce sweep --parallel 4`, four trials of a grid of learning rates.
* **one by one**: the same grid with `--parallel 1`.

Both are whole sweeps: drawing, training, measuring each student at its end, writing the study. The students and the
cache are those of `fanout.py`, which measures trainings alone. Both ways run in turns, and the first turn is not
counted. What they find is compared: it must be equal.

    python benchmarks/sweep.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
import yaml
from fanout import MODEL, make_caches, measured
from ratios import tell

import teachonce

RATES = [1e-3, 5e-4, 2e-4, 1e-4]
WAYS = {"at once": len(RATES), "one by one": 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--keep", default="top_k:64")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (cache,) = make_caches(folder, [arguments.keep])
        space = write_space(folder, arguments.steps)
        ratios = [one_turn(folder, cache, space, turn) for turn in range(arguments.turns + 1)][1:]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"at once / one by one, processor time, turn by turn: {each}", flush=True)
    tell("a sweep of four trials at once / one by one, processor time", statistics.median(ratios))


def write_space(folder: Path, steps: int) -> Path:
    (folder / "student.json").write_text(json.dumps(MODEL))
    space = {
        "student": str(folder / "student.json"),
        "learning_rate": RATES,
        "max_steps": steps,
        "per_device_train_batch_size": 32,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    return folder / "space.yaml"


def one_turn(folder: Path, cache: str, space: Path, turn: int) -> float:
    times, found = {}, {}
    for way, parallel in WAYS.items():
        study = folder / f"{way}-{turn}".replace(" ", "-")
        argv = ["sweep", cache, "--space", str(space), "--study", str(study), "--json"]
        argv += ["--sampler", "grid", "--pruner", "none", "--parallel", str(parallel), "--keep", "all"]
        times[way] = measured(lambda argv=argv: teachonce.main(argv))[1]
        states = [study / f"trial-{number:04d}" / "trainer_state.json" for number in range(len(RATES))]
        found[way] = [json.loads(state.read_text())["log_history"][0]["loss"] for state in states]
    assert found["at once"] == found["one by one"]
    return times["at once"] / times["one by one"]


if __name__ == "__main__":
    main()
