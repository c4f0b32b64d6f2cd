"""One run of ``akd-train``, from the arguments to the finished results: build, resume, fit, test."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.backends import cudnn
from torchdistill.common.main_util import is_main_process, set_seed
from torchdistill.common.module_util import load_full_state_dict

from akd_ext.filesystem import write_text
from akd_ext.op.private_torch import is_compiled
from akd_ext.train.checkpoint.best import BestCheckpoint, snapshot
from akd_ext.train.checkpoint.checkpointer import Checkpointer, find_state, progress_of
from akd_ext.train.checkpoint.reading import checkpoint_rules
from akd_ext.train.checkpoint.state import BoxState, RandomState
from akd_ext.train.checkpoint.state_file import SavedState, StateFile
from akd_ext.train.checkpoint.weights import require_finite
from akd_ext.train.distributed import group
from akd_ext.train.distributed.sampler import set_epoch, steps_per_epoch
from akd_ext.train.reporting.console import Logs
from akd_ext.train.reporting.lines import LEGEND, epoch_line
from akd_ext.train.reporting.plots import draw_curves
from akd_ext.train.reporting.progress import Progress
from akd_ext.train.reporting.results import Results
from akd_ext.train.reporting.tensorboard import TensorBoardLogger
from akd_ext.train.system.device import describe, pick_device
from akd_ext.train.system.errors import ConfigError, one_sentence
from akd_ext.train.system.failures import reraise
from akd_ext.train.system.signals import Stop
from akd_ext.train.system.versions import versions

from .boxes import current_stage, freeze_teacher_mode, original_student, stages_in, student_of
from .build import Job, Settings, build
from .dry_build import dry_build_stages
from .epoch import Epoch
from .run_folder import RunFolder, run_lock
from .teacher_check import check_teacher

logger = logging.getLogger(__name__)


def run(args: Namespace, logs: Logs, stop: Stop) -> None:
    """Does what ``akd-train`` was asked to do.

    Raises:
        ConfigError: something asked for cannot work.
        RunError: training went wrong.
        Stopped: a signal asked for it.
    """
    with (
        checkpoint_rules(allow_pickle=args.allow_pickle),
        group.process_group(pick_device(args.device), args.world_size, args.dist_url) as device,
        contextlib.ExitStack() as until_end,
    ):
        logs.console.quiet |= group.rank() > 0
        job = build(args, device)
        folder = RunFolder(args.output_dir) if args.output_dir is not None else None
        state_file = StateFile(folder) if folder is not None and not args.test_only else None
        fingerprint = job.fingerprint() if state_file is not None else {}
        with _named_in_config_errors(args):
            _make_folders(args)
            if is_main_process() and not args.test_only:  # a test adds one file, whole, and may look at a run under way
                until_end.enter_context(_lock(job, folder))
            saved = None
            if state_file is not None:
                is_there = folder.is_complete() and job.task.is_checkpoint(job.dst_ckpt)
                saved = find_state(state_file, args, fingerprint, is_there)
            if saved is not None and saved.complete:
                _answer_finished(job)
                return
            stop.saved = saved and progress_of(saved.where)
            if is_main_process():
                logs.open(folder.log if state_file is not None else None, args.run_log, go_on=saved is not None)
        packages = _log_start(job)
        if args.test_only:
            _test_only(job, folder)
            return
        if saved is None:
            dry_build_stages(job)
            check_teacher(job)
        trainer = _trainer(job, folder, packages, Checkpointer(state_file, fingerprint, args.save_every_steps, stop))
        if saved is not None:
            trainer.resume(saved)
        elif state_file is not None and is_main_process():
            state_file.clear()
        with _reports(trainer, job, folder, saved):
            with _cudnn(benchmark=not args.disable_cudnn_benchmark):
                trainer.fit()
            with _cudnn(benchmark=False, deterministic=True):
                trainer.test(job)
        trainer.checkpointer.finish(trainer.results.data["last"]["epoch"])
        weights = f", its weights alone in {folder.best}" if folder is not None else ""
        logger.info("the best %s is in %s%s", job.learner, job.dst_ckpt, weights)


@dataclass
class Trainer:
    """Trains a box through all epochs of all stages, validates after each, keeps the best and the last student.

    Attributes:
        box: torchdistill's.
        stage_configs: the YAML's stages.
        task: `ImageClassification` or `TextClassification`: how a batch is sent and a student measured.
        wrappers: ``{stage: {role: arguments for DistributedDataParallel}}``.
        epoch, step: where the run goes on: how many are done, over all stages. Whoever reads counts from 1, see `end_epoch`.
    """

    box: Any
    stage_configs: list[dict]
    task: Any
    settings: Settings
    results: Results
    best: BestCheckpoint
    checkpointer: Checkpointer
    board: TensorBoardLogger = field(default_factory=lambda: TensorBoardLogger(None))
    wrappers: dict[int, dict[str, dict]] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self.random = RandomState(self.box, self.settings.device)
        self.progress = Progress(0, enabled=self.settings.show_bar)
        self._stage: int | None = None
        # ``best`` first: the box enters a stage, which may load the best student of the one before.
        parts = {"best": self.best, "box": BoxState(self.box, self.stage_configs), "results": self.results}
        if self.settings.precision.scaler is not None:
            parts["scaler"] = self.settings.precision.scaler
        self.checkpointer.attach(parts, self.random)

    @property
    def student(self) -> torch.nn.Module:
        return group.unwrap_ddp(original_student(self.box))

    def resume(self, saved: SavedState) -> None:
        """Goes on from a state; raises ConfigError if it is damaged or of another model."""
        progress = self.checkpointer.load(saved)
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.best.last = snapshot(self.student)

    def fit(self) -> None:
        """Trains what is left.

        Raises:
            Stopped: a signal asked for it; the state is saved.
            RunError: the loss or the weights are NaN or infinite, or the machine failed.
        """
        for handler in logging.getLogger().handlers:
            if hasattr(handler, "step_lines"):
                handler.step_lines = not self.progress.shown
        self.progress.go_on_at(self.step)
        logger.info(LEGEND)
        try:
            for number in range(self.epoch, self.box.num_epochs):
                began = time.perf_counter()
                epoch = self.begin_epoch(number)
                epoch.run()
                self.step += len(self.box.train_data_loader)
                accuracy = self.evaluate(epoch)
                self.end_epoch(epoch, accuracy, time.perf_counter() - began + epoch.seconds_before)
        except Exception as error:
            data = self.task.name_of(self.box.train_data_loader.dataset)
            reraise(error, f" in stage {self._stage}, epoch {number + 1}", data)
            raise
        finally:
            self.progress.close()
        self.box.clean_modules()
        self.best.finish()

    def begin_epoch(self, number: int) -> Epoch:
        box, stage = self.box, current_stage(self.box)
        if stage != self._stage:
            self._stage = stage
            self._enter_stage(number)
        with self.settings.precision.autocast():  # it may run the teacher, to keep its logits
            box.pre_epoch_process(epoch=number)
        group.wrap_ddp(box, self.wrappers.get(stage, {}))  # now, as the process above may load weights
        set_epoch(box.train_data_loader, number)
        if freeze_teacher_mode(box) and number == self.epoch:
            logger.info("the frozen teacher is put in eval mode (torchdistill leaves it in train mode)")
        stages = len(self.stage_configs)
        self.progress.describe(f"stage {stage}/{stages}  epoch {number + 1}/{box.num_epochs}")
        epoch = Epoch(self, number, self.step)
        self.checkpointer.begin_epoch(epoch)
        return epoch

    def evaluate(self, epoch: Epoch) -> Any:
        group.broadcast_buffers(self.box)
        require_finite(self.student, f"after stage {self._stage}, epoch {epoch.number + 1}")
        return self.task.validate(self.student, self.box.val_data_loader)

    def end_epoch(self, epoch: Epoch, accuracy: Any, seconds: float) -> None:
        """Results and checkpoints of the epoch; then the box may enter the next stage."""
        box, number, stage = self.box, epoch.number, self._stage
        loss, terms = epoch.losses()
        entry = {
            "epoch": number + 1, "stage": stage, "T": epoch.temperature, "phi": epoch.phi, "train_loss": loss,
            "loss_terms": terms, "val_accuracy": accuracy.top1, "seconds": seconds,
            **({"val_metrics": accuracy.metrics} if accuracy.metrics else {}),
        }  # fmt: skip
        best_of_stage, best_of_run = self.results.add_epoch(**entry)
        self.best.update(
            self.student, box, best_of_stage=best_of_stage, best_of_run=best_of_run, epoch=number + 1, stage=stage,
            val_accuracy=accuracy.top1,
        )  # fmt: skip
        self.results.write()
        values = {"val/accuracy": accuracy.top1, "val/accuracy_top5": accuracy.top5, "epoch": number + 1}
        values |= {"epoch/train_loss": loss, "epoch/phi": epoch.phi, "epoch/T": epoch.temperature}
        self.board.add(self.step, values)
        entries, stages = self.results.data["epochs"], len(self.stage_configs)
        pace = f"{epoch.speed:.0f} {self.task.unit}/s  left {self.progress.left()}"
        logger.info(epoch_line(entries, box.num_epochs, stages, accuracy.brief, best=best_of_stage, pace=pace))
        group.barrier()  # the next stage may read what the first process has written
        # ReduceLROnPlateau wants a number that falls in mode 'min' and one that rises in mode 'max'.
        falls = getattr(box.lr_scheduler, "mode", "min") == "min"
        box.post_epoch_process(metrics=loss if falls else accuracy.top1)
        if current_stage(box) != stage:
            self._log_hand_over(stage)
        self.checkpointer.after_epoch(number + 1, self.step)

    def test(self, job: Job) -> None:
        """Tests the last and the best student and the teacher; ends with the best in the student."""
        tested = {}
        for name, state in (("last", self.best.last), ("best", self.best.best)):
            load_full_state_dict(job.student, dict(state))  # PyTorch changes the dict
            mark = self.results.data[name]
            score = _test(job, job.student, f"{name} {job.learner}", f"epoch {mark['epoch']}, stage {mark['stage']}")
            tested[name] = score.top1
            mark |= {"test_metrics": score.metrics} if score.metrics else {}
        taught = _test(job, job.teacher, "teacher").top1 if job.tests_teacher else None
        job.write_predictions()
        self.board.close()
        self.results.finish(**tested, teacher=taught)

    def _enter_stage(self, epoch: int) -> None:
        for module in (student_of(self.box), getattr(self.box, "teacher_model", None)):
            if module is None:
                continue
            if self.settings.channels_last:
                module.to(memory_format=torch.channels_last)
            # In place: the module keeps its class and its state_dict keys, so hooks and checkpoints still work.
            if self.settings.compile and not is_compiled(module):
                module.compile()
        self.progress.set_total(self.step + self._steps_left(epoch))

    def _steps_left(self, epoch: int) -> int:
        """Steps from ``epoch`` to the end; a later stage's loader does not exist yet, so its size is worked out."""
        box = self.box
        per_epoch, end, total = len(box.train_data_loader), 0, 0
        for number, config in enumerate(self.stage_configs, start=1):
            start, end = end, end + config["num_epochs"]
            if number < self._stage:
                continue
            loader = config.get("train_data_loader") or {}
            known = loader.get("dataset_id") in box.dataset_dict and "batch_size" in loader["kwargs"]
            if number > self._stage and known:
                per_epoch = steps_per_epoch(loader, box.dataset_dict[loader["dataset_id"]])
            total += per_epoch * (end - max(start, epoch))
        return total

    def _log_hand_over(self, stage: int) -> None:
        entry = self.results.data["best_per_stage"][str(stage)]
        role = self.stage_configs[stage].get("student") or self.stage_configs[stage].get("model") or {}
        source = role.get("src_ckpt") or role.get("src_folder")
        if source:
            logger.info("stage %d starts from %s; the best of stage %d is epoch %d, %.2f %%",
                        stage + 1, source, stage, entry["epoch"], entry["val_accuracy"])  # fmt: skip
        else:
            logger.info("stage %d goes on with the last weights of stage %d: it names no src_ckpt", stage + 1, stage)


def _trainer(job: Job, folder: RunFolder | None, packages: dict[str, str], checkpointer: Checkpointer) -> Trainer:
    box, stage_configs, args = job.box(), stages_in(job.built["train"]), job.args
    folder = folder if is_main_process() else None
    if folder is not None:
        command = shlex.join(["akd-train", "--config", args.config, *(f"--set={item}" for item in args.overrides)])
        write_text(folder.config, f"# As run by: {command}\n{job.config.dump()}")
    results = Results(
        folder and folder.results,
        config=args.config,
        seed=args.seed,
        device=str(job.settings.device),
        versions=packages,
    )
    tested = job.built["test"]["test_data_loader"]["dataset_id"]
    if any((stage.get("val_data_loader") or {}).get("dataset_id") == tested for stage in stage_configs):
        logger.info("'%s' is both validation and test data: the test accuracy of the best epoch is optimistic", tested)
    if group.is_distributed():
        set_seed(group.own_seed(job.seed))
    best = job.task.best_checkpoint(job.dst_ckpt, folder)
    return Trainer(box, stage_configs, job.task, job.settings, results, best, checkpointer, wrappers=job.wrappers)


@contextlib.contextmanager
def _reports(trainer: Trainer, job: Job, folder: RunFolder | None, saved: SavedState | None) -> Iterator[None]:
    """TensorBoard while the run is under way, and the curves of whatever it has come to."""
    folder = folder if is_main_process() else None
    trainer.board = TensorBoardLogger(
        str(folder.tensorboard) if job.args.tensorboard and folder is not None else None,
        purge_step=trainer.step + saved.where["step"] + 1 if saved is not None else None,
    )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the second time, after a failure that is on its way
            trainer.board.close()
        if folder is not None:
            try:
                draw_curves(trainer.results.data, folder.curves)
            except Exception as error:  # a picture must not cost a run; and a run that failed says why, nothing else
                if trainer.results.data["complete"]:
                    logger.warning("%s was not drawn: %s", folder.curves, one_sentence(error))


@contextlib.contextmanager
def _named_in_config_errors(args: Namespace) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        flags = "--output_dir or --run_log" if args.run_log else "--output_dir"
        raise ConfigError(f"{flags}: '{error.filename}' cannot be written to: {error.strerror}") from error


def _make_folders(args: Namespace) -> None:
    """Now, not when everything is trained."""
    for flag in ("output_dir", "private_output"):
        path = getattr(args, flag)
        if path is not None and is_main_process():
            try:
                os.makedirs(path, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--{flag}: '{path}' cannot be written to: {error.strerror}") from error


def _lock(job: Job, folder: RunFolder | None) -> contextlib.AbstractContextManager:
    """Refuses a second run that would write the same files."""
    if folder is not None:
        return folder.lock("akd-train")
    path = os.path.expanduser(job.dst_ckpt).rstrip("/")
    return run_lock("akd-train", f"{job.student_key}.dst_ckpt", path, lock=f"{path}.lock")


def _log_start(job: Job) -> dict[str, str]:
    args = job.args
    packages = versions(job.settings.device, job.task.packages)
    logger.info("%s on %s: %s", os.path.basename(args.config), describe(job.settings.device),
                ", ".join(f"{name} {version}" for name, version in packages.items()))  # fmt: skip
    logger.info("arguments: %s", {k: v for k, v in vars(args).items() if k != "debug"}, extra={"file_only": True})
    if args.output_dir is None and not args.test_only:
        logger.info("no --output_dir: only the best %s is kept, and a run that is stopped starts over", job.learner)
    if args.log_config:
        logger.info("configuration:\n%s", job.config.dump())
    return packages


def _answer_finished(job: Job) -> None:
    logger.info("'%s' is finished: nothing is left to train; --overwrite trains it again", job.args.output_dir)
    if job.args.private_output:
        job.load_student(f"{job.student_key}.dst_ckpt")
        job.write_predictions()


def _test_only(job: Job, folder: RunFolder | None) -> None:
    job.load_student("-test_only")
    tested = _test(job, job.student, job.learner, job.dst_ckpt)
    taught = _test(job, job.teacher, "teacher") if job.tests_teacher else None
    job.write_predictions()
    if folder is not None and is_main_process():
        answer = {"student": tested.top1, "teacher": taught and taught.top1}
        answer |= {"student_metrics": tested.metrics} if tested.metrics else {}
        write_text(folder.test, json.dumps(answer, indent=1) + "\n")


def _test(job: Job, model: torch.nn.Module, name: str, detail: str = "") -> Any:
    score = job.task.test(model, job.built)
    logger.info("test  %s  %s%s", name, score, f"  ({detail})" if detail else "")
    return score


@contextlib.contextmanager
def _cudnn(*, benchmark: bool, deterministic: bool = False) -> Iterator[None]:
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
