"""A user's own sentences: CSV with a header, or JSON (a list of objects, or one object per line)."""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path

from akd_ext.train.system.errors import ConfigError

from .examples import Example, bad_line
from .glue import GlueTask

logger = logging.getLogger(__name__)
LABEL = "label"
_NUMBERS_OF_ROWS = ("id", "idx", "index", "")  # the last is what pandas writes for its index


def read_table(files: dict[str, str]) -> tuple[GlueTask, dict[str, list[Example]]]:
    """Reads ``{split: file}``; the split ``train`` decides the columns and the classes.

    The column ``label`` is the label. The text is ``sentence1`` and ``sentence2``, or one of them, whatever else there
    is; where both are missing, the one or two other columns, which must not be numbers: those of a pair with an ``id``
    are refused. Labels that are all numbers with a decimal point make a
    regression; anything else makes classes, which are sorted.

    Raises:
        ConfigError: names file and line, and what was expected there.
    """
    rows = {split: _rows(Path(path).expanduser()) for split, path in files.items()}
    columns = list(rows["train"][0][1])
    if LABEL not in columns:
        raise bad_line(files["train"], rows["train"][0][0], f"there is no column 'label' among {', '.join(columns)}")
    others = [name for name in columns if name != LABEL]
    texts = [name for name in ("sentence1", "sentence2") if name in others] or others
    if not texts:
        raise bad_line(files["train"], rows["train"][0][0], "there is no column beside 'label', expected a sentence")
    if len(texts) > 2:
        raise bad_line(files["train"], rows["train"][0][0], f"which of the columns {', '.join(others)} are the text? Name "
                       "them sentence1 and, in a pair, sentence2")  # fmt: skip
    if texts is others:
        _check_text(files["train"], rows["train"], texts)
    logger.info("%s: the text is in %s", files["train"], " and ".join(f"'{name}'" for name in texts))
    found = [row.get(LABEL) for _, row in rows["train"]]
    is_regression = all(isinstance(y, float) or (isinstance(y, str) and _is_decimal(y)) for y in found)
    classes = () if is_regression else tuple(sorted({str(y) for y in found}, key=_numbers_first))
    if not is_regression and len(classes) < 2:
        raise ConfigError(f"{files['train']}: every label is '{classes[0]}', expected two classes or more")
    metrics = ("pearson", "spearmanr") if is_regression else ("accuracy",)
    task = GlueTask("own", "own data", tuple(texts), tuple(texts), LABEL, classes, classes, metrics,
                splits=tuple((split, split) for split in files))  # fmt: skip
    return task, {
        split: [_example(files[split], number, row, task, i) for i, (number, row) in enumerate(rows[split])]
        for split in files
    }


def _check_text(path: str, rows: list[tuple[int | str, dict]], texts: list[str]) -> None:
    """Of two columns that nobody named as the text, neither may be a number of the row or the like."""
    for name in texts if len(texts) == 2 else ():
        values = [value for _, row in rows if (value := str(row.get(name) or "")).strip()]
        only_numbers = bool(values) and all(map(_is_number, values))
        if name.strip().lower() in _NUMBERS_OF_ROWS or only_numbers:
            kind = "holds only numbers" if only_numbers else "is called like the number of a row"
            raise bad_line(path, rows[0][0], f"which of the columns {' and '.join(texts)} are the text? '{name}' {kind}: name the "
                           f"text sentence1 (and, in a pair, sentence2), or drop '{name}'")  # fmt: skip


def _example(path: str, number: int | str, row: dict, task: GlueTask, index: int) -> Example:
    for name in (*task.texts, LABEL):
        if row.get(name) is None:
            raise bad_line(path, number, f"it lacks '{name}'; expected {', '.join((*task.texts, LABEL))}")
    for name in task.texts:
        if not str(row[name]).strip():
            raise bad_line(path, number, f"the column '{name}' is empty, expected a sentence")
    label = row[LABEL]
    if not str(label).strip():
        raise bad_line(path, number, "the label is empty")
    if task.is_regression:
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise bad_line(path, number, f"the label is '{label}', expected a number as in the training file")
    elif str(label) not in task.labels:
        raise bad_line(path, number, f"the label is '{label}', expected one of {', '.join(task.labels)}")
    else:
        value = task.labels.index(str(label))
    return Example(tuple(str(row[name]) for name in task.texts), value, str(index))


def _rows(path: Path) -> list[tuple[int | str, dict]]:
    """(where in the file, row)."""
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder; accepted: a .csv, .json or .jsonl file")
    if not path.is_file():
        raise ConfigError(f"there is no file '{path}'")
    try:
        if path.suffix == ".csv":
            rows = _csv_rows(path)
        elif path.suffix in (".json", ".jsonl"):
            rows = _json_rows(path)
        else:
            raise ConfigError(f"'{path}' is no .csv, .json or .jsonl")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start})") from error
    if not rows:
        raise ConfigError(f"{path} holds no examples")
    return rows


def _csv_rows(path: Path) -> list[tuple[int, dict]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        # strict: a quote that is never closed would swallow the rest of the file.
        reader, rows, begins = csv.DictReader(file, strict=True), [], 1
        try:
            begins += 1 if reader.fieldnames else 0
            for row in reader:
                if None in row:
                    raise bad_line(path, reader.line_num, f"more than {len(reader.fieldnames)} columns, the header has "
                                   f"{', '.join(reader.fieldnames)}")  # fmt: skip
                rows.append((reader.line_num, row))
                begins = reader.line_num + 1
        except csv.Error as error:
            raise bad_line(path, begins, f"the row that begins here is no CSV ({error}); a quote inside a "
                           'sentence is written twice, in quotes: "She said ""no""."') from error  # fmt: skip
    return rows


def _json_rows(path: Path) -> list[tuple[int | str, dict]]:
    text = path.read_bytes().decode("utf-8-sig")  # opened as text it would end a line at a lone \r, too
    rows = []
    if text.lstrip().startswith("["):
        try:
            rows = [(f"item {number}", row) for number, row in enumerate(json.loads(text), start=1)]
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON: {error}") from error
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    rows.append((number, json.loads(line)))
                except ValueError as error:
                    raise bad_line(path, number, f"it is no JSON: {error}") from error
    for number, row in rows:
        if not isinstance(row, dict):
            raise bad_line(path, number, f"it is {row!r}, expected an object with a label")
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_decimal(text: str) -> bool:
    return "." in text and _is_number(text)


def _numbers_first(text: str) -> tuple:
    """Classes 2 and 10 in this order, as a reader expects."""
    return (0, int(text), text) if text.lstrip("-").isdigit() else (1, 0, text)
