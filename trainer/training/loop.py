"""Hugging Face's `Trainer`, told as little as it takes: where batches come from, what is saved, and what is logged.

* Batches are this project's own; each rank reads its share, and accelerate does not touch them.
* The loss is the mean over the positions of the whole accumulated global batch, however they fall on ranks and steps.
* Every save holds the plain student with its tokenizer, and apart from it the projections; it is whole or not there.
* Each loss term is logged as its mean since the last log, and the share of padding in what was read; nothing waits for
  the device between logs.
* What is saved when, and how a run ends, is `trainer/checkpoints/keeping.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from schemas.cli.logs import is_watched
from trainer.batches.batch import Batch
from trainer.checkpoints.keeping import EvaluationStopped, KeepingTrainer
from trainer.checkpoints.records import Record
from trainer.checkpoints.shards import gathered
from trainer.checkpoints.signals import Signals
from trainer.losses.stages import stage_at
from trainer.stream.replay import Address, Replay, loader
from trainer.students.student import Student
from trainer.training.distiller import Distiller
from trainer.training.log_lines import log_in_lines
from trainer.training.own_metrics import Gathered, check_best
from trainer.training.own_parts import OwnParts
from trainer.training.sharding import check_kept_as, shard_on_cpus
from trainer.training.staged import frozen_names, staged_scheduler
from trainer.training.student_files import load_student, save_student
from trainer.training.tasks_distiller import TasksDistiller
from trainer.training.tasks_stream import TasksReplay
from trainer.training.turns import Turn

_BATCHES_BETWEEN_AGREEMENTS = 16


class DistillationTrainer(KeepingTrainer):
    """Trains a `Distiller` on a `Replay`."""

    lr_scheduler: Any

    def __init__(
        self,
        *,
        distiller: Distiller | TasksDistiller,
        student: Student,
        arguments: TrainingArguments,
        training: Replay | TasksReplay,
        evaluation: Replay | dict[str, Replay] | None,
        record: Record,
        signals: Signals,
        turn: Turn | None = None,
        own: OwnParts | None = None,
    ) -> None:
        """With a `turn` others train in this process too, each when its turn comes."""
        own = own or OwnParts()
        super().__init__(
            record=record,
            signals=signals,
            callbacks=own.callbacks,
            model=distiller,
            args=arguments,
            train_dataset=training,
            eval_dataset=evaluation,
        )
        if arguments.disable_tqdm or not is_watched():
            log_in_lines(self)
        self._distiller, self.student, self._turn = distiller, student, turn
        self._stages = distiller.objective.stages
        self._frozen = [frozen_names(stage, student.model) for stage in self._stages] or [[]]
        self._measures = own if own.compute_metrics is not None else None
        self._terms: dict[str, Tensor] = {}
        self._steps: dict[str, set[int]] = {}
        self._tokens = torch.zeros(2, dtype=torch.float64)

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does, and FSDP also on CPUs."""
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled: bool
        if self.args.fsdp and not self.is_fsdp_enabled:
            self.is_fsdp_enabled = shard_on_cpus(self.accelerator, self.args.fsdp_plugin_args)

    def _prepare_for_training(self, *arguments: Any) -> Any:
        """As transformers does; and callbacks of the caller's are given the student, not what is wrapped around it."""
        prepared = super()._prepare_for_training(*arguments)
        if self._own:
            self.callback_handler.model = self.student.model
        return prepared

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This rank's batches; transformers skips addresses, not data, when it resumes."""
        return loader(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """This rank's part of the held-out batches."""
        return loader(self.eval_dataset if eval_dataset is None else eval_dataset)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The batches of the next step, when it is this student's turn to take one."""
        if self._turn is not None:
            steps, order = self.state.global_step, self.train_dataset.order
            epoch, step = divmod(steps, order.num_steps)
            first = step * self.train_dataset.share.batches_a_step(order)
            self.train_dataset.open(Address(epoch, first))
            self._turn.before_step(steps)
            if self.health.must_stop:
                self.stop_between()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _in_turn(self, batches: DataLoader[Any]) -> Iterator[Any]:
        """The batches of an evaluation, each when it is this student's turn."""
        replay, iterator = batches.dataset, iter(batches)
        if self._turn is not None:
            replay.open(Address(0, 0))  # type: ignore[attr-defined]
        for number in range(len(batches)):
            if self._turn is not None:
                self._turn.before_batch(self.state.global_step, number)
            yield next(iterator)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The loss, while each term's part is kept for the next log."""
        self._distiller.progress = self.state.global_step / max(1, self.state.max_steps)
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if model.training:
            for term, part in outputs.items():
                if term != "loss":
                    name = self._logged_as(term)
                    self._terms[name] = self._terms[name] + part if name in self._terms else part
                    self._steps.setdefault(name, set()).add(self.state.global_step)
        return (loss, outputs) if return_outputs else loss

    def _logged_as(self, term: str) -> str:
        """A term's name in a log."""
        return term

    def _weights(self) -> Mapping[Any, float]:
        """The weights of the losses that are evaluated."""
        weights: Mapping[Any, float] = self._distiller.objective.weights
        return weights

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *others: Any) -> Tensor:
        """As transformers does, and what the stage freezes has no gradient then."""
        loss: Tensor = super().training_step(model, inputs, *others)
        for name in self._frozen[stage_at(self._stages, self._distiller.progress or 0.0)]:
            self.student.model.get_parameter(name).grad = None
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As transformers does, or one for each stage."""
        if self.lr_scheduler is None and self._stages:
            found = staged_scheduler(self._stages, optimizer or self.optimizer, self.args, num_training_steps)
            self.lr_scheduler, self._created_lr_scheduler = found, True
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        """Positions, labelled positions and examples of the accumulated global batch, `[3]`."""
        if not batch_samples:
            return None
        for sample in batch_samples:
            batch: Batch = sample["batch"]
            self._tokens += torch.tensor([batch.num_tokens, batch.padded_tokens])
        counts: Tensor = torch.stack([sample["batch"].counts for sample in batch_samples]).sum(0)
        if device.type == "cuda":
            counts = counts.pin_memory()
        counts = counts.to(device, non_blocking=True)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return counts

    def _prepare_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"batch": inputs["batch"].to(self.args.device)}

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Of a training step on this batch."""
        return self._distiller.floating_point_ops(inputs["batch"])

    def _track_num_input_tokens(self, inputs: Mapping[str, Any]) -> None:
        batch: Batch = inputs["batch"]
        super()._track_num_input_tokens(
            {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each term's mean over the steps since the last log, over all ranks, and `padding`: the share of the
        tokens read since then that are no example's."""
        if "loss" in logs and self._terms:
            sums = torch.stack([part.float() for part in self._terms.values()])
            tokens = self._tokens.to(sums.device, torch.float32)
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, reduction="sum")
                tokens = self.accelerator.reduce(tokens, reduction="sum")
            steps = sums.new_tensor([len(self._steps[name]) for name in self._terms])
            logs |= dict(zip(self._terms, (sums / steps).tolist(), strict=True))
            own, read = tokens.tolist()
            logs["padding"] = 1 - own / read
            self._terms, self._steps, self._tokens = {}, {}, torch.zeros_like(self._tokens)
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss and terms over all held-out positions, each with its own weight.

        Raises:
            EvaluationStopped: a signal came.
        """
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        sums: dict[str, Tensor] = {}
        counts = torch.zeros(3, dtype=torch.int64)
        every = 1 if self.args.world_size == 1 else _BATCHES_BETWEEN_AGREEMENTS
        gathered_own = None if self._measures is None else Gathered(self._measures)
        try:
            for number, inputs in enumerate(self._in_turn(dataloader)):
                if number % every == 0 and self.health.agree():
                    raise EvaluationStopped
                ones, prepared = torch.ones(3, dtype=torch.int64), self._prepare_inputs(inputs)
                if gathered_own is not None:
                    self._distiller.on_logits = gathered_own.add
                outputs = self.model(**prepared, num_items_in_batch=ones)
                for name, part in outputs.items():
                    sums[name] = sums.get(name, torch.zeros_like(part)) + part
                counts += inputs["batch"].counts
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        finally:
            self._distiller.on_logits = None
            dataloader.dataset.close()  # type: ignore[attr-defined]
        metrics = self._means(sums, counts.to(self.args.device))
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            raise self.not_finite(self.state.global_step, f"{bad[-1]} in an evaluation")
        if gathered_own is not None:
            metrics |= gathered_own.metrics([*metrics], world_size=self.args.world_size)
        found = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        check_best(self.args.metric_for_best_model, found)
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics=found,
            num_samples=len(dataloader.dataset),  # type: ignore[arg-type]
        )

    def _means(self, sums: Mapping[str, Tensor], counts: Tensor) -> dict[str, float]:
        """The terms' means from their sums, over all ranks; the loss is their weighted sum."""
        names = [name for name in sums if name != "loss"]
        totals = torch.stack([sums[name].double() for name in names])
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, reduction="sum")
            counts = self.accelerator.reduce(counts, reduction="sum")
        objective = self._distiller.objective
        divisors = [max(1, int(counts[objective.divisor(name)])) for name in names]
        means = {n: total / d for n, total, d in zip(names, totals.tolist(), divisors, strict=True)}
        weights = self._weights()
        return {"loss": sum(weights[name] * means[name] for name in weights if name in means), **means}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers does; shards are gathered on rank 0 first, by all ranks."""
        if self.is_fsdp_enabled:
            self._save(output_dir, state_dict=gathered(self.model))
        else:
            super().save_model(output_dir, _internal_call=_internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The student as itself or as its adapter, its tokenizer and the projections."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            save_student(self.student, self._distiller.projections, folder, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Student or adapter, and projections, of a checkpoint, into the modules that are being trained."""
        folder = Path(resume_from_checkpoint)
        check_kept_as(folder, in_shards=self.is_fsdp_enabled)
        load_student(self.student, self._distiller.projections, folder)
