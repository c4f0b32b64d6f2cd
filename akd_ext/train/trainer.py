"""One run, from the arguments to the finished results."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import shlex
from argparse import Namespace
from typing import Any

import torch
from torch.backends import cudnn
from torchdistill.common.main_util import is_main_process, set_seed
from torchdistill.common.module_util import load_full_state_dict
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box

from akd_ext.filesystem import write_text
from akd_ext.train.checkpoint.checkpointer import Checkpointer, find, progress_of, run_fingerprint
from akd_ext.train.checkpoint.reading import checkpoint_rules
from akd_ext.train.checkpoint.state_file import StateFile
from akd_ext.train.config.load import load_config
from akd_ext.train.distributed import group as processes
from akd_ext.train.distributed.sampler import distribute_loaders
from akd_ext.train.reporting.console import Logs
from akd_ext.train.reporting.plots import draw_curves
from akd_ext.train.reporting.results import Results
from akd_ext.train.reporting.tensorboard import TensorBoardLogger
from akd_ext.train.system.allocator import keep_freed_memory
from akd_ext.train.system.device import describe, pick_device
from akd_ext.train.system.errors import ConfigError, one_sentence
from akd_ext.train.system.precision import Precision
from akd_ext.train.system.signals import Stop
from akd_ext.train.system.versions import versions
from akd_ext.train.tasks.image_classification import ImageClassification

from .boxes import only_private, stages_in
from .epoch import Settings, train
from .run_folder import RunFolder, run_lock

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
        processes.process_group(pick_device(args.device), args.world_size, args.dist_url) as device,
        contextlib.ExitStack() as until_end,
    ):
        _run(args, logs, stop, device, until_end)


def _run(args: Namespace, logs: Logs, stop: Stop, device: torch.device, until_end: contextlib.ExitStack) -> None:
    logs.console.quiet |= processes.rank() > 0
    _check_flags(args)
    precision = Precision(args.amp, device)
    needs_teacher = not (args.test_only and args.student_only)
    config = load_config(
        args.config,
        args.overrides,
        args.output_dir,
        teacher=args.teacher,
        student=args.student,
        length_buckets=args.length_buckets,
        needs_train=not args.test_only,
        needs_teacher=needs_teacher,
    )
    seed = processes.same_seed(args.seed)
    set_seed(seed)  # before the datasets: a split may be random
    task = _task(args, config, device, precision)
    if device.type == "cpu" and not config.is_text and keep_freed_memory():  # texts differ in length, images do not
        logger.info("freed memory is kept for the next step", extra={"file_only": True})
    built = config.construct()
    found = versions(device, task.packages)

    models, role = built["models"], config.student_role
    dst_ckpt = models[role]["dst_ckpt"]
    if args.test_only and not task.is_checkpoint(dst_ckpt):
        raise ConfigError(f"-test_only: there is no checkpoint '{dst_ckpt}' (models.{role}.dst_ckpt) to test")

    teacher, student = task.prepare(built, role, needs_teacher)
    wrappers = distribute_loaders(built, seed)

    main_process = is_main_process()
    trains_into = None if args.test_only else args.output_dir
    store, saved, identity = None, None, {}
    if trains_into is not None:
        store = StateFile(trains_into)
        answered = only_private(built)
        trained_on = {name: data for name, data in built["datasets"].items() if name not in answered}
        identity = run_fingerprint(args, config, teacher, trained_on)
    try:
        if main_process and args.output_dir is not None:
            os.makedirs(args.output_dir, exist_ok=True)
        if main_process and args.private_output:  # now, not when everything is trained
            _make_folder("--private_output", args.private_output)
        if main_process and not args.test_only:  # which adds one file, whole, and may look at a run under way
            until_end.enter_context(_own(args.output_dir, dst_ckpt, role))
        if store is not None:
            saved = find(store, args, identity, _is_complete(trains_into) and task.is_checkpoint(dst_ckpt))
            if saved is not None and saved.complete:
                logger.info("'%s' is finished: nothing is left to train; --overwrite trains it again", trains_into)
                if args.private_output:
                    task.load(student, dst_ckpt, f"models.{role}.dst_ckpt")
                    task.write_predictions(student, built["private"], args.private_output)
                return
            stop.saved = saved and progress_of(saved.where)
        if main_process:
            train_log = trains_into and os.path.join(trains_into, "train.log")
            logs.open(train_log, args.run_log, go_on=saved is not None)
    except OSError as error:
        flags = "--output_dir or --run_log" if args.run_log else "--output_dir"
        raise ConfigError(f"{flags}: '{error.filename}' cannot be written to: {error.strerror}") from error
    logger.info("%s on %s: %s", os.path.basename(args.config), describe(device),
                ", ".join(f"{name} {version}" for name, version in found.items()))  # fmt: skip
    logger.info("arguments: %s", {k: v for k, v in vars(args).items() if k != "debug"}, extra={"file_only": True})
    if args.log_config:
        logger.info("configuration:\n%s", config.dump())

    settings = Settings(
        device=device,
        precision=precision,
        task=task,
        channels_last=args.channels_last,
        compile=args.compile,
        log_every=(built.get("train") or {}).get("log_freq") or 100,
        wrappers=wrappers,
        show_bar=main_process and not args.quiet,
    )

    # A teacher that no stage runs is not even loaded for text.
    tests_teacher = teacher is not None and not args.student_only and any(True for _ in teacher.parameters())

    def tester(model: torch.nn.Module, name: str, detail: str) -> Any:
        score = task.test(model, built)
        logger.info("test  %s  %s%s", name, score, f"  ({detail})" if detail else "")
        return score

    if args.test_only:
        task.load(student, dst_ckpt, "-test_only")
        tested = tester(student, "student", dst_ckpt)
        taught = tester(teacher, "teacher", "") if tests_teacher else None
        if args.private_output:
            task.write_predictions(student, built["private"], args.private_output)
        if args.output_dir and main_process:
            answer = {"student": tested.top1, "teacher": taught and taught.top1}
            answer |= {"student_metrics": tested.metrics} if tested.metrics else {}
            write_text(os.path.join(args.output_dir, "test.json"), json.dumps(answer, indent=1) + "\n")
        return

    box = _make_box(args, built, teacher, student, device)
    stage_configs = stages_in(built["train"])
    if saved is None and store is not None and main_process:
        store.clear()
    output_dir = args.output_dir if main_process else None
    if output_dir is not None:
        command = shlex.join(["akd-train", "--config", args.config, *(f"--set={item}" for item in args.overrides)])
        write_text(os.path.join(output_dir, "config.yaml"), f"# As run by: {command}\n{config.dump()}")
    results = Results(
        os.path.join(output_dir, "results.json") if output_dir else None,
        config=args.config,
        seed=args.seed,
        device=str(device),
        versions=found,
    )
    keeper = task.keeper(dst_ckpt, output_dir)
    saver = Checkpointer(store, identity, args.save_every_steps, stop, settings=settings, stage_configs=stage_configs,
                  results=results, keeper=keeper)  # fmt: skip
    _warn_about_test_data(built, stage_configs)
    if processes.is_distributed():
        set_seed(processes.own_seed(seed))
    if saved is not None:
        saver.take_up(saved, box)  # last: it sets the random states
    scalars = TensorBoardLogger(
        os.path.join(output_dir, "tensorboard") if args.tensorboard and output_dir else None,
        purge_step=saver.reached + 1 if saved is not None else None,
    )
    try:
        with _cudnn(benchmark=not args.disable_cudnn_benchmark):
            train(box, stage_configs, settings, results, keeper, scalars, saver)
        box.clean_modules()
        keeper.finish()
        with _cudnn(benchmark=False, deterministic=True):
            tested = {}
            for name, state in (("last", keeper.last), ("best", keeper.best)):  # ends with the best in the student
                load_full_state_dict(student, dict(state))  # PyTorch changes the dict
                score = tester(student, f"{name} student", _of_epoch(results.data[name]))
                tested[name] = score.top1
                results.data[name] |= {"test_metrics": score.metrics} if score.metrics else {}
            taught = tester(teacher, "teacher", "") if tests_teacher else None
        if args.private_output:
            task.write_predictions(student, built["private"], args.private_output)
        scalars.close()
        results.finish(**tested, teacher=taught and taught.top1)
    finally:
        with contextlib.suppress(OSError):  # the second time, after a failure that is on its way
            scalars.close()
        if output_dir is not None:
            _draw(results.data, os.path.join(output_dir, "curves.png"))
    saver.finish()
    logger.info("the best student is in %s%s", dst_ckpt, f" and {output_dir}/best.safetensors" if output_dir else "")


def _check_flags(args: Namespace) -> None:
    """What argparse cannot: flags that need one another, ranges."""
    if args.tensorboard and args.output_dir is None:
        raise ConfigError("--tensorboard: it writes below --output_dir, so give that, too")
    for flag in ("resume", "overwrite", "save_every_steps"):
        if getattr(args, flag) and (args.output_dir is None or args.test_only):
            raise ConfigError(f"--{flag}: it is about the training in --output_dir, so give that, and no -test_only")
    if args.resume and args.overwrite:
        raise ConfigError(
            "--resume goes on with the run in --output_dir and --overwrite starts it over: give one of them"
        )
    if args.save_every_steps < 0:
        raise ConfigError(f"--save_every_steps {args.save_every_steps}: it must be at least 0")
    if args.start_epoch != 0:
        raise ConfigError(
            f"--start_epoch {args.start_epoch}: akd-train begins at epoch 0; the same command with --resume goes on with "
            "the run in --output_dir, in its stage and at its step"
        )
    if args.seed is not None and not 0 <= args.seed < 2**32:  # NumPy's range
        raise ConfigError(f"--seed {args.seed}: it must be between 0 and {2**32 - 1}")


def _task(args: Namespace, config: Any, device: torch.device, precision: Precision) -> Any:
    """How this run's kind of data and models is handled."""
    if not config.is_text:
        for flag in ("glue_dir", "teacher", "student", "private_output", "length_buckets"):
            if getattr(args, flag):
                raise ConfigError(f"--{flag}: it is for text, and the models in '{args.config}' are not")
        return ImageClassification(
            device, precision, channels_last=args.channels_last, distributed=processes.is_distributed()
        )
    if args.channels_last:
        raise ConfigError("--channels_last: it is for images")
    if args.private_output:
        if not config.checker.root.get("private"):
            raise ConfigError(f"--private_output: '{args.config}' has no section 'private' that lists test sets")
    from akd_ext.train.tasks.text.task import TextClassification

    return TextClassification(args.glue_dir, device, precision, predicts=bool(args.private_output))


def _make_folder(flag: str, path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag}: '{path}' cannot be written to: {error.strerror}") from error


def _own(output_dir: str | None, dst_ckpt: str, role: str) -> contextlib.AbstractContextManager:
    """Refuses a second run that would write the same files."""
    if output_dir is not None:
        return RunFolder(output_dir).lock("akd-train")
    path = os.path.expanduser(dst_ckpt).rstrip("/")
    return run_lock("akd-train", f"models.{role}.dst_ckpt", path, lock=f"{path}.lock")


def _make_box(args, built, teacher, student, device) -> Any:
    train_config = built["train"]
    factor = processes.world_size() if args.adjust_lr else 1
    if factor != 1:  # the box multiplies in place, so stages that share one optimizer by an alias would do it twice
        for stage in stages_in(train_config):
            if stage.get("optimizer"):
                stage["optimizer"] = copy.deepcopy(stage["optimizer"])
    common = (built["datasets"], train_config, device, None, False, factor)  # the box thinks that it is alone
    try:
        if teacher is None:
            return get_training_box(student, *common)
        return get_distillation_box(teacher, student, *common)
    except Exception as error:
        place = "train.stage1" if "stage1" in train_config else "train"
        raise ConfigError(
            f"{place}: torchdistill could not set it up: {type(error).__name__}: {one_sentence(error)}"
        ) from error


def _is_complete(output_dir: str) -> bool:
    try:
        with open(os.path.join(output_dir, "results.json"), encoding="utf-8") as file:
            return json.load(file).get("complete") is True
    except (OSError, ValueError):
        return False


def _warn_about_test_data(built: dict, stage_configs: list[dict]) -> None:
    tested = built["test"]["test_data_loader"]["dataset_id"]
    if any((stage.get("val_data_loader") or {}).get("dataset_id") == tested for stage in stage_configs):
        logger.info("'%s' is both validation and test data: the test accuracy of the best epoch is optimistic", tested)


def _draw(results: dict, path: str) -> None:
    try:
        draw_curves(results, path)
    except Exception as error:  # a picture must not cost a run; and a run that failed says why, nothing else
        if results["complete"]:
            logger.warning("%s was not drawn: %s", path, one_sentence(error))


def _of_epoch(mark: dict) -> str:
    return f"epoch {mark['epoch']}, stage {mark['stage']}"


@contextlib.contextmanager
def _cudnn(*, benchmark: bool, deterministic: bool = False):
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
