"""A checkpoint from a file or a URL, by one rule for both: weights are read, code in it runs for who asked only."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import pickle
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torchdistill.core import distillation, training

logger = logging.getLogger(__name__)
State = dict[str, torch.Tensor]
_allow_pickle: ContextVar[bool] = ContextVar("allow_pickle", default=False)


@contextlib.contextmanager
def checkpoint_rules(*, allow_pickle: bool) -> Iterator[None]:
    """Within it every checkpoint is read by `read_checkpoint`, also those that torchdistill reads itself.

    torchdistill loads a stage's ``src_ckpt`` when it enters the stage, with code execution.
    """
    from .weights import load

    def load_ckpt(path: str | None, model: nn.Module) -> None:
        if path and (is_url(path) or os.path.exists(os.path.expanduser(path))):  # torchdistill passes over others, too
            load(model, path, "src_ckpt")
            logger.info("weights from %s", path)

    token, theirs = _allow_pickle.set(allow_pickle), distillation.load_ckpt
    distillation.load_ckpt = training.load_ckpt = load_ckpt
    try:
        yield
    finally:
        distillation.load_ckpt = training.load_ckpt = theirs
        _allow_pickle.reset(token)


def is_url(path: str) -> bool:
    return path.lower().startswith(("http://", "https://"))


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads .safetensors, or anything torch.load reads (torchdistill's own checkpoints included), or a URL of such.

    Raises:
        ValueError: it is no such file; its URL is plain http, which anybody on the way may change; or code from it
            would have to run, and `checkpoint_rules` do not allow that.
    """
    path = _downloaded(path) if is_url(path) else os.path.expanduser(path)
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # torchdistill's script stores its arguments
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        LookupError,
        EOFError,
    ) as error:  # a text is an unlucky program for a pickle machine
        with open(path, "rb") as file:
            start = file.read(16)
        if not start.startswith((b"PK", b"\x80")):
            raise ValueError(
                f"no torch.save wrote it: it {f'begins with {_shown(start)}' if start else 'is empty'}"
            ) from error
        found = re.search(r"GLOBAL (\S+)", str(error))
        more = f"it holds more than weights{f' ({found[1]})' if found else ''}"
        if not _allow_pickle.get():
            raise ValueError(
                f"{more}, and loading that would run code from it; a file that you trust is read with --allow_pickle, "
                "or keep its state_dict() alone"
            ) from error
        logger.warning("%s: %s; code from it runs, as --allow_pickle says", path, more)
        return torch.load(path, map_location="cpu", weights_only=False)


def _shown(start: bytes) -> str:
    """The start of a file as text, or as bytes where it is none.

    >>> _shown(b"# The teacher, t"), _shown(b"\\x8d\\x00W")
    ("'# The teacher, t'", 'the bytes 8d 00 57')
    """
    text = " ".join(start.decode("utf-8", "replace").rstrip("\ufffd").split())  # the last character may be cut
    return f"'{text}'" if text.isprintable() and "\ufffd" not in text and text else f"the bytes {start.hex(' ')}"


def _downloaded(url: str) -> str:
    """The file of ``url`` in torch's folder for them, under a name of its own: many call theirs model.pt."""
    if not url.lower().startswith("https://"):
        raise ValueError("plain http can be changed on the way; accepted: https, or a file")
    name = url.partition("?")[0].partition("#")[0].rstrip("/").rpartition("/")[2]
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        logger.info("downloading %s to %s", url, path)
        torch.hub.download_url_to_file(url, path, progress=False)
    return path


def weights_in(checkpoint: dict[str, Any]) -> State:
    """The model's weights in a checkpoint: under ``model`` (torchdistill), ``state_dict`` (many others), or bare."""
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if checkpoint and all(name.startswith("module.") for name in checkpoint):  # saved from inside DataParallel
        return {name[len("module.") :]: value for name, value in checkpoint.items()}
    return checkpoint
