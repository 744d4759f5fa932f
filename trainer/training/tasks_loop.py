"""The loop of several tasks: `DistillationTrainer`, where each batch says whose it is, and each task has a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trainer.checkpoints.records import Record
from trainer.checkpoints.whole_folders import seal
from trainer.students.student import Student
from trainer.training.loop import DistillationTrainer
from trainer.training.student_files import load_student, save_student
from trainer.training.tasks_distiller import LOG_VARIANCES, TasksDistiller
from trainer.training.tasks_stream import task_loader, tasks_loader

TASKS_NAME = "tasks.safetensors"
"""What is of no task alone: the uncertainties."""


class TasksTrainer(DistillationTrainer):
    """Trains a `TasksDistiller` on a `TasksReplay`; each task is evaluated, logged and saved by its name."""

    def __init__(
        self, *, students: Mapping[str, Student], records: Mapping[str, Record], **keywords: Any
    ) -> None:
        self.students, self._records, self._task = dict(students), dict(records), next(iter(students))
        super().__init__(student=students[self._task], **keywords)

    @property
    def _tasks(self) -> TasksDistiller:
        found = self._distiller
        assert isinstance(found, TasksDistiller)
        return found

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of all tasks."""
        return tasks_loader(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """One task's held-out batches."""
        self._task = str(eval_dataset)
        return task_loader(self._task, self.eval_dataset[self._task])

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As transformers finds them; an uncertainty is pulled to no value."""
        return [name for name in super().get_decay_parameter_names(model) if LOG_VARIANCES not in name]

    def _prepare_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self._task = inputs["task"]
        return {**super()._prepare_inputs(inputs), "task": self._task}

    def _logged_as(self, term: str) -> str:
        return f"{self._task}_{term}"

    def _weights(self) -> Mapping[Any, float]:
        weights: Mapping[Any, float] = self._tasks.of(self._task).objective.weights
        return weights

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Each task's student, projections and record in a folder of its own."""
        folder = Path(output_dir or self.args.output_dir)
        for name, student in self.students.items():
            own = folder / name
            own.mkdir()
            save_student(student, self._tasks.of(name).projections, own, None)
            seal(own, replace(self._manifest(finished=True), record=self._records[name]))
        if self._tasks.log_variances is not None:
            save_file({LOG_VARIANCES: self._tasks.log_variances.detach()}, folder / TASKS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """All tasks' students and projections, into the modules that are being trained."""
        folder = Path(resume_from_checkpoint)
        for name, student in self.students.items():
            load_student(student, self._tasks.of(name).projections, folder / name)
        if self._tasks.log_variances is not None:
            self._tasks.log_variances.data.copy_(load_file(folder / TASKS_NAME)[LOG_VARIANCES])
