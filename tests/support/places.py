"""Folders of this source tree."""

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent  # on the path of every test, see pyproject.toml
ROOT = SUPPORT.parents[1]
TINY = str(SUPPORT / "train_tiny.yaml")  # two stages in a second
