"""`KeepingTrainer`: a `Trainer` that saves whole checkpoints of what is finite, and ends when it is asked to.

* A checkpoint is written as `trainer/checkpoints/whole_folders.py` says, and carries the run's record.
* A step that is not finite ends the run; on a CPU before its weights are touched, and nothing is saved of it.
* A signal ends the run when its step is done and saved. An evaluation is broken off, and made up for by the next run.
* A checkpoint at an epoch's last step is taken after what the epoch's end does (an evaluation that lowers the learning
  rate, say): so a resumed run misses nothing, and gives the undisturbed run's weights.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import SaveStrategy, TrainOutput

from schemas.errors import TrainingError, one_line
from trainer.checkpoints import callback_states
from trainer.checkpoints.health import Health
from trainer.checkpoints.records import Manifest, Record
from trainer.checkpoints.shards import whole
from trainer.checkpoints.signals import Signals, Stopped, name_of
from trainer.checkpoints.whole_folders import (
    FINISHED,
    SAVING,
    check_whole,
    checkpoint_name,
    finish,
    publish,
    rotate,
    seal,
)

GO_ON = "the same command with --resume_from_checkpoint auto goes on"


class EvaluationStopped(Exception):  # noqa: N818  (nothing is wrong: a signal came)
    """An evaluation is not done."""


class KeepingTrainer(Trainer):  # type: ignore[misc]
    """What is kept of a run, and when; a subclass says what a loss is and how a model is saved."""

    def __init__(
        self, *, record: Record, signals: Signals, callbacks: Sequence[Any] = (), **keywords: Any
    ) -> None:
        self._flow = _Flow(self)
        self._own = [each() if isinstance(each, type) else each for each in callbacks]
        super().__init__(callbacks=[*self._own, self._flow], **keywords)
        self._record, self._signals = record, signals
        self.health = Health(self.args.device, self.args.world_size, signals, self._not_finite)
        self.evaluation_due = False
        self.saved: Path | None = None
        """The newest checkpoint of this run."""
        self.control: Any

    def terms_not_finite(self) -> list[str]:
        """Names of the losses that are to blame."""
        return []

    def not_finite(self, step: int, what: str) -> TrainingError:
        """The error that ends a run at a step whose loss, gradient or weights are not finite."""
        last = (
            "no checkpoint was saved before"
            if self.saved is None
            else f"the last good checkpoint is {self.saved}"
        )
        return TrainingError(
            f"training is no longer finite at step {step}",
            got=f"{what}, which is not finite",
            do=f"Lower --learning_rate (it was {self.args.learning_rate:g}), or warm up longer; {last}",
        )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm, which with the loss says whether the step may be taken; float16's scaler sees to its own."""
        norm = whole(super()._get_grad_norm(model, grad_norm))
        found = [self._tr_loss] if self.args.fp16 else [self._tr_loss, norm]
        self.health.ask(self.state.global_step + 1, *(value.to(self.args.device) for value in found))
        return norm

    def _not_finite(self, step: int) -> None:
        raise self.not_finite(step, ", ".join(self.terms_not_finite()) or "the gradient")

    def _init_training_state(self, max_steps: int, *others: Any) -> Any:
        """Transformers would go on logging, evaluating and saving as the checkpoint's run did, whatever is asked."""
        begun = super()._init_training_state(max_steps, *others)
        self.state.compute_steps(self.args, max_steps)
        callback_states.restore(self.state, self._own)
        best = self.state.best_global_step
        if self.saved is not None and best and (place := self.saved.parent / checkpoint_name(best)).is_dir():
            self.state.best_model_checkpoint = str(place)
        return begun

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        """Takes no step beyond the last: a checkpoint may have been taken there."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*arguments, **keywords)

    def run(self, checkpoint: Path | None, manifest: Manifest | None) -> TrainOutput:
        """Trains from a checkpoint or from the start, and writes the finished student.

        Raises:
            UsageError: the best weights so far are gone, and may be asked for at the end.
            TrainingError: a step was not finite, or what was trained cannot be saved.
            Stopped: a signal came.
        """
        if checkpoint is not None and manifest is not None:
            self._take_up(checkpoint, manifest)
        try:
            result = self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        except EvaluationStopped:
            raise self._stopped("stopped in an evaluation before the next step; nothing is lost") from None
        self.save_finished()
        return result

    def _take_up(self, checkpoint: Path, manifest: Manifest) -> None:
        self.saved, self.evaluation_due = checkpoint, manifest.evaluation_due
        best = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_global_step
        if best and self.args.load_best_model_at_end:
            check_whole(checkpoint.parent / checkpoint_name(best))

    def catch_up(self) -> None:
        """Makes up for the evaluation in which the run was stopped."""
        if not self.evaluation_due:
            return
        # The checkpoint is written anew below, before the loop would take its random numbers from there.
        self._load_rng_state(str(self.saved))
        is_best = self._determine_best_metric(metrics=self._evaluate(None, None), trial=None)
        self.evaluation_due = False
        if is_best or self.args.save_strategy != SaveStrategy.BEST:
            self._save_checkpoint(self.model, None)

    def _maybe_log_save_evaluate(self, *arguments: Any, **keywords: Any) -> None:
        """What a step's or an epoch's end does, and then the end of the run if a signal came."""
        try:
            super()._maybe_log_save_evaluate(*arguments, **keywords)
        except EvaluationStopped:
            self.evaluation_due = True
            self._stop()
        is_last = self.state.global_step >= self.state.max_steps
        if self.health.must_stop and not is_last and not self._flow.is_before_epoch_end:
            self._stop()

    def stop_between(self) -> None:
        """Ends the run where it waits for its next step; what is done since it began is saved."""
        if self.state.global_step == self._initial_global_step:
            raise self._stopped("stopped before the next step; nothing is lost")
        self._stop()

    def _stop(self) -> None:
        place = self._place()
        if self.saved != place or self.evaluation_due:
            self._save_checkpoint(self.model, None)
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        step, total = self.state.global_step, self.state.max_steps
        raise self._stopped(f"stopped after step {step} of {total}, which is saved in {place}")

    def _stopped(self, what: str) -> Stopped:
        number = self._signals.asked or int(signal.SIGTERM)
        return Stopped(number, f"{name_of(number)}: {what}; {GO_ON}")

    def _place(self) -> Path:
        return Path(self.args.output_dir) / checkpoint_name(self.state.global_step)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint that is whole or not there; the older ones go when it stands."""
        self._check_weights()
        place, output = self._place(), Path(self.args.output_dir)
        temporary = output / f"{SAVING}{self.state.global_step}"
        with _saving(place):
            self.store_flos()
            self._begin(temporary)
            self.save_model(str(temporary), _internal_call=True)
            self._save_optimizer_and_scheduler(str(temporary))
            self._save_scaler(str(temporary))
            self._save_rng_state(str(temporary))
            self._note_best()
            callback_states.note(self.state, self._own)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
                seal(temporary, self._manifest(finished=False))
                publish(temporary, place)
                rotate(output, self.args.save_total_limit, [self.state.best_model_checkpoint])
            self.accelerator.wait_for_everyone()
        self.saved = place

    def save_finished(self) -> None:
        """The student into the output folder, whole; nothing of it is replaced before all of it is on the disk."""
        self._check_weights()
        output = Path(self.args.output_dir)
        with _saving(output):
            self._begin(output / FINISHED)
            self.save_model(str(output / FINISHED), _internal_call=True)
            if self.args.should_save:
                self.state.save_to_json(str(output / FINISHED / TRAINER_STATE_NAME))
                seal(output / FINISHED, self._manifest(finished=True))
                finish(output / FINISHED, output)
            self.accelerator.wait_for_everyone()

    def _begin(self, temporary: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        self.accelerator.wait_for_everyone()

    def _manifest(self, *, finished: bool) -> Manifest:
        return Manifest(
            record=self._record,
            step=self.state.global_step,
            total=self.state.max_steps,
            finished=finished,
            evaluation_due=self.evaluation_due,
        )

    def _note_best(self) -> None:
        """Where the best weights so far are: here, or in an older checkpoint."""
        best = self.state.best_global_step
        place = Path(self.args.output_dir) / checkpoint_name(best or 0)
        if best and (best == self.state.global_step or place.is_dir()):
            self.state.best_model_checkpoint = str(place)

    def _check_weights(self) -> None:
        """Nothing is saved that is not finite: the last step's update may have been too large for float32."""
        self.health.hear()
        norms = torch.stack([whole(weight.detach().float().norm()) for weight in _trained(self.model)])
        if not bool(norms.isfinite().all()):
            raise self.not_finite(self.state.global_step, "a weight")

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        check_whole(best)
        self._load_from_checkpoint(str(best))


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


class _Flow(TrainerCallback):  # type: ignore[misc]
    """When a checkpoint is taken, behind transformers' own callbacks."""

    def __init__(self, loop: KeepingTrainer) -> None:
        self._loop, self._is_postponed = loop, False
        self.is_before_epoch_end = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._loop.catch_up()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if args.fp16:
            self._loop.health.skipped(
                state.global_step + 1, self._loop.accelerator.optimizer_step_was_skipped
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> Any:
        self.is_before_epoch_end = float(state.epoch).is_integer()
        self._is_postponed = self.is_before_epoch_end and control.should_save
        control.should_save = control.should_save and not self._is_postponed
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> Any:
        control.should_save = control.should_save or self._is_postponed
        self.is_before_epoch_end = self._is_postponed = False
        return control


@contextmanager
def _saving(place: Path) -> Iterator[None]:
    """What cannot be written is one error; what was whole before still is."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            "what was trained cannot be saved",
            where=place,
            got=one_line(error),
            do=f"Make room or give the right to write; {GO_ON} from its last whole checkpoint",
        ) from error
