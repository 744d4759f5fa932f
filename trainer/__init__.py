"""READS. A cache becomes students: stream, losses, students, evaluation. torch and transformers; never Beam.

From Python:

```python
from trainer import StudentArguments, TrainConfig, train

train(
    TrainConfig(cache="cache", student="student.json", losses=["kl=1.0", "ce=0.5"]),
    StudentArguments(output_dir="student", num_train_epochs=3),
)
```
"""

from trainer.evaluation.evaluation import EvaluateConfig, Evaluated, evaluate
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.fanout import Outcome, train_students
from trainer.training.training import Trained, train

__all__ = [
    "EvaluateConfig",
    "Evaluated",
    "Outcome",
    "StudentArguments",
    "TrainConfig",
    "Trained",
    "evaluate",
    "train",
    "train_students",
]
