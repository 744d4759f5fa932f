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

from trainer.evaluation.comparison import Compared, compare
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.evaluation import Evaluated, evaluate
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.fanout import Outcome, train_students
from trainer.training.training import Trained, train

__all__ = [
    "Compared",
    "EvaluateConfig",
    "Evaluated",
    "Outcome",
    "StudentArguments",
    "TrainConfig",
    "Trained",
    "compare",
    "evaluate",
    "train",
    "train_students",
]
