"""``akd-train``: trains what a torchdistill YAML describes. Reads the arguments and answers for the exit code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from akd_ext.train.reporting.folding import folded

_EPILOG = """examples:
  akd-train --config torchdistill_configs/digits/annealing_kd.yaml --output_dir runs/akd --seed 0
  akd-train --config X.yaml --set train.stage1.num_epochs=20 --set models.teacher_model.src_ckpt=teacher.pt
  akd-train --config X.yaml --output_dir runs/x -test_only

With --output_dir DIR a state is saved in DIR/resume after every epoch (more often: --save_every_steps). The
same command goes on from it; nothing is done again when the run is finished. SIGTERM and Ctrl-C end the
step, save a state and exit; a second Ctrl-C stops at once. Without --output_dir only the best student is kept.

A line an epoch. Epochs count from 1 over all stages; T and Phi are the annealing's; "val" is on the validation
data; * marks the best epoch of its stage so far. results.json and curves.png say the same.

exit codes: 0 done, 1 the run failed, 2 something in the command or the YAML cannot work, 3 stopped by SIGTERM
or Ctrl-C and the same command goes on, 130 stopped with nothing saved."""
STOPPED, NOTHING_SAVED = 3, 130


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="akd-train",
        description="Trains or distils a classifier of images or text from a torchdistill YAML file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    same = p.add_argument_group("as in torchdistill's own image_classification.py")
    same.add_argument("--config", required=True, metavar="FILE", help="torchdistill YAML file")
    same.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda, cuda:N, mps")
    same.add_argument("--run_log", metavar="FILE", help="log file")
    same.add_argument("--seed", type=int, help="seed of Python's, NumPy's and PyTorch's random numbers")
    same.add_argument("--start_epoch", type=int, default=0, metavar="N", help="0 only: a run goes on by --resume")
    same.add_argument("-test_only", "--test_only", action="store_true", help="only test the student in dst_ckpt")
    same.add_argument("-student_only", "--student_only", action="store_true", help="do not test the teacher")
    same.add_argument("-log_config", "--log_config", action="store_true", help="log the configuration")
    same.add_argument("-disable_cudnn_benchmark", "--disable_cudnn_benchmark", action="store_true",
                      help="no search for the fastest cuDNN kernels, which may differ from run to run")  # fmt: skip
    same.add_argument(
        "--world_size",
        type=int,
        default=1,
        help="number of processes that srun started; torchrun and accelerate say it themselves",
    )
    same.add_argument("--dist_url", default="env://", help="where the processes meet")
    same.add_argument("-adjust_lr", "--adjust_lr", action="store_true", help="multiply the learning rate by world_size")
    more = p.add_argument_group("more")
    more.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B.C=VALUE",
                      help="change a YAML value as if in the file itself (aliases follow); repeatable")  # fmt: skip
    more.add_argument("--output_dir", metavar="DIR",
                      help="results.json, {best,last}.safetensors, checkpoint.pt (of text: checkpoint/), train.log, "
                      "curves.png, config.yaml, and resume/, the state that the same command goes on from")  # fmt: skip
    more.add_argument("--save_every_steps", type=int, default=0, metavar="N",
                      help="save a state also every N optimizer steps of a stage (default: after epochs only)")  # fmt: skip
    more.add_argument("--resume", action="store_true",
                      help="go on with the run in --output_dir, which happens anyway; an error if there is none")  # fmt: skip
    more.add_argument("--overwrite", action="store_true",
                      help="start over, whatever run is in --output_dir")  # fmt: skip
    more.add_argument("--tensorboard", action="store_true", help="scalars in <output_dir>/tensorboard")
    more.add_argument("--amp", choices=("bf16", "fp16"), help="mixed precision; fp16 with loss scaling")
    more.add_argument("--channels_last", action="store_true", help="NHWC memory, faster convolutions on most GPUs")
    more.add_argument("--compile", action="store_true", help="torch.compile the student and the teacher")
    more.add_argument("--allow_pickle", action="store_true",
                      help="read checkpoints that hold more than weights, which runs code from them")  # fmt: skip
    more.add_argument("--quiet", action="store_true", help="only warnings and errors on the console, no bar")
    more.add_argument("--debug", action="store_true", help="show the traceback of an error")
    text = p.add_argument_group("for text: a YAML as for torchdistill's general_language_understanding.py")
    text.add_argument("--glue_dir", metavar="DIR", help="GLUE's official files (DIR/CoLA/train.tsv, ...), not the hub")
    text.add_argument("--teacher", metavar="MODEL", help="name on the Hugging Face hub or folder of the teacher")
    text.add_argument("--student", metavar="MODEL", help="the same for the student, or for the only model")
    text.add_argument(
        "--private_output", metavar="DIR", help="answers to the test sets in the YAML's section 'private'"
    )
    text.add_argument("--length_buckets", action="store_true", help="batches of similar length: less padding")
    return p


def check_flags(args: argparse.Namespace) -> None:
    """What argparse cannot: flags that need one another, ranges. Raises ConfigError."""
    from akd_ext.train.system.errors import ConfigError

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
            f"--start_epoch {args.start_epoch}: a run begins with its first epoch; the same command with --resume goes on with "
            "the run in --output_dir, in its stage and at its step"
        )
    if args.seed is not None and not 0 <= args.seed < 2**32:  # NumPy's range
        raise ConfigError(f"--seed {args.seed}: it must be between 0 and {2**32 - 1}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``akd-train`` with the given arguments and returns its exit code.

    >>> main(["--config", "no_such_file.yaml"])
    2
    """
    try:
        args = parser().parse_args(argv)
    except SystemExit as end:  # argparse has said what is wrong
        return int(end.code or 0)
    try:
        import torchdistill  # noqa: F401
        import tqdm  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        return _fail(2, f"{error.name} is not installed; pip install '.[experiments]'", error, args.debug)

    from akd_ext.train.reporting.console import logging_set_up
    from akd_ext.train.system.errors import ConfigError, RunError, one_sentence
    from akd_ext.train.system.failures import explain
    from akd_ext.train.system.signals import Stop

    with Stop() as stop, logging_set_up(args.quiet) as logs:
        log = logging.getLogger(__name__)
        try:
            from .trainer import run

            check_flags(args)
            run(args, logs, stop)
            return 0
        except ConfigError as error:
            return _fail(2, str(error), error, args.debug)
        except RunError as error:
            _note(log, "error: %s", error)
            return _fail(1, str(error), error, args.debug)
        except KeyboardInterrupt as error:
            by = f"stopped by {stop.asked or 'Ctrl-C'}"
            if stop.saved is None:
                hint = "" if args.output_dir else "; with --output_dir DIR one is, after every epoch"
                return _fail(NOTHING_SAVED, f"{by}; no state was saved{hint}", error, args.debug)
            log.info("%s; a state is saved", by, extra={"file_only": True})
            return _fail(STOPPED, f"{by}; the same command goes on from {stop.saved}", error, args.debug)
        except Exception as error:
            _note(log, "%s", traceback.format_exc())
            if (sentence := explain(error)) is not None:
                return _fail(1, sentence, error, args.debug)
            where = f"its traceback is in {logs.files[0]}" if logs.files else "--debug shows its traceback"
            return _fail(1, f"{type(error).__name__}: {one_sentence(error)} ({where})", error, args.debug)


def _note(log: logging.Logger, message: str, what: object) -> None:
    with contextlib.suppress(OSError):  # the log may be what cannot be written
        log.info(message, what, extra={"file_only": True})


def _fail(code: int, sentence: str, error: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    number = os.environ.get("RANK", "0")  # of several processes, see processes.py
    said = f"akd-train: error: {'' if number == '0' else f'process {number}: '}{sentence}"
    print(folded(said, sys.stderr), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
