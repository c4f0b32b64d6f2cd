"""What the commands of the figures share: errors in one sentence, and a picture with its numbers beside it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akd_ext.filesystem import write_text
from akd_ext.train.reporting.style import save
from akd_ext.train.run_folder import run_lock
from akd_ext.train.system.errors import ConfigError, RunError, one_sentence
from akd_ext.train.system.failures import explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def command(
    name: str,
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str],
) -> int:
    """Run ``akd-reproduce NAME`` and return its exit code: 0 done, 1 the run failed, 2 the command cannot work.

    ``run`` gets the arguments and, as ``args.command``, the line that was typed.
    """
    parser = argparse.ArgumentParser(prog=f"akd-reproduce {name}", description=description, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=Path("runs") / name, metavar="DIR",
                        help=f"for {name}.png and {name}.json (default: ./runs/{name})")  # fmt: skip
    add_arguments(parser)
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # argparse has said what is wrong
        return int(end.code or 0)
    args.command = shlex.join(["akd-reproduce", name, *argv])
    try:
        import matplotlib  # noqa: F401  before the work, not after it

        try:
            args.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output_dir: '{args.output_dir}' cannot be made: {error.strerror}") from error
        with run_lock(f"akd-reproduce {name}", "--output_dir", args.output_dir):
            return run(args)
    except ConfigError as error:
        return _fail(name, 2, str(error))
    except RunError as error:
        return _fail(name, 1, str(error))
    except ImportError as error:
        return _fail(name, 2, f"{one_sentence(error)}; pip install '.[experiments]'")
    except KeyboardInterrupt:
        return _fail(name, 130, "stopped by Ctrl-C")
    except Exception as error:
        return _fail(name, 1, explain(error) or f"{type(error).__name__}: {one_sentence(error)}")


def _fail(name: str, code: int, sentence: str) -> int:
    print(f"akd-reproduce {name}: error: {sentence}", file=sys.stderr)
    return code


def write(figure: Figure, data: dict[str, Any], output_dir: Path, name: str) -> None:
    """Write ``NAME.png`` and ``NAME.json``, each whole or not at all."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    save(figure, output_dir / f"{name}.png")
    write_text(output_dir / f"{name}.json", text)
    print(f"{output_dir / name}.png and {name}.json written")


def positive(text: str) -> int:
    """For argparse: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1")
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    """For argparse: a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is not a JSON object")
    return value
