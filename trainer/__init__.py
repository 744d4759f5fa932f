"""READS. A cache becomes students: stream, losses, students, evaluation. torch and transformers; never Beam.

From Python:

```python
from trainer import StudentArguments, TrainConfig, train

train(
    TrainConfig(cache="cache", student="student.json", losses=["kl=1.0", "ce=0.5"]),
    StudentArguments(output_dir="student", num_train_epochs=3),
)
```

A name is opened when it is asked for: a help text imports this package too, and needs neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.evaluation.comparison import Compared, compare
    from trainer.evaluation.config import EvaluateConfig
    from trainer.evaluation.evaluation import Evaluated, evaluate
    from trainer.losses.loss import Loss
    from trainer.training.arguments import StudentArguments
    from trainer.training.config import TrainConfig
    from trainer.training.fanout import Outcome, train_students
    from trainer.training.several_tasks import train_tasks
    from trainer.training.tasks_config import TasksConfig
    from trainer.training.training import Trained, train

__all__ = [
    "Compared",
    "EvaluateConfig",
    "Evaluated",
    "Loss",
    "Outcome",
    "StudentArguments",
    "TasksConfig",
    "TrainConfig",
    "Trained",
    "compare",
    "evaluate",
    "train",
    "train_students",
    "train_tasks",
]

_HOMES = {
    "trainer.evaluation.comparison": ("Compared", "compare"),
    "trainer.evaluation.config": ("EvaluateConfig",),
    "trainer.evaluation.evaluation": ("Evaluated", "evaluate"),
    "trainer.losses.loss": ("Loss",),
    "trainer.training.arguments": ("StudentArguments",),
    "trainer.training.config": ("TrainConfig",),
    "trainer.training.fanout": ("Outcome", "train_students"),
    "trainer.training.several_tasks": ("train_tasks",),
    "trainer.training.tasks_config": ("TasksConfig",),
    "trainer.training.training": ("Trained", "train"),
}
"""Where each name lives."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
