"""The files that the GLUE leaderboard takes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from akd_ext.filesystem import replacing

from .glue import REGRESSION_RANGE, TASKS, GlueTask

FILES = tuple(name for task in TASKS.values() for name in task.submission)


def lines(task: GlueTask, indices: Sequence[str], answers: Sequence) -> str:
    r"""The content of one file: a header, then a line per test example.

    Args:
        task: decides how a label is written: ``0``/``1``, a name, or a score from 0 to 5.
        indices: how the test file numbers its examples.
        answers: [N], classes in the task's order, or scores, which are cut to their range.

    >>> from akd_ext.train.tasks.text.glue import TASKS
    >>> lines(TASKS["rte"], ["0", "1"], [1, 0])
    'index\tprediction\n0\tnot_entailment\n1\tentailment\n'
    """
    if task.is_regression:
        low, high = REGRESSION_RANGE
        written = [f"{min(max(answer, low), high):.3f}" for answer in answers]
    else:
        written = [task.written[answer] for answer in answers]
    rows = [f"{index}\t{answer}\n" for index, answer in zip(indices, written, strict=True)]
    return "".join(["index\tprediction\n", *rows])


def problems(folder: str | Path) -> list[str]:
    """What the leaderboard would not take in the files of ``folder``, one sentence each; empty when all is well."""
    found = []
    for task in TASKS.values():
        for name in task.submission:
            path = Path(folder) / name
            if path.is_file():
                found += [f"{name}{problem}" for problem in _file_problems(path.read_text(encoding="utf-8"), task)]
            else:
                found.append(f"{name} is missing")
    return found


def _file_problems(text: str, task: GlueTask) -> list[str]:
    header, *rows = text.split("\n")
    if header != "index\tprediction":
        return [f", line 1: the header is '{header}', expected 'index<TAB>prediction'"]
    if not text.endswith("\n") or len(rows) < 2:
        return [" is cut off or empty"]
    indices = [row.partition("\t")[0] for row in rows[:-1]]
    if len(set(indices)) != len(indices):
        return [" has an index twice"]
    for number, row in enumerate(rows[:-1], start=2):
        index, _, answer = row.partition("\t")
        if not index.isdigit() or not _is_answer(answer, task):
            return [f", line {number}: '{row}' is no answer, expected an index and "
                    + ("a score from 0 to 5" if task.is_regression else f"one of {', '.join(task.written)}")]  # fmt: skip
    return []


def _is_answer(text: str, task: GlueTask) -> bool:
    if not task.is_regression:
        return text in task.written
    try:
        return REGRESSION_RANGE[0] <= float(text) <= REGRESSION_RANGE[1]
    except ValueError:
        return False


def collect(chosen: dict[str, dict[str, Any]], folder: Path, predict: Callable[[Any, Path], None]) -> list[str]:
    """Write ``folder/METHOD/*.tsv`` and, where a set is complete and right, ``folder/METHOD.zip`` to upload.

    Args:
        chosen: {method: {task: whatever ``predict`` knows}}.
        predict: writes the files of one task into a folder.

    Returns:
        A sentence per method.
    """
    said = []
    for method, tasks in chosen.items():
        for task in tasks.values():
            predict(task, folder / method)
        wrong = problems(folder / method)
        if wrong:
            said.append(f"{folder / method}: the leaderboard takes complete sets only; {'; '.join(wrong)}")
            continue
        with replacing(folder / f"{method}.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name in FILES:
                archive.write(folder / method / name, name)
        said.append(f"{folder / method}.zip: {len(FILES)} files for the leaderboard")
    return said
