"""scikit-learn's digits with fixed splits, and a wrapper that tells each sample's index."""

import itertools
from collections.abc import Mapping

import torch
from torch.utils.data import Dataset
from torchdistill.datasets.registry import register_dataset, register_dataset_wrapper
from torchdistill.datasets.wrapper import BaseDatasetWrapper

# Drawn once, never to be changed: numbers measured on one split cannot be compared with those of another. The training
# part is small because 200 images are plenty, and every image of the other two makes a comparison less noisy.
_SPLIT_SEED = 0
_TEST_SHARE, _VAL_SHARE = 2 / 5, 1 / 3


@register_dataset
class Digits(Dataset):
    """scikit-learn's 1,797 real 8x8 images of handwritten digits; they come with that package.

    The three splits are stratified by class, disjoint and always the same: 479 training, 599 validation and 719 test
    images. Select models on ``val``; ``test`` is for the number you report, once.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        train_size: take only the first ``train_size`` training images. Smaller sets are subsets of larger ones and
            hold every class as equally often as the number allows. ``None``: all of them.
        transform, target_transform: called with an image or a label when it is fetched, as in torchvision.

    Samples are ``(image, label)``: float32 [1, 8, 8] in [0, 1], and an int. ``data`` ([N, 1, 8, 8]), ``targets`` (list
    of int) and ``classes`` are there as in torchvision's datasets.

    Raises:
        ValueError: an unknown split; a ``train_size`` outside 1..479 or given for another split than ``"train"``.

    Example:
        >>> image, label = Digits("train", train_size=200)[0]
        >>> tuple(image.shape), label
        ((1, 8, 8), 0)
    """

    classes = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

    def __init__(self, split="train", train_size=None, transform=None, target_transform=None):
        indices = _splits()
        if split not in indices:
            raise ValueError(f"Digits: split is {split!r}, accepted are {', '.join(map(repr, indices))}")
        chosen = indices[split]
        if train_size is not None:
            if split != "train":
                raise ValueError(f"Digits: train_size is {train_size!r}, but split is {split!r}: only 'train' is cut")
            if type(train_size) is not int or not 1 <= train_size <= len(chosen):
                raise ValueError(f"Digits: train_size is {train_size!r}, accepted is an int from 1 to {len(chosen)}")
            chosen = chosen[:train_size]
        images, labels = _load()
        self.split, self.indices = split, chosen
        self.data = torch.from_numpy(images[chosen]).to(torch.float32).div_(16).unsqueeze(1)
        self.targets = labels[chosen].tolist()
        self.transform, self.target_transform = transform, target_transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        image, label = self.data[index], self.targets[index]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label


@register_dataset_wrapper
class IndexedDatasetWrapper(BaseDatasetWrapper):
    """Tell the training loop which sample it got: ``supp_dict['index']`` is the sample's index in the dataset.

    In a data loader of a torchdistill YAML::

        dataset_wrapper:
          key: 'IndexedDatasetWrapper'
          kwargs:
            cache_dir: './runs/teacher_logits'

    Args:
        org_dataset: the dataset. Its samples are pairs ``(sample, target)``, or dicts as Hugging Face's datasets have
            them.
        cache_dir: where ``cached_forward`` keeps the teacher's logits of this dataset; ``None``: in memory, computed
            again by every process.
        cache_extra: a dict to put into the identity of these logits, for what neither weights nor samples show.
        cache_dtype: ``'float16'``, ``'bfloat16'``, ``'float32'`` or ``'float64'`` to store them in; ``None``: as the
            teacher gives them.

    Batches are ``(samples, targets, {'index': int64 [B]})``; a dict gets an entry ``'index'``. A dataset that serves
    many samples at once (``__getitems__``) still does: either a list of samples, or a whole batch, samples ``[B, ...]``
    and targets ``[B]``, for a loader with ``collate_fn: 'whole_batch'``.

    Raises:
        ValueError: ``cache_dtype`` is something else, or a sample already has an ``'index'``.

    Example:
        >>> sample, target, supp_dict = IndexedDatasetWrapper(Digits("val"))[7]
        >>> supp_dict
        {'index': 7}
    """

    def __init__(self, org_dataset, cache_dir=None, cache_extra=None, cache_dtype=None):
        super().__init__(org_dataset)
        accepted = ("float16", "bfloat16", "float32", "float64")
        if cache_dtype not in (None, *accepted):
            raise ValueError(f"IndexedDatasetWrapper: cache_dtype is {cache_dtype!r}, accepted are {accepted} and None")
        self.cache_dir, self.cache_extra, self.cache_dtype = cache_dir, cache_extra or {}, cache_dtype

    def __getitem__(self, index):
        return _with_index(self.org_dataset[index], int(index))

    @property
    def __getitems__(self):
        self.org_dataset.__getitems__  # noqa: B018  without it, torch's loader must not find ours
        return self._getitems

    def _getitems(self, indices):
        items = self.org_dataset.__getitems__(indices)
        if isinstance(items, list):
            return [_with_index(item, int(index)) for item, index in zip(items, indices, strict=True)]
        samples, targets = items
        return samples, targets, {"index": torch.as_tensor(indices, dtype=torch.int64)}


def _with_index(item, index):
    if not isinstance(item, Mapping):
        sample, target = item
        return sample, target, {"index": index}
    if "index" in item:
        raise ValueError("IndexedDatasetWrapper: the dataset's samples already have an 'index'; rename that column")
    return {**item, "index": index}


def _load():
    from sklearn.datasets import load_digits  # not needed by anything else in the plug-in

    digits = load_digits()
    return digits.images, digits.target


def _splits():
    """Indices into scikit-learn's array by split. The training ones go round the classes: any prefix is stratified."""
    import numpy as np

    labels = _load()[1]
    random = np.random.RandomState(_SPLIT_SEED)  # numpy promises that this generator's numbers never change
    train, val, test = [], [], []
    for digit in range(10):
        indices = random.permutation(np.flatnonzero(labels == digit)).tolist()
        a, b = round(len(indices) * _TEST_SHARE), round(len(indices) * _VAL_SHARE)
        test += indices[:a]
        val += indices[a : a + b]
        train.append(indices[a + b :])
    rounds = itertools.zip_longest(*train)
    return {"train": [i for one in rounds for i in one if i is not None], "val": val, "test": test}
