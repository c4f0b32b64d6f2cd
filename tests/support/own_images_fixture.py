"""Data sets of a newcomer's for tests/support/train_tiny.yaml, each with one mistake, or with none."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset, Sampler, Subset, default_collate
from torchdistill.datasets.registry import register_collate_func
from train_fixture import CLASSES, TinyImages


class Images(Dataset):
    """TinyImages in another form. ``at``: where the label ``label`` stands; None: nowhere."""

    def __init__(self, form="pair", size=48, label=CLASSES, at=None, lists=True, start=0):
        self._images = TinyImages(size, start)
        self._form, labels = form, list(self._images.targets)
        if at is not None:
            labels[at] = label
        self._labels = labels
        if lists:
            self.targets = labels

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        image, label = self._images[index][0], self._labels[index]
        if self._form == "dict":
            return {"image": image, "label": label}
        if self._form == "triple":
            return image, label, f"{index}.png"
        if self._form == "PIL":
            from PIL import Image

            return Image.new("L", (8, 8)), label
        if self._form == "augmented":
            image = image + torch.rand(())
        return image, self.label(label)

    def label(self, label):
        if self._form == "text":
            return f"class {label}"
        if self._form == "float":
            return float(label)
        if self._form == "shifted":  # as a target_transform: what is listed is not what comes
            return label % CLASSES
        if self._form == "mixture":
            return torch.nn.functional.one_hot(torch.tensor(label), CLASSES).float()
        return label


def subset(at, size=48):
    return Subset(Images(size=size, at=at), range(size))


class First(Sampler):
    """The first ``count`` samples, as where classes are added one after the other."""

    def __init__(self, dataset, count):
        self._count = count

    def __iter__(self):
        return iter(range(self._count))

    def __len__(self):
        return self._count


@register_collate_func
def in_pairs(samples):
    """As mixup, which mixes one half of a batch with the other."""
    if len(samples) % 2:
        raise ValueError(f"a batch of {len(samples)} samples")
    return default_collate(samples)
