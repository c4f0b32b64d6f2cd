"""A run that would overwrite what it reads: its teacher, a checkpoint to start from, a model's folder, its own data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from akd_ext.train.run_folder import RunFolder
from akd_ext.train.system.errors import ConfigError

from .document import Tagged, YamlTree

_SOURCES = ("src_ckpt", "src_folder", "pretrained_model_name_or_path", "root", "train_file_path", "valid_file_path")


def refuse_overwrites(
    plain: dict, tree: YamlTree, student: str, output_dir: str | None, glue_dir: str | None = None
) -> None:
    """Compares every path that the run writes with every path that it reads, through links and ``..``.

    A student whose ``src_ckpt`` is its own ``dst_ckpt`` is torchdistill's way to say "continue if there is something",
    and a later stage reads what an earlier one has written: there the two are written alike, and that is let through.

    Raises:
        ConfigError: two are the same; names both keys.
    """
    target = plain["models"][student]["dst_ckpt"]
    written = list(_written(plain, student, output_dir))
    read = [*_read({name: plain.get(name) for name in ("datasets", "models", "train")}, ""), *_folders(glue_dir)]
    for key_path, source in read:
        if source.lower().startswith(("http://", "https://")) or (source == target and ".teacher" not in key_path):
            continue
        for name, path in written:
            if key_path != name and not _is_handed_over(plain, key_path, source) and is_same(path, source):
                place = "" if key_path.startswith("--") else f" ({tree.location(key_path)})"
                raise ConfigError(
                    f"{name}: it leads to '{path}', which the run reads as {key_path}, and would overwrite it; "
                    f"write elsewhere{place}"
                )


def _written(plain: dict, student: str, output_dir: str | None) -> Iterator[tuple[str, str]]:
    """(flag or key path, path) of all that a training run writes."""
    yield (
        ("--output_dir" if output_dir is not None else f"models.{student}.dst_ckpt"),
        plain["models"][student]["dst_ckpt"],
    )
    train = plain.get("train")
    for role in ("student", "teacher", "model"):
        section = train.get(role) if isinstance(train, dict) else None
        if isinstance(section, dict) and isinstance(section.get("dst_ckpt"), str):
            yield f"train.{role}.dst_ckpt", section["dst_ckpt"]
    if output_dir is not None:
        for path in vars(RunFolder(output_dir)).values():
            yield "--output_dir", str(path)


def _read(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(key path, path) of everything that a YAML names to be read."""
    value = value.value if isinstance(value, Tagged) else value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        inner_path = f"{path}.{key}" if path else str(key)
        if key in _SOURCES and isinstance(inner, str) and inner:
            yield inner_path, inner
        else:
            yield from _read(inner, inner_path)


def _folders(glue_dir: str | None) -> Iterator[tuple[str, str]]:
    """GLUE's folder and those of its tasks."""
    if glue_dir is not None:
        yield "--glue_dir", glue_dir
        folder = os.path.expanduser(glue_dir)
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            yield "--glue_dir", os.path.join(folder, name)


def _is_handed_over(plain: dict, key_path: str, source: str) -> bool:
    """Whether a stage starts from what torchdistill itself writes between two stages."""
    train = plain.get("train")
    sections = [train.get(role) for role in ("student", "teacher", "model")] if isinstance(train, dict) else []
    written = [section.get("dst_ckpt") for section in sections if isinstance(section, dict)]
    return key_path.startswith("train.") and source in written


def is_same(written: str, read: str) -> bool:
    """Whether two paths lead to one file, which need not exist."""
    written, read = (os.path.realpath(os.path.expanduser(path)) for path in (written, read))
    if written == read:
        return True
    try:
        return os.path.samefile(written, read)  # a hard link, or a file system that knows no capital letters
    except OSError:
        return False
