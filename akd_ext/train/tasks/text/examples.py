"""One example, and the error that says which line of which file it came from."""

from __future__ import annotations

from dataclasses import dataclass

from akd_ext.train.system.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """``texts``: one sentence or two. ``label``: the class's index, a float for a regression, None if there is none.
    ``index``: how the file numbers the example, which the leaderboard wants back."""

    texts: tuple[str, ...]
    label: int | float | None
    index: str


def bad_line(path: object, where: int | str, problem: str) -> ConfigError:
    """The error for a line (from 1) of a data file, or for a place that has another name.

    >>> print(bad_line("CoLA/train.tsv", 3, "2 columns, expected 4"))
    CoLA/train.tsv, line 3: 2 columns, expected 4
    """
    return ConfigError(f"{path}, {f'line {where}' if isinstance(where, int) else where}: {problem}")
