"""A few random images in CIFAR's own files, which torchvision takes for CIFAR."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
from torchvision import datasets

PER_FILE = 12  # so 60 training images of CIFAR-10, 12 of CIFAR-100, and 12 test images of either


def write_cifar(root: Path, monkeypatch) -> None:
    """Writes both data sets below ``root`` and tells torchvision their md5 sums."""
    random = np.random.default_rng(0)
    for source, key, meta_key, names, classes in (
        (datasets.CIFAR10, "labels", "label_names", [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], 10),
        (datasets.CIFAR100, "fine_labels", "fine_label_names", ["train", "test"], 100),
    ):
        folder = root / source.base_folder
        folder.mkdir()
        files = [
            _write(folder, name, {
                "data": random.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8),
                key: random.integers(0, classes, PER_FILE).tolist(),
            })
            for name in names
        ]  # fmt: skip
        monkeypatch.setattr(source, "train_list", files[:-1])
        monkeypatch.setattr(source, "test_list", files[-1:])
        name, md5 = _write(folder, source.meta["filename"], {meta_key: [f"class {i}" for i in range(classes)]})
        monkeypatch.setattr(source, "meta", {"filename": name, "key": meta_key, "md5": md5})


def _write(folder: Path, name: str, content: dict) -> list[str]:
    path = folder / name
    path.write_bytes(pickle.dumps(content))
    return [name, hashlib.md5(path.read_bytes()).hexdigest()]
