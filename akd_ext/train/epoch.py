"""One epoch of training: torchdistill's box does the steps, this file counts, reports and saves between them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

from akd_ext.op.private_torch import forget_iterator
from akd_ext.train.checkpoint.state import lives_on
from akd_ext.train.checkpoint.weights import require_finite
from akd_ext.train.distributed.group import unwrap_ddp
from akd_ext.train.distributed.sampler import GlobalMeanLoss, batch_sizes
from akd_ext.train.reporting.lines import format_loss, of
from akd_ext.train.reporting.meter import LossMeter
from akd_ext.train.system.errors import RunError

from .boxes import current_stage, original_student, temperature_and_phi

logger = logging.getLogger(__name__)


class Epoch:
    """One pass over the training data. Its state lets another process go on in the middle of it.

    The host waits for the device at the log interval only.

    Args:
        trainer: see `trainer.Trainer`; read here are its box, task, settings, checkpointer, random, progress and board.
        number: of the epoch, over all stages, from 0 as torchdistill counts; whatever is shown counts from 1.
        first_step: how many steps there were before it.

    Attributes:
        temperature, phi: T and Phi of this epoch; None without an annealing term.
        step: how many steps are done.
        seconds_before: how long it took in another process, if it began there.
    """

    def __init__(self, trainer: Any, number: int, first_step: int):
        self._trainer, self.number, self.first_step = trainer, number, first_step
        box = trainer.box
        self.temperature, self.phi = temperature_and_phi(box)
        self._global_mean = GlobalMeanLoss(box.criterion)  # first: the meter hears what it makes of the terms
        self._meter = LossMeter(box.criterion, trainer.settings.device)
        self.step = self._samples = self._unreported = 0
        self._began = self._reported = time.perf_counter()
        self.seconds_before = 0.0
        self._random_at_start: dict[str, Any] = {}
        self._random_now: dict[str, Any] | None = None  # to go on with, once the batches before are dropped

    def run(self) -> None:
        """All steps that are left.

        Raises:
            Stopped: a signal asked for it; the state is saved.
            RunError: the loss is NaN or infinite (looked at at the log interval and in the end), or there is no batch.
        """
        box, settings = self._trainer.box, self._trainer.settings
        try:
            with settings.precision.steps(box):
                for batch in self._batches():
                    self._train_on(batch)
                    if self.step % settings.log_every == 0:
                        self._report()
                    self._trainer.checkpointer.after_step(self)
            if not self.step:
                raise RunError(f"the training data loader of stage {current_stage(box)} gives no batch")
            if self._unreported:
                self._report()
            self.speed = self._samples / (time.perf_counter() - self._began)  # samples per second
        finally:
            self._meter.close()
            self._global_mean.close()

    def losses(self) -> tuple[float, dict[str, float]]:
        """(loss, {term: value}) averaged over the samples of the epoch."""
        return self._meter.epoch()

    def annealing(self) -> dict[str, str]:
        return {} if self.phi is None else {"T": str(self.temperature), "Phi": f"{self.phi:.3f}"}

    def require_finite(self) -> None:
        """Raises RunError if the weights, or a loss that nobody has looked at, are NaN or infinite."""
        box = self._trainer.box
        require_finite(unwrap_ddp(original_student(box)), f"{self._place()}, step {self.step}")
        self._require_finite_loss(self._meter.unread())

    def state_dict(self) -> dict[str, Any]:
        """To go on after the step that is done."""
        return {
            "step": self.step,
            "unreported": self._unreported,
            "meter": self._meter.state_dict(),
            "seconds": time.perf_counter() - self._began + self.seconds_before,
            "random_at_start": self._random_at_start,
            "random_now": self._trainer.random.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self._unreported, self.seconds_before = state["step"], state["unreported"], state["seconds"]
        self._meter.load_state_dict(state["meter"])
        self._random_at_start, self._random_now = state["random_at_start"], state["random_now"]
        self._trainer.progress.go_on_at(self.first_step + self.step)

    def _batches(self) -> Iterator[Any]:
        """The batches that are left. Those before are loaded and dropped.

        Their order, and what the workers draw, follows from the random states at the epoch's start; everything else
        from those after the last step.
        """
        loader, random = self._trainer.box.train_data_loader, self._trainer.random
        if self._random_now is None:
            self._random_at_start = random.state_dict() | {"lives_on": lives_on(loader)}
            return iter(loader)
        if not self._random_at_start["lives_on"] and lives_on(loader):
            forget_iterator(loader)  # it began with this epoch: the seed that it draws comes now
        random.load_state_dict(self._random_at_start)
        batches = iter(loader)
        for _ in range(self.step):
            next(batches, None)
        random.load_state_dict(self._random_now)
        return batches

    def _train_on(self, loaded: Any) -> None:
        trainer, box = self._trainer, self._trainer.box
        precision = trainer.settings.precision
        batch, targets, extra = trainer.task.send(loaded)
        here, in_all = batch_sizes(box.train_data_loader, self.step, len(targets))
        self._global_mean.step(here, in_all)
        with precision.autocast():
            box.pre_forward_process(sample_batch=batch, targets=targets, supp_dict=extra)
            loss = box.forward_process(batch, targets, extra)
        self._meter.add(loss, here)
        box.post_forward_process(loss=precision.scaled(self._global_mean.weigh(loss)))
        self.step, self._samples, self._unreported = self.step + 1, self._samples + in_all, self._unreported + in_all
        trainer.progress.step()

    def _report(self) -> None:
        """Bar, log and TensorBoard; looks at the loss, for which it waits for the device."""
        trainer, box, unit = self._trainer, self._trainer.box, self._trainer.task.unit
        loss, terms = self._meter.read()
        now = time.perf_counter()
        speed = self._unreported / max(now - self._reported, 1e-9)
        self._unreported, self._reported = 0, now
        self._require_finite_loss(loss)
        rate = box.optimizer.param_groups[0]["lr"]
        trainer.progress.show(loss=f"{loss:.4g}", **self.annealing(), **{f"{unit}/s": f"{speed:.0f}"})
        values = {"train/loss": loss, "train/lr": rate, f"train/{unit}_per_second": speed, "train/T": self.temperature}
        values |= {"train/phi": self.phi, **{f"train/{name}": value for name, value in terms.items()}}
        trainer.board.add(self.first_step + self.step, values)
        if self.step % trainer.settings.log_every == 0:
            logger.info(
                "epoch %s  step %s  loss %s  lr %.4g  %.0f %s/s",
                of(self.number + 1, box.num_epochs),
                of(self.step, len(box.train_data_loader)),
                format_loss(loss, terms),
                rate,
                speed,
                unit,
                extra={"step_line": True},
            )

    def _require_finite_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} {self._place()}, by step {self.step}: training was stopped; "
                "a lower learning rate, max_grad_norm or another --amp may help"
            )

    def _place(self) -> str:
        return f"in stage {current_stage(self._trainer.box)}, epoch {self.number + 1}"
