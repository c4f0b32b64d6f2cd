"""The training loop: torchdistill's box does the steps, this file does the epochs."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from akd_ext.train.checkpoint.checkpointer import Checkpointer
from akd_ext.train.checkpoint.weights import BestCheckpoint, require_finite
from akd_ext.train.distributed import group as processes
from akd_ext.train.distributed.sampler import GlobalMeanLoss, batch_sizes, set_epoch, steps_per_epoch
from akd_ext.train.reporting.meter import LossMeter
from akd_ext.train.reporting.progress import Progress
from akd_ext.train.reporting.results import Results
from akd_ext.train.reporting.tensorboard import TensorBoardLogger
from akd_ext.train.system.errors import RunError
from akd_ext.train.system.failures import reraise
from akd_ext.train.system.precision import Precision

from .boxes import current_stage, freeze_teacher_mode, original_student, student_of, temperature_and_phi

logger = logging.getLogger(__name__)


@dataclass
class Settings:
    """How to run, as opposed to what: nothing here changes the mathematics but the arithmetic's precision."""

    device: torch.device
    precision: Precision
    task: Any  # ImageClassification or TextClassification: how a batch is sent and a student measured
    channels_last: bool = False
    compile: bool = False
    log_every: int = 100
    wrappers: dict[int, dict[str, dict]] = field(default_factory=dict)  # of several processes: see `processes.wrap_ddp`
    show_bar: bool = True


def train(
    box: Any,
    stage_configs: list[dict],
    settings: Settings,
    results: Results,
    keeper: BestCheckpoint,
    scalars: TensorBoardLogger,
    saver: Checkpointer,
) -> None:
    """Trains all epochs of all stages, validates after each, and keeps the best and the last student.

    Goes on where ``saver`` has brought the box, if it has.

    Raises:
        Stopped: a signal asked for it; ``saver`` has saved the state.
        RunError: the loss is NaN or infinite (looked at every ``log_every`` steps and at the end of an epoch), the
            weights are at the end of an epoch, or the machine failed.
    """
    progress = Progress(0, enabled=settings.show_bar)
    for handler in logging.getLogger().handlers:
        if hasattr(handler, "step_lines"):
            handler.step_lines = not progress.shown
    first = saver.epoch or 0
    stage, epoch, step = None, first, saver.step
    progress.go_on_at(step)
    try:
        for epoch in range(first, box.num_epochs):
            if current_stage(box) != stage:
                stage = current_stage(box)
                _enter_stage(box, settings)
                progress.set_total(step + _steps_left(box, stage_configs, epoch))
            began = time.perf_counter()
            with settings.precision.autocast():  # it may run the teacher, to keep its logits
                box.pre_epoch_process(epoch=epoch)
            processes.wrap_ddp(box, settings.wrappers.get(stage, {}))  # now, as the process above may load weights
            set_epoch(box.train_data_loader, epoch)
            if freeze_teacher_mode(box) and epoch == first:
                logger.info("the frozen teacher is put in eval mode (torchdistill leaves it in train mode)")
            temperature, phi = temperature_and_phi(box)
            progress.describe(f"stage {stage}/{len(stage_configs)}  epoch {epoch} ({epoch + 1}/{box.num_epochs})")
            inside = saver.begin_epoch(box)
            began -= inside["seconds"] if inside else 0
            loss, terms, speed = _train_epoch(
                box, settings, epoch, step, temperature, phi, progress, scalars, saver, inside
            )
            step += len(box.train_data_loader)
            processes.broadcast_buffers(box)
            student = processes.unwrap_ddp(original_student(box))
            require_finite(student, f"after stage {stage}, epoch {epoch}")
            accuracy = settings.task.evaluate(student, box.val_data_loader)
            seconds = time.perf_counter() - began
            best_of_stage, best_of_run = results.add_epoch(
                epoch=epoch,
                stage=stage,
                T=temperature,
                phi=phi,
                train_loss=loss,
                loss_terms=terms,
                val_accuracy=accuracy.top1,
                seconds=seconds,
                **({"val_metrics": accuracy.metrics} if accuracy.metrics else {}),
            )
            keeper.update(
                student, box, best_of_stage=best_of_stage, best_of_run=best_of_run, epoch=epoch, stage=stage,
                val_accuracy=accuracy.top1,
            )  # fmt: skip
            results.write()
            scalars.add(step, {"val/accuracy": accuracy.top1, "val/accuracy_top5": accuracy.top5, "epoch": epoch,
                               "epoch/train_loss": loss, "epoch/phi": phi, "epoch/T": temperature})  # fmt: skip
            annealing = "" if phi is None else f"  T {temperature}  Phi {phi:.3f}"
            logger.info(
                "epoch %d (%d/%d)  stage %d%s  loss %s  val %s%s  %.0f %s/s  %.1f s  left %s",
                epoch, epoch + 1, box.num_epochs, stage, annealing, _show(loss, terms), accuracy,
                " *" if best_of_stage else "", speed, settings.task.unit, seconds, progress.left(),
            )  # fmt: skip
            processes.barrier()  # the next stage may read what the first process has written
            box.post_epoch_process(metrics=_plateau_metric(box, loss, accuracy.top1))  # may advance to the next stage
            if current_stage(box) != stage:
                _log_hand_over(results, stage, stage_configs)
            saver.after_epoch(box, epoch + 1, step)
    except Exception as error:
        reraise(error, f" in stage {stage}, epoch {epoch}")
        raise
    finally:
        progress.close()


def _train_epoch(
    box, settings, epoch, step, temperature, phi, progress, scalars, saver, inside
) -> tuple[float, dict, float]:
    """One epoch: (loss, {term: value}, samples per second). The host waits for the device at the log interval only.

    ``inside`` is where in the epoch it goes on; None: at its start.
    """
    precision, task = settings.precision, settings.task
    share = GlobalMeanLoss(box.criterion)  # first: the meter hears what it makes of the terms
    meter, samples, all_samples, at = LossMeter(box.criterion, settings.device), 0, 0, 0
    if inside:
        meter.restore(inside["meter"])
        samples, at = inside["samples"], inside["at"]
        progress.go_on_at(step + at)
    start = since = time.perf_counter()
    annealing = {} if phi is None else {"T": temperature, "Phi": f"{phi:.3f}"}

    def require_finite_loss(loss: float) -> None:
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} in stage {current_stage(box)}, epoch {epoch}, by step {at}: training was stopped; "
                "a lower learning rate, max_grad_norm or another --amp may help"
            )

    def look() -> None:
        nonlocal samples, since
        loss, terms = meter.read()
        now = time.perf_counter()
        speed, samples, since = samples / max(now - since, 1e-9), 0, now
        require_finite_loss(loss)
        rate = box.optimizer.param_groups[0]["lr"]
        progress.show(loss=f"{loss:.4g}", **annealing, **{f"{task.unit}/s": f"{speed:.0f}"})
        values = {"train/loss": loss, "train/lr": rate, f"train/{task.unit}_per_second": speed, "train/T": temperature}
        scalars.add(step + at, {**values, "train/phi": phi, **{f"train/{k}": v for k, v in terms.items()}})
        if at % settings.log_every == 0:
            logger.info(
                "epoch %d  step %d/%d  loss %s  lr %.4g  %.0f %s/s", epoch, at, len(box.train_data_loader),
                _show(loss, terms), rate, speed, task.unit, extra={"step_line": True},
            )  # fmt: skip

    def state() -> dict[str, Any]:
        # It takes the place of a sound one, and nobody may have looked since.
        require_finite(
            processes.unwrap_ddp(original_student(box)), f"in stage {current_stage(box)}, epoch {epoch}, step {at}"
        )
        require_finite_loss(meter.unread())
        seconds = time.perf_counter() - start + (inside["seconds"] if inside else 0)
        return {"at": at, "samples": samples, "meter": meter.state(), "seconds": seconds}

    try:
        with precision.steps(box):
            for loaded in saver.batches(box, at):
                batch, targets, extra = task.send(loaded)
                mine, whole = batch_sizes(box.train_data_loader, at, len(targets))
                share.step(mine, whole)
                with precision.autocast():
                    box.pre_forward_process(sample_batch=batch, targets=targets, supp_dict=extra)
                    loss = box.forward_process(batch, targets, extra)
                meter.add(loss, mine)
                box.post_forward_process(loss=precision.scaled(share.weigh(loss)))
                at, samples, all_samples = at + 1, samples + whole, all_samples + whole
                progress.step()
                if at % settings.log_every == 0:
                    look()
                saver.after_step(box, epoch, step, state)
        if not at:
            raise RunError(f"the training data loader of stage {current_stage(box)} gives no batch")
        if samples:
            look()
        return *meter.epoch(), all_samples / (time.perf_counter() - start)
    finally:
        meter.close()
        share.close()


def _enter_stage(box: Any, settings: Settings) -> None:
    for module in (student_of(box), getattr(box, "teacher_model", None)):
        if module is None:
            continue
        if settings.channels_last:
            module.to(memory_format=torch.channels_last)
        # In place: the module keeps its class and its state_dict keys, so hooks and checkpoints still work.
        if settings.compile and module._compiled_call_impl is None:
            module.compile()


def _steps_left(box: Any, stage_configs: list[dict], epoch: int) -> int:
    """Steps from ``epoch`` to the end; a later stage's loader does not exist yet, so its size is worked out."""
    stage = current_stage(box)
    per_epoch, end, total = len(box.train_data_loader), 0, 0
    for number, config in enumerate(stage_configs, start=1):
        start, end = end, end + config["num_epochs"]
        if number < stage:
            continue
        loader = config.get("train_data_loader") or {}
        if number > stage and loader.get("dataset_id") in box.dataset_dict and "batch_size" in loader["kwargs"]:
            per_epoch = steps_per_epoch(loader, box.dataset_dict[loader["dataset_id"]])
        total += per_epoch * (end - max(start, epoch))
    return total


def _plateau_metric(box: Any, loss: float, accuracy: float) -> float:
    """ReduceLROnPlateau wants a number that falls in mode 'min' and one that rises in mode 'max'."""
    return loss if getattr(box.lr_scheduler, "mode", "min") == "min" else accuracy


def _log_hand_over(results: Results, stage: int, stage_configs: list[dict]) -> None:
    entry = results.data["best_per_stage"][str(stage)]
    role = stage_configs[stage].get("student") or stage_configs[stage].get("model") or {}
    source = role.get("src_ckpt") or role.get("src_folder")
    if source:
        logger.info("stage %d starts from %s; the best of stage %d is epoch %d, %.2f %%",
                    stage + 1, source, stage, entry["epoch"], entry["val_accuracy"])  # fmt: skip
    else:
        logger.info("stage %d goes on with the last weights of stage %d: it names no src_ckpt", stage + 1, stage)


def _show(loss: float, terms: dict[str, float]) -> str:
    listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    return f"{loss:.4g} ({listed})" if listed else f"{loss:.4g}"
