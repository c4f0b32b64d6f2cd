"""FastCIFAR10/100 hold torchvision's data and serve torchvision's transforms, bit for bit, a batch at a time."""

import os

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import torch
from cifar_fixture import PER_FILE, write_cifar
from torch.utils.data import RandomSampler, SequentialSampler
from torchdistill.datasets.registry import get_collate_func, get_dataset
from torchdistill.datasets.util import build_data_loader
from torchvision import datasets, transforms
from torchvision.transforms import functional

from akd_ext.logit_cache import describe_dataset
from akd_ext.torchdistill import IndexedDatasetWrapper, cifar
from akd_ext.torchdistill.cifar import MEAN, STD, FastCIFAR10, FastCIFAR100, crop_flip, normalise, whole_batch

TO_FLOAT = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    return str(tmp_path)


def loader(dataset, sampler=SequentialSampler, wrapper=None, workers=0, batch_size=16):
    config = {
        "sampler": {"class_or_func": sampler},
        "collate_fn": "whole_batch",
        "kwargs": {"batch_size": batch_size, "num_workers": workers},
    }
    if wrapper is not None:
        config["dataset_wrapper"] = {"key": wrapper}
    return build_data_loader(dataset, config, distributed=False)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [(FastCIFAR10, datasets.CIFAR10), (FastCIFAR100, datasets.CIFAR100)])
def test_the_data_are_torchvisions(root, ours, theirs, train):
    fast, reference = ours(root, train=train), theirs(root, train=train, transform=TO_FLOAT)
    assert len(fast) == len(reference)
    assert (fast.classes, fast.class_to_idx, fast.targets) == (
        reference.classes, reference.class_to_idx, reference.targets,
    )  # fmt: skip
    assert fast.data.dtype == torch.uint8
    assert fast.data.shape == (len(reference), 3, 32, 32)
    assert torch.equal(fast.data.permute(0, 2, 3, 1), torch.from_numpy(reference.data))

    order = [5, 0, len(fast) - 1, 5]
    images, labels = fast.__getitems__(order)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    for index, image, label in zip(order, images, labels, strict=True):
        one, its_label = fast[index]
        expected, expected_label = reference[index]
        assert torch.equal(image, expected)
        assert torch.equal(one, expected)
        assert type(its_label) is int
        assert its_label == label == expected_label


def test_one_sample_is_indexed_like_a_list(root):
    fast = FastCIFAR10(root, train=False)
    assert torch.equal(fast[-1][0], fast[PER_FILE - 1][0])
    with pytest.raises(IndexError):
        fast[PER_FILE]
    assert len(list(fast)) == PER_FILE


def test_every_crop_and_flip_is_torchvisions(device):
    """All 9 x 9 offsets, mirrored and not, each with an image of its own."""
    cases = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]
    images = torch.randint(0, 256, (len(cases), 3, 32, 32), dtype=torch.uint8)
    expected = []
    for image, (top, left, flip) in zip(images, cases, strict=True):
        padded = functional.pad(functional.to_pil_image(image), 4)
        crop = functional.crop(padded, top, left, 32, 32)
        expected.append(TO_FLOAT(functional.hflip(crop) if flip else crop))
    top, left, flip = (torch.tensor(column, device=device) for column in zip(*cases, strict=True))
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    for given in (images, images.to(memory_format=torch.channels_last)):
        found = normalise(crop_flip(given.to(device), top, left, flip), mean, std)
        assert torch.equal(found.cpu(), torch.stack(expected))


def test_every_pixel_value_is_normalised_as_torchvision_does(device):
    images = torch.arange(256, dtype=torch.uint8).expand(1, 3, 4, 256)
    found = normalise(images.to(device), torch.tensor(MEAN, device=device), torch.tensor(STD, device=device))
    assert torch.equal(found[0].cpu(), TO_FLOAT(functional.to_pil_image(images[0])))


def observed_crops(dataset, batches):
    """(top, left, flipped) of every image served by a data set whose pixels say where they come from."""
    places = torch.arange(32, dtype=torch.uint8)
    dataset.data[:, 0], dataset.data[:, 1] = places[:, None] + 1, places[None, :] + 1
    found = []
    for _ in range(batches):
        images, _ = dataset.__getitems__(range(len(dataset)))
        places = (images[:, :2, 16, 14:18] * 255).round().long() - 1  # far from the padding: row or column in the image
        flip = places[:, 1, 0] > places[:, 1, 1]
        # The window's pixel (16, 16) is (top + 12, left + 12) of the image; mirrored, its column is left + 11.
        found.append(torch.stack([places[:, 0, 2] - 12, places[:, 1, 2] - 12 + flip.long(), flip.long()], 1))
    return torch.cat(found)


def test_offsets_and_flips_are_uniform_and_independent(root):
    """Chi-square of the 162 combinations, 100 draws each expected; the seed is fixed, so this never fails by chance.

    161 degrees of freedom: mean 161, standard deviation sqrt(2 * 161) = 17.9. Five of those above the mean is 251. Were
    one offset of nine never drawn, the statistic would be about 162 * 100 / 8 = 2,025 above it.
    """
    dataset = FastCIFAR10(root, augment=True, mean=(0, 0, 0), std=(1, 1, 1))  # 60 images
    found = observed_crops(dataset, batches=270)
    assert found.min() == 0
    assert found.amax(0).tolist() == [8, 8, 1]
    top, left, flip = found.unbind(1)
    counts = torch.bincount((top * 9 + left) * 2 + flip, minlength=162).double()
    expected = len(found) / 162
    assert expected == 100
    assert ((counts - expected) ** 2 / expected).sum() < 251


def test_augmentation_follows_the_global_seed(root):
    dataset = FastCIFAR10(root, augment=True)
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(dataset.__getitems__(range(32))[0])
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[2], dataset.__getitems__(range(32))[0])


def test_memory_order_changes_nothing_else(root):
    last, first = (FastCIFAR10(root, channels_last=value).__getitems__(range(8))[0] for value in (True, False))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous()
    assert torch.equal(first, last)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_loader_gives_whole_batches_in_order(root, workers):
    dataset = FastCIFAR10(root)
    batches = list(loader(dataset, wrapper="IndexedDatasetWrapper", workers=workers))
    assert [len(images) for images, _, _ in batches] == [16, 16, 16, 12]
    images, labels, supplements = zip(*batches, strict=True)
    assert torch.equal(torch.cat(images), dataset.__getitems__(range(60))[0])
    assert torch.cat(labels).tolist() == dataset.targets
    assert torch.cat([supplement["index"] for supplement in supplements]).tolist() == list(range(60))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_loader_gives_pairs(root, workers):
    dataset = FastCIFAR100(root, train=False)
    ((images, labels),) = loader(dataset, workers=workers)
    assert torch.equal(images, dataset.__getitems__(range(PER_FILE))[0])
    assert labels.tolist() == dataset.targets


def test_workers_draw_different_crops_and_follow_the_seed(root):
    dataset = FastCIFAR10(root, augment=True)
    dataset.data[:] = dataset.data[:1].clone()  # one image: batches differ by their crops alone

    def epoch():
        torch.manual_seed(3)
        return [images for images, _ in loader(dataset, RandomSampler, workers=2, batch_size=30)]

    (a, b), again = epoch(), epoch()
    assert not torch.equal(a, b)
    assert torch.equal(a, again[0])
    assert torch.equal(b, again[1])


def test_a_fetch_sample_by_sample_is_refused_with_the_remedy(root):
    config = {"requires_supp": True, "sampler": {"class_or_func": SequentialSampler}, "collate_fn": "whole_batch",
              "kwargs": {"batch_size": 4}}  # fmt: skip
    batches = iter(build_data_loader(FastCIFAR10(root), config, distributed=False))
    with pytest.raises(TypeError, match="a list of 4 samples, not a batch; .*IndexedDatasetWrapper"):
        next(batches)


@pytest.mark.parametrize("wrapper", ["IndexedDatasetWrapper", None])
def test_a_loader_without_whole_batch_is_refused_before_the_first_epoch(root, wrapper):
    """torch's own collate function would stack the images on the labels and speak of their sizes."""
    config = {"sampler": {"class_or_func": SequentialSampler}, "kwargs": {"batch_size": 4}}
    if wrapper:
        config["dataset_wrapper"] = {"key": wrapper}
    bad = build_data_loader(FastCIFAR10(root), config, distributed=False)
    with pytest.raises(ValueError, match="val_data_loader: FastCIFAR10 .* add `collate_fn: 'whole_batch'`"):
        cifar.check_whole_batches(train_data_loader=loader(FastCIFAR10(root)), val_data_loader=bad)
    cifar.check_whole_batches(train_data_loader=loader(FastCIFAR10(root), wrapper=wrapper), val_data_loader=None)


def test_another_device_refuses_workers(root, monkeypatch):
    dataset = FastCIFAR10(root, device="meta")  # any device but the CPU
    # As in a worker. A real one that fails costs five seconds when its loader is thrown away.
    monkeypatch.setattr(cifar, "get_worker_info", lambda: "a worker")
    with pytest.raises(RuntimeError, match="on meta, which a worker process cannot read: set num_workers to 0"):
        dataset.__getitems__([0])


@pytest.mark.cuda
def test_batches_come_out_on_the_gpu(root):
    images, labels = FastCIFAR10(root, device="cuda").__getitems__([3, 1])
    expected, expected_labels = FastCIFAR10(root).__getitems__([3, 1])
    assert (images.device.type, labels.device.type) == ("cuda", "cuda")
    assert torch.equal(images.cpu(), expected)
    assert torch.equal(labels.cpu(), expected_labels)
    augmented, _ = FastCIFAR10(root, device="cuda", augment=True).__getitems__([3, 1])
    assert augmented.shape == expected.shape


def test_cached_logits_notice_any_image_and_label_and_refuse_augmentation(root):
    def described(dataset):
        return describe_dataset(IndexedDatasetWrapper(dataset), whole_batch)

    first = described(FastCIFAR10(root))
    assert described(FastCIFAR10(root, channels_last=False)) == first
    assert described(FastCIFAR10(root, std=(0.2, 0.2, 0.2)))["content"] != first["content"]
    image, label = FastCIFAR10(root), FastCIFAR10(root)
    image.data[7, 2, 31, 31] += 1
    label._labels[7] += 1
    assert len({described(dataset)["fingerprint"] for dataset in (FastCIFAR10(root), image, label)}) == 3
    with pytest.raises(ValueError, match="FastCIFAR10, or its collate function, gives other samples"):
        described(FastCIFAR10(root, augment=True))


def test_keys_are_registered():
    assert get_dataset("FastCIFAR10") is FastCIFAR10
    assert get_dataset("FastCIFAR100") is FastCIFAR100
    assert get_collate_func("whole_batch") is whole_batch


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"train": "False"}, "FastCIFAR10: train is 'False', accepted are True and False"),
        ({"augment": 1}, "augment is 1, accepted are True and False"),
        ({"mean": 0.5}, "mean is 0.5, accepted are three numbers"),
        ({"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\], accepted are three numbers"),
        ({"std": [0.2, 0.2, float("nan")]}, "std is .*nan.*, accepted are three numbers"),
        ({"std": [0.2, 0.2, 0.0]}, "std is .*, accepted are numbers above 0"),
        ({"device": "gpu"}, "device is 'gpu': "),
        ({"device": 3.5}, "device is 3.5: "),
    ],
)
def test_bad_arguments_are_named(root, kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        FastCIFAR10(root, **kwargs)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_are_one_sentence(root, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        if folder == tmp_path:
            (folder / "cifar-10-batches-py" / "test_batch").write_bytes(b"not what it was")
        with pytest.raises(
            RuntimeError, match="root is .*no cifar-10-batches-py from there: .*download=True"
        ) as caught:
            FastCIFAR10(folder)
        assert "\n" not in str(caught.value)


def test_real_data_are_torchvisions(monkeypatch):
    folder = os.environ.get("AKD_EXT_CIFAR")
    if not folder:
        pytest.skip("set AKD_EXT_CIFAR to a folder with torchvision's CIFAR-10 and CIFAR-100 to read the real data")
    monkeypatch.undo()  # the real md5 sums
    for ours, theirs in ((FastCIFAR10, datasets.CIFAR10), (FastCIFAR100, datasets.CIFAR100)):
        fast, reference = ours(folder, train=False), theirs(folder, train=False, transform=TO_FLOAT)
        images, labels = next(iter(loader(fast, batch_size=500)))
        assert torch.equal(images, torch.stack([reference[index][0] for index in range(500)]))
        assert labels.tolist() == reference.targets[:500]
