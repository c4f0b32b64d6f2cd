"""CIFAR-10 and CIFAR-100 held as one tensor and served a whole batch at a time."""

import torch
from torch.utils.data import Dataset, get_worker_info
from torchdistill.datasets.registry import register_collate_func, register_dataset
from torchvision import datasets

from akd_ext.logit_cache.fingerprint import hash_of

PADDING = 4
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)


class _FastCIFAR(Dataset):
    """What both data sets share; ``source`` is torchvision's class, which finds, checks and reads the files."""

    source = None

    def __init__(
        self, root, train=True, download=False, augment=False, mean=MEAN, std=STD, device=None, channels_last=True
    ):
        name = type(self).__name__
        flags = {"train": train, "download": download, "augment": augment, "channels_last": channels_last}
        for argument, value in flags.items():
            if type(value) is not bool:  # 'False' in quotes would be true
                raise ValueError(f"{name}: {argument} is {value!r}, accepted are True and False")
        mean, std = _three(f"{name}: mean", mean), _three(f"{name}: std", std)
        if not (std > 0).all():
            raise ValueError(f"{name}: std is {std.tolist()}, accepted are numbers above 0")
        found = self._read(root, train, download)
        images = torch.from_numpy(found.data).contiguous()  # [N, 32, 32, 3], which torchvision only views so
        self.train, self.augment, self.channels_last = train, augment, channels_last
        self.classes, self.class_to_idx, self.targets = found.classes, found.class_to_idx, found.targets
        try:
            self.data = images.permute(0, 3, 1, 2).to(device)
            self._labels = torch.tensor(self.targets, device=device)
            self.mean, self.std = mean.to(device), std.to(device)
        except (AssertionError, RuntimeError, TypeError) as error:  # torch raises any of these for a device
            raise ValueError(f"{name}: device is {device!r}: {str(error).splitlines()[0]}") from error

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        images, labels = self.__getitems__([range(len(self))[index]])
        return images[0], int(labels[0])

    def __getitems__(self, indices):
        """The batch of these samples: (float32 [B, 3, 32, 32], int64 [B])."""
        device = self.data.device
        if device.type != "cpu" and get_worker_info() is not None:
            raise RuntimeError(
                f"{type(self).__name__}: its images are on {device}, which a worker process cannot read: "
                "set num_workers to 0 in the data loader"
            )
        chosen = torch.as_tensor(indices, device=device)
        # By pixels: index_select copies 3,072 bytes at a time then, and one by one where the memory is permuted.
        images = self.data.permute(0, 2, 3, 1).index_select(0, chosen).permute(0, 3, 1, 2)
        if self.augment:
            top, left = torch.randint(2 * PADDING + 1, (2, len(chosen)), device=device)
            images = crop_flip(images, top, left, torch.rand(len(chosen), device=device) < 0.5)
        images = normalise(images, self.mean, self.std)
        return images if self.channels_last else images.contiguous(), self._labels.index_select(0, chosen)

    def fingerprint(self):
        """SHA-256 of all images and labels, for the identity of cached teacher logits."""
        return hash_of([self.data.permute(0, 2, 3, 1), self._labels])  # permuted back to how it lies in memory

    @classmethod
    def _read(cls, root, train, download):
        try:
            return cls.source(root, train=train, download=download)
        except Exception as error:
            raise RuntimeError(
                f"{cls.__name__}: root is {str(root)!r}, and torchvision got no {cls.source.base_folder} from there: "
                + " ".join(str(error).split())
            ) from error


@register_dataset
class FastCIFAR10(_FastCIFAR):
    """torchvision's CIFAR10 as one uint8 tensor; serves whole batches, cropped, flipped and normalised at once.

    In a torchdistill YAML::

        datasets:
          cifar10/train: !import_call
            key: 'akd_ext.torchdistill.FastCIFAR10'
            init:
              kwargs:
                root: './data'
                train: True
                download: True
                augment: True

    and in a data loader that reads it (a training loader needs a wrapper that serves whole batches, too; torchdistill
    puts one around it that does not, unless the YAML names one)::

        train_data_loader:
          dataset_id: 'cifar10/train'
          dataset_wrapper:
            key: 'IndexedDatasetWrapper'
          collate_fn: 'whole_batch'

    Args:
        root, train, download: as for ``torchvision.datasets.CIFAR10``, which finds, checks (md5) and reads the files.
        augment: RandomCrop(32, padding=4), then RandomHorizontalFlip(), as torchvision does it; drawn from torch's
            global generator of the process that fetches and of ``device``.
        mean, std: three numbers each; ToTensor() and Normalize(mean, std) bit for bit.
        device: where the images stay and the batches come out; ``None`` is the CPU. On any other device the data
            loader must have ``num_workers: 0`` and no ``pin_memory``.
        channels_last: batches have torch.channels_last memory, in which the convolutions of most networks are faster.
            False for contiguous ones.

    Samples are ``(image, label)``: float32 [3, 32, 32], and an int. ``__getitems__(indices)`` gives ``(images,
    labels)``: float32 [B, 3, 32, 32] and int64 [B]. ``data`` (uint8 [N, 3, 32, 32]), ``targets`` (list of int),
    ``classes`` and ``class_to_idx`` are there as in torchvision's data sets.

    Raises:
        ValueError: an argument that is not as above.
        RuntimeError: torchvision finds no intact data in ``root`` or cannot download it; batches of another device
            than the CPU are fetched in a worker process.

    Example:
        >>> # not run: it needs the data
        >>> train = FastCIFAR10("data", augment=True)  # doctest: +SKIP
        >>> images, labels = train.__getitems__([7, 3, 11])  # doctest: +SKIP
        >>> images.shape, labels.shape  # doctest: +SKIP
        (torch.Size([3, 3, 32, 32]), torch.Size([3]))
    """

    source = datasets.CIFAR10


@register_dataset
class FastCIFAR100(_FastCIFAR):
    """torchvision's CIFAR100 (the 100 fine labels), served as ``FastCIFAR10`` does."""

    source = datasets.CIFAR100


@register_collate_func
def whole_batch(batch):
    """Collate function for data sets that serve whole batches: there is nothing left to do.

    In a data loader of a torchdistill YAML::

        collate_fn: 'whole_batch'

    Raises:
        TypeError: the data set gave a list of samples.

    Example:
        >>> whole_batch(("images", "labels"))
        ('images', 'labels')
    """
    if isinstance(batch, list):
        raise TypeError(
            f"whole_batch: the data set gave a list of {len(batch)} samples, not a batch; use it with FastCIFAR10 or "
            "FastCIFAR100, in a training loader with `dataset_wrapper: {key: 'IndexedDatasetWrapper'}`, or leave "
            "collate_fn out"
        )
    return batch


def check_whole_batches(**loaders):
    """Refuses a loader of ``FastCIFAR10`` or ``FastCIFAR100`` that would put whole batches together once more.

    Args:
        loaders: by their key in the YAML; ``None`` for one that the stage does not have.

    Raises:
        ValueError: a loader without ``collate_fn: 'whole_batch'``.
    """
    for key, loader in loaders.items():
        dataset = found = getattr(loader, "dataset", None)
        while hasattr(found, "org_dataset"):
            found = found.org_dataset
        if isinstance(found, _FastCIFAR) and hasattr(dataset, "__getitems__") and loader.collate_fn is not whole_batch:
            raise ValueError(
                f"{key}: {type(found).__name__} serves whole batches, and collate_fn is "
                f"{getattr(loader.collate_fn, '__name__', loader.collate_fn)!r}; add `collate_fn: 'whole_batch'`"
            )


def crop_flip(images, top, left, flip, padding=PADDING):
    """Pad by zeros on every side, cut out windows of the original size, mirror some of them.

    Args:
        images: uint8 [B, C, H, W].
        top, left: int64 [B], 0 to ``2 * padding``: where the window begins in the padded image.
        flip: bool [B]: mirror left and right, after the crop.

    Returns:
        uint8 [B, C, H, W], in channels_last memory.

    Example:
        >>> image = torch.arange(1, 5, dtype=torch.uint8).reshape(1, 1, 2, 2)  # [[1, 2], [3, 4]]
        >>> zero = torch.tensor([0])
        >>> crop_flip(image, zero + 1, zero, torch.tensor([True]), padding=1)
        tensor([[[[1, 0],
                  [3, 0]]]], dtype=torch.uint8)
    """
    pixels = images.permute(0, 2, 3, 1)
    batch, height, width, channels = pixels.shape
    sides = pixels.new_zeros(2, batch, height + 2 * padding, width + 2 * padding, channels)
    inner = sides[:, :, padding : padding + height, padding : padding + width]
    inner[0], inner[1] = pixels, pixels.flip(2)  # a crop mirrored is a crop of the mirror image
    windows = sides.unfold(2, height, 1).unfold(3, width, 1).permute(0, 1, 2, 3, 5, 6, 4)
    left = torch.where(flip, 2 * padding - left, left)
    index = flip.long(), torch.arange(batch, device=images.device), top, left
    if images.is_cpu:  # NumPy copies such windows row by row, torch byte by byte: a fifth of the time
        crops = torch.from_numpy(windows.numpy()[tuple(i.numpy() for i in index)])
    else:
        crops = windows[index]
    return crops.permute(0, 3, 1, 2)


def normalise(images, mean, std):
    """ToTensor() and Normalize(mean, std) of torchvision, bit for bit: ``(images / 255 - mean) / std``.

    Args:
        images: uint8 [B, C, H, W].
        mean, std: float32 [C].

    Returns:
        float32 [B, C, H, W], in channels_last memory.

    Example:
        >>> pixel = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
        >>> normalise(pixel, torch.tensor([0.5]), torch.tensor([0.25])).item()
        2.0
    """
    pixels = images.permute(0, 2, 3, 1)
    batch, height, width, channels = pixels.shape
    # One row an image, so that the inner loop is long; three at a time, a channel each, it would not be vectorised.
    rows = pixels.reshape(batch, -1).to(torch.float32)
    area = height * width
    # A tensor, because CUDA turns a division by a number into a multiplication by its reciprocal.
    rows.div_(torch.full((), 255.0, device=images.device)).sub_(mean.repeat(area)).div_(std.repeat(area))
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _three(argument, values):
    try:
        numbers = torch.tensor([float(value) for value in values])
    except (TypeError, ValueError):
        numbers = torch.tensor([])
    if numbers.shape != (3,) or not numbers.isfinite().all():
        raise ValueError(f"{argument} is {values!r}, accepted are three numbers, one a channel")
    return numbers
