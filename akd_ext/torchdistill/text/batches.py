"""Batches of sentences that need little padding."""

import torch
from torch.utils.data import Sampler


class LengthBucketSampler(Sampler):
    """Random order in which examples of similar length stand together, so that little of a batch is padding.

    The examples are shuffled, ``window`` batches of them at a time are sorted by length and cut into batches, and the
    batches are shuffled. In a YAML::

        sampler:
          class_or_func: !import_get
            key: 'akd_ext.torchdistill.text.LengthBucketSampler'
          kwargs:
            batch_size: 32    # the loader's

    Args:
        dataset: examples are mappings with ``input_ids``.
        batch_size: that of the data loader.
        window: how many batches are sorted together: more means less padding and less random batches.

    Yields every index of the dataset once. The incomplete batch, if there is one, comes last.

    Example:
        >>> lengths = [3, 9, 1, 7]
        >>> sampler = LengthBucketSampler([{"input_ids": [0] * n} for n in lengths], batch_size=2)
        >>> order = [lengths[i] for i in sampler]
        >>> sorted(map(tuple, (order[:2], order[2:])))
        [(1, 3), (7, 9)]
    """

    def __init__(self, dataset, batch_size, window=50):
        for name, value in (("batch_size", batch_size), ("window", window)):
            if type(value) is not int or value < 1:
                raise ValueError(f"LengthBucketSampler: {name} is {value!r}, accepted is an int from 1")
        columns = getattr(dataset, "column_names", None)
        ids = dataset["input_ids"] if columns else (example["input_ids"] for example in dataset)
        self.lengths = torch.tensor([len(tokens) for tokens in ids])
        self.batch_size, self.window = batch_size, window

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        shuffled = torch.randperm(len(self))
        full = len(self) // self.batch_size * self.batch_size
        batches = []
        for part in shuffled[:full].split(self.window * self.batch_size):
            batches += part[self.lengths[part].argsort()].split(self.batch_size)
        for place in torch.randperm(len(batches)).tolist():
            yield from batches[place].tolist()
        yield from shuffled[full:].tolist()
