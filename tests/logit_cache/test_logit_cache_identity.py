"""What a cache is bound to: every change that changes logits changes the description, and nothing else does."""

import copy
import os
import random
import re
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from subject_process import run
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from akd_ext.logit_cache.fingerprint import PROBES, describe_dataset, describe_teacher, hash_of


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))


class Images(Dataset):
    """``n`` images that are their own index, with a transform."""

    def __init__(self, n=200, transform=None, target_transform=None):
        self.n, self.transform, self.target_transform = n, transform, target_transform

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        image = torch.full((1, 8, 8), float(index))
        return (self.transform(image) if self.transform else image), index % 3


class Times:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, image):
        return image * self.factor

    def __repr__(self):
        return f"Times({self.factor})"


def changed(describe, a, b):
    a, b = describe(a), describe(b)
    return {key for key in {**a, **b} if a.get(key) != b.get(key)}


# -- the teacher ---------------------------------------------------------------------------------------------------------


def test_a_copy_of_a_teacher_is_the_same_teacher():
    a = net()
    b = copy.deepcopy(a).eval().requires_grad_(False)
    assert changed(describe_teacher, a, b) == set()


def smallest_step(model):
    with torch.no_grad():
        model[3].bias[1] = torch.nextafter(model[3].bias[1], torch.tensor(9.0))


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (smallest_step, {"weights"}),
        (lambda model: model[1].running_mean.add_(1), {"weights"}),
        (lambda model: model.half(), {"weights"}),
        (lambda model: setattr(model[1], "eps", 1e-3), {"structure"}),
        (lambda model: model.append(nn.ReLU()), {"structure"}),
    ],
)
def test_a_changed_teacher_is_another_teacher(change, keys):
    a = net()
    b = copy.deepcopy(a)
    change(b)
    assert changed(describe_teacher, a, b) == keys


def test_exchanged_weights_are_other_weights():
    """Names and shapes count, not only the bytes in a row."""
    a, b = nn.ModuleDict({"x": nn.Linear(2, 2)}), nn.ModuleDict({"y": nn.Linear(2, 2)})
    b["y"].load_state_dict(a["x"].state_dict())
    assert "weights" in changed(describe_teacher, a, b)
    assert hash_of(torch.zeros(2, 3)) != hash_of(torch.zeros(3, 2))
    assert hash_of(torch.zeros(2)) != hash_of(torch.zeros(2, dtype=torch.int32))


# -- the dataset ---------------------------------------------------------------------------------------------------------


def test_an_equal_dataset_is_the_same_dataset():
    assert changed(describe_dataset, Images(transform=Times(2)), Images(transform=Times(2))) == set()


@pytest.mark.parametrize(
    ("other", "keys"),
    [
        (Images(201), {"samples", "content"}),
        (Images(transform=Times(1)), {"transform"}),
        (Images(transform=Times(2)), {"transform", "content"}),
        (Images(target_transform=Times(1)), {"target_transform"}),
        (Subset(Images(), range(200)), {"class"}),
    ],
)
def test_another_dataset_is_told_by_what_differs(other, keys):
    assert changed(describe_dataset, Images(), other) == keys


def test_another_order_is_noticed():
    there, back = Subset(Images(), range(200)), Subset(Images(), range(199, -1, -1))
    assert changed(describe_dataset, there, back) == {"content"}


def test_the_transform_inside_a_subset_is_told():
    described = describe_dataset(Subset(Images(transform=Times(3)), [1, 2]))
    assert described["transform"] == "Times(3)"
    assert described["class"].endswith("Subset > test_logit_cache_identity.Images")


def test_an_address_is_no_difference():
    """A lambda's repr holds its address, which is another in every process."""
    described = describe_dataset(Images(transform=lambda image: image))["transform"]
    assert "lambda" in described
    assert "0x" not in described


def test_the_collate_function_counts():
    def collate(samples):
        images, labels = default_collate(samples)
        return 2 * images, labels

    a, b = (describe_dataset(Images(), function) for function in (default_collate, collate))
    assert a["content"] != b["content"]


def test_first_and_last_samples_are_looked_at_and_64_at_most():
    fetched = []

    class Watched(Images):
        def __getitem__(self, index):
            fetched.append(index)
            return super().__getitem__(index)

    describe_dataset(Watched(1000))
    assert len(set(fetched)) == PROBES
    assert {0, 999} <= set(fetched)
    fetched.clear()
    describe_dataset(Watched(3))
    assert sorted(set(fetched)) == [0, 1, 2]


@pytest.mark.parametrize("probability", [1.0, 0.5])
@pytest.mark.parametrize("source", [torch.rand, lambda n: torch.tensor([random.random()])])
def test_random_samples_are_refused(probability, source):
    """Two draws of 64 coins agree once in 2^64 runs."""
    dataset = Images(transform=lambda image: image + 1 if source(1) < probability / 2 else image)
    with pytest.raises(
        ValueError, match="Images, or its collate function, gives other samples.*without random augment"
    ):
        describe_dataset(dataset)


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="Images is empty"):
        describe_dataset(Images(0))


class Wrapper(Images):
    def __init__(self, dataset):
        self.org_dataset = dataset

    def __len__(self):
        return len(self.org_dataset)

    def __getitem__(self, index):
        return self.org_dataset[index]


class WithFingerprint(TensorDataset):
    def fingerprint(self):
        return hash_of(self.tensors)


def test_a_fingerprint_notices_what_lies_between_the_probes():
    a, b = torch.zeros(10_000), torch.zeros(10_000)
    b[1] = 1
    assert changed(describe_dataset, TensorDataset(a), TensorDataset(b)) == set()
    assert changed(describe_dataset, WithFingerprint(a), WithFingerprint(b)) == {"fingerprint"}
    assert changed(describe_dataset, Wrapper(WithFingerprint(a)), Wrapper(WithFingerprint(b))) == {"fingerprint"}


def test_a_fingerprint_does_not_stand_for_a_part_of_the_dataset():
    assert "fingerprint" not in describe_dataset(Subset(WithFingerprint(torch.zeros(9)), [1, 2]))


def test_arrays_images_and_text_can_be_hashed():
    numpy = pytest.importorskip("numpy", reason="needs NumPy: pip install '.[test]'")
    image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install '.[test]'")
    array = numpy.arange(12, dtype=numpy.uint8).reshape(3, 4)
    values = [array, array.T.copy(), array.astype(numpy.int16), image.fromarray(array), image.fromarray(array.T.copy())]
    values += ["12", b"12", 12, 12.0, (1, 2), {"a": 1}, {"b": 1}, None, True, numpy.array(["a"], dtype=object)]
    assert len({hash_of(value) for value in values}) == len(values)
    assert [hash_of(value) for value in copy.deepcopy(values)] == [hash_of(value) for value in values]


@pytest.mark.integration
class Words:
    """A transform and a sample that hold sets of text, whose order is another in every process."""

    def __init__(self):
        self.kept = {"alpha", "beta", "gamma", "delta"}
        self.by_word = {word: len(word) for word in self.kept}
        self.me = self

    def __repr__(self):
        return f"Words({self.kept}, {[frozenset(self.kept)]})"

    def __call__(self, sample):
        return self, frozenset(self.kept), self.by_word, re.compile("a|b"), torch.float32, sample


def describe_words():
    return str(describe_dataset(Images(9, transform=Words())))


@pytest.mark.integration
def test_the_order_of_sets_is_no_difference():
    """Of four words there are 24 orders; the seeds 1 and 2 give two of them."""
    code = "from test_logit_cache_identity import describe_words; print(describe_words())"
    paths = os.pathsep.join(map(str, [Path(__file__).parent, SUPPORT]))
    told = {run(["-W", "ignore", "-c", f"import sys; sys.path += {paths.split(os.pathsep)}; {code}"],
                PYTHONHASHSEED=seed) for seed in "12"}  # fmt: skip
    assert told == {describe_words() + "\n"}


def test_objects_are_told_by_their_content():
    one, other = Words(), Words()
    assert hash_of(one) == hash_of(other)
    other.kept = other.kept | {"epsilon"}
    assert hash_of(one) != hash_of(other)
    assert hash_of({1, 2}) != hash_of([1, 2]) != hash_of({1: 2})
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1}) != hash_of({"a": 2, "b": 1})


def test_another_process_describes_both_alike():
    code = (
        "import torch\n"
        "from torch import nn\n"
        "from torch.utils.data import TensorDataset\n"
        "from akd_ext.logit_cache.fingerprint import describe_dataset, describe_teacher\n"
        "torch.manual_seed(0)\n"
        "print(describe_teacher(nn.Linear(3, 2)), describe_dataset(TensorDataset(torch.randn(9), torch.arange(9))))\n"
    )
    outside = run(["-W", "ignore", "-c", code], PYTHONHASHSEED="7")
    torch.manual_seed(0)
    inside = describe_teacher(nn.Linear(3, 2)), describe_dataset(TensorDataset(torch.randn(9), torch.arange(9)))
    assert outside.split() == " ".join(map(str, inside)).split()


@pytest.mark.integration
def test_neither_numpy_nor_a_trainer_is_needed():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['numpy', 'torchvision', 'torchdistill', 'safetensors', 'tqdm']))\n"
        "import tempfile, torch\n"
        "from akd_ext.logit_cache.fingerprint import describe_teacher\n"
        "from akd_ext.logit_cache import LogitCache\n"
        "identity = describe_teacher(torch.nn.Linear(2, 2))\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    for _ in range(2):\n"
        "        cache = LogitCache.build_or_open(\n"
        "            folder, identity, lambda: [(torch.arange(2), torch.eye(2))], num_samples=2)\n"
        "print(cache[torch.tensor([1])].tolist())\n"
    )
    assert run(["-W", "ignore", "-c", code]).strip() == "[[0.0, 1.0]]"
