"""`TasksDistiller`: several tasks' distillers in one module, whose students share a backbone; a batch is one task's.

With uncertainty (arXiv:1705.07115) a task's loss L is weighed as exp(-s) L + s / 2, where s = log sigma^2 is trained:
what is hard to learn is weighed less, and s / 2 keeps sigma from growing without end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.batches.batch import Batch
from trainer.students.features import Projections
from trainer.training.distiller import Distiller

LOG_VARIANCES = "log_variances"
"""The parameter's name: of each task its s, in the tasks' order."""
SIGMA = "sigma"
"""Logged for each task with uncertainty."""


class TasksDistiller(nn.Module):
    """Maps a batch and its task to the task's loss."""

    accepts_loss_kwargs = True
    projections: Projections | None = None
    """Each task's are its own distiller's."""

    def __init__(self, distillers: Mapping[str, Distiller], *, uncertainty: bool = False) -> None:
        super().__init__()
        self.names = tuple(distillers)
        self.distillers = nn.ModuleList(distillers.values())
        self.log_variances: nn.Parameter | None = None
        if uncertainty:
            self.log_variances = nn.Parameter(torch.zeros(len(distillers)))

    def of(self, task: str) -> Distiller:
        """One task's."""
        found = self.distillers[self.names.index(task)]
        assert isinstance(found, Distiller)
        return found

    @property
    def objective(self) -> Any:
        """The first task's: no task has stages."""
        return self.of(self.names[0]).objective

    @property
    def progress(self) -> float | None:
        """The share of the run's steps that are taken."""
        return self.of(self.names[0]).progress

    @progress.setter
    def progress(self, value: float | None) -> None:
        for name in self.names:
            self.of(name).progress = value

    def forward(self, batch: Batch, task: str, num_items_in_batch: Tensor | None = None) -> dict[str, Tensor]:
        """The `loss`, and each term's part of it without its weight."""
        found = self.of(task)(batch, num_items_in_batch)
        if self.log_variances is None or not self.training:
            return dict(found)
        log_variance = self.log_variances[self.names.index(task)]
        totals = batch.counts if num_items_in_batch is None else num_items_in_batch
        examples = float(batch.counts[-1])
        share = examples / totals.to(found["loss"].device)[-1].clamp_min(1)
        loss = (-log_variance).exp() * found["loss"] + share * log_variance / 2
        sigma = share * (log_variance.detach() / 2).exp()
        return {**found, "loss": loss, SIGMA: sigma}

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """Passed on to each student."""
        for name in self.names:
            self.of(name).activation_checkpointing_enable(**arguments)

    def floating_point_ops(self, batch: Batch) -> int:
        """Of a training step on this batch, by the first task's student: heads are small beside the backbone."""
        return self.of(self.names[0]).floating_point_ops(batch)
