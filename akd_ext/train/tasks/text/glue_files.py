"""Reads the official GLUE files. Tabs part the columns and quotes are text: no line of these files is quoted."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from akd_ext.train.system.errors import ConfigError

from .examples import Example, bad_line
from .glue import REGRESSION_RANGE, GlueTask

logger = logging.getLogger(__name__)


def read_split(glue_dir: str | Path, task: GlueTask, split: str) -> list[Example]:
    """Reads one split of one task.

    Args:
        glue_dir: the folder with ``CoLA/train.tsv`` and so on.
        task: a task of ``TASKS``.
        split: as in Hugging Face's data set: ``train``, ``validation``, ``test``, MNLI ``validation_matched``, ...

    Raises:
        ConfigError: names the folder, or file and line, and what was expected there.
    """
    path = find_file(glue_dir, task, split)
    rows, header = _rows(path), dict(task.no_header).get(split)
    if header is None:
        if not rows:
            raise ConfigError(f"{path} is empty; expected a header with {_listed(task.texts)}")
        header, rows = rows[0][1], rows[1:]
    wanted = [*task.texts, *([task.label] if not split.startswith("test") else [])]
    places = {}
    for name in wanted:
        if name not in header:
            raise bad_line(path, 1, f"there is no column '{name}', the header is {_listed(header)}")
        places[name] = header.index(name)
    number_column = next((header.index(name) for name in ("index", "id", "ID") if name in header), None)
    examples, broken = [], []
    for number, cells in rows:
        problem = _problem(cells, header, [places[name] for name in task.texts])
        if problem and task.skips_broken_lines and not split.startswith("test"):
            broken.append(number)
            continue
        if problem:
            raise bad_line(path, number, problem)
        label = _label(path, number, cells[places[task.label]], task) if task.label in places else None
        index = str(len(examples)) if number_column is None else cells[number_column]
        examples.append(Example(tuple(cells[places[name]] for name in task.texts), label, index))
    if broken:
        logger.info("%s: %d lines without a question are left out, the first is line %d", path, len(broken), broken[0])
    if not examples:
        raise ConfigError(f"{path} holds no examples")
    return examples


def find_file(glue_dir: str | Path, task: GlueTask, split: str) -> Path:
    """The file of a split; raises ConfigError with what is there instead."""
    root, names = Path(glue_dir).expanduser(), dict(task.splits)
    if split not in names:
        raise ConfigError(f"{task.name} has no split '{split}'; its splits are {', '.join(names)}")
    if not root.is_dir():
        raise ConfigError(
            f"--glue_dir: '{glue_dir}' is no folder; expected one with {task.folder}/ and the other tasks"
        )
    places = [root / task.folder / f"{names[split]}.tsv"]
    if task.name == "ax":  # the two layouts it was given out in
        places += [root / "AX.tsv", root / "diagnostic" / "diagnostic.tsv"]
    for path in places:
        if path.is_file():
            return path
    folder = root / task.folder
    there = sorted(path.name for path in (folder if folder.is_dir() else root).iterdir())
    raise ConfigError(
        f"there is no file '{places[0]}' for the {split} split of {task.folder}; "
        f"{folder if folder.is_dir() else root} holds {', '.join(there) or 'nothing'}"
    )


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, columns). utf-8-sig: MRPC's files start with a byte-order mark."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start})") from error
    # Only real line ends: str.splitlines, and a file opened as text, also break at characters inside sentences.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line]


def _problem(cells: list[str], header, texts: list[int]) -> str | None:
    if len(cells) != len(header):
        return f"{len(cells)} columns, expected {len(header)} ({_listed(header)}), parted by tabs"
    for place in texts:
        if not cells[place].strip():
            return f"the column '{header[place]}' is empty, expected a sentence"
    return None


def _label(path: Path, number: int, text: str, task: GlueTask) -> int | float:
    if not task.is_regression:
        if text not in task.written:
            raise bad_line(path, number, f"the label is '{text}', expected one of {', '.join(task.written)}")
        return task.written.index(text)
    low, high = REGRESSION_RANGE
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise bad_line(path, number, f"the score is '{text}', expected a number from {low:g} to {high:g}")
    return value


def _listed(names) -> str:
    return ", ".join(f"'{name}'" for name in names)
