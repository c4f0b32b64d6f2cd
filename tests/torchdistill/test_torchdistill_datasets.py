"""Splits that never move, never overlap, and hold every class; samples that say their index."""

import zlib

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install '.[test]'")

import torch
from sklearn.datasets import load_digits
from torch.utils.data import SequentialSampler
from torchdistill.datasets.registry import get_dataset
from torchdistill.datasets.util import build_data_loader

from akd_ext.torchdistill import Digits

SPLITS = ("train", "val", "test")


def test_splits_partition_the_whole_dataset():
    indices = [index for split in SPLITS for index in Digits(split).indices]
    assert sorted(indices) == list(range(1797))
    assert [len(Digits(split)) for split in SPLITS] == [479, 599, 719]


@pytest.mark.parametrize(("split", "checksum"), [("train", 1324834737), ("val", 2826027353), ("test", 1094837619)])
def test_splits_are_the_ones_the_published_numbers_were_measured_on(split, checksum):
    assert zlib.crc32(str(Digits(split).indices).encode()) == checksum


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_is_stratified(split):
    counts = torch.bincount(torch.tensor(Digits(split).targets), minlength=10)
    # The classes themselves differ by 9 images out of about 180.
    assert counts.max() - counts.min() <= 4


def test_smaller_training_sets_are_stratified_subsets():
    small, large = Digits("train", train_size=57), Digits("train", train_size=200)
    assert large.indices[:57] == small.indices
    counts = torch.bincount(torch.tensor(small.targets), minlength=10)
    assert counts.tolist() == [6] * 7 + [5] * 3


def test_samples_are_scikit_learns_images():
    dataset, digits = Digits("val"), load_digits()
    image, label = dataset[3]
    where = dataset.indices[3]
    assert image.dtype == torch.float32
    assert torch.equal(image[0] * 16, torch.tensor(digits.images[where], dtype=torch.float32))
    assert label == digits.target[where]
    assert type(label) is int
    assert 0 <= dataset.data.min() < dataset.data.max() == 1


def test_transforms_are_applied():
    image, label = Digits("test", transform=lambda x: x + 1, target_transform=lambda y: -y)[5]
    plain_image, plain_label = Digits("test")[5]
    assert torch.equal(image, plain_image + 1)
    assert label == -plain_label


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"split": "dev"}, "split is 'dev', accepted are 'train', 'val', 'test'"),
        ({"split": "train", "train_size": 0}, "train_size is 0, accepted is an int from 1 to 479"),
        ({"split": "train", "train_size": 480}, "train_size is 480, accepted is an int from 1 to 479"),
        ({"split": "train", "train_size": 2.5}, "train_size is 2.5"),
        ({"split": "train", "train_size": True}, "train_size is True"),
        ({"split": "test", "train_size": 10}, "only 'train' is cut"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Digits(**kwargs)


def test_digits_is_registered():
    assert get_dataset("Digits") is Digits


def test_the_wrapper_tells_every_sample_its_index():
    config = {
        "dataset_wrapper": {"key": "IndexedDatasetWrapper"},
        "sampler": {"class_or_func": SequentialSampler},
        "kwargs": {"batch_size": 4},
    }
    dataset = Digits("val")
    samples, targets, supp_dict = list(build_data_loader(dataset, config, distributed=False))[1]
    assert supp_dict["index"].tolist() == [4, 5, 6, 7]
    assert supp_dict["index"].dtype == torch.int64
    assert torch.equal(samples, dataset.data[4:8])
    assert targets.tolist() == dataset.targets[4:8]
