"""Sentences as wide as a person reads them."""

from __future__ import annotations

import shutil
import textwrap
from typing import TextIO

COLUMNS = 100


def folded(text: str, stream: TextIO) -> str:
    """For a terminal, lines of at most 100 columns. Rows of a table stay whole, and so does all that goes into a file or a pipe."""
    if not stream.isatty():
        return text
    width = min(COLUMNS, shutil.get_terminal_size().columns)
    fold = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False).fill
    return "\n".join(line if line.startswith("|") or len(line) <= width else fold(line) for line in text.split("\n"))
