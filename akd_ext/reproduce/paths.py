"""Where the torchdistill YAML files are."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """The folder ``torchdistill_configs``.

    The files exist once, at the top of the source tree. A wheel carries a copy inside the package (put there by
    ``_build_backend/commands.py``); a clone and ``pip install -e .`` use the folder of the tree.

    Raises:
        FileNotFoundError: neither is there.

    >>> (config_dir() / "digits").is_dir()
    True
    """
    package = Path(__file__).resolve().parents[1]
    places = [package / "torchdistill_configs", package.parent / "torchdistill_configs"]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"torchdistill_configs is neither {places[0]} nor {places[1]}")
