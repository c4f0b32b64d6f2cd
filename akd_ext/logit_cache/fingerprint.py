"""What decides a teacher's logits, told in a few lines of JSON: its weights, and the samples it is shown."""

from __future__ import annotations

import ctypes
import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

PROBES = 64


def describe_teacher(model: nn.Module) -> dict[str, str]:
    """Class, structure (what ``print(model)`` shows) and weights of ``model``; the last two as SHA-256.

    Parameters and persistent buffers count, with names, shapes, dtypes and values, whatever device they are on. Code
    does not: a ``forward`` that was changed under the same class name is not noticed.

    >>> from torch import nn
    >>> a, b = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> [key for key in describe_teacher(a) if describe_teacher(a)[key] != describe_teacher(b)[key]]
    ['weights']
    """
    return {"class": _name(model), "structure": hash_of(_text(model)), "weights": hash_of(model.state_dict())}


def describe_dataset(dataset: Any, collate_fn: Callable[[list], Any] | None = None) -> dict[str, Any]:
    """Class, length, transforms and a sample of the content of a map-style ``dataset``.

    64 samples, evenly spread, the first and the last among them, are fetched through ``collate_fn`` and hashed as they
    come out, labels included, so another order, split or preprocessing is noticed. Not noticed: a change in a few of
    the samples between them. A dataset that can do better offers ``fingerprint() -> str``; it counts in addition, and
    is found through wrappers that keep order and length (``org_dataset``).

    Args:
        dataset: anything with ``len()`` and an index, or with ``__getitems__``.
        collate_fn: makes a batch of a list of samples; ``None`` keeps the list.

    Raises:
        ValueError: the dataset is empty, or gives other samples when it is asked again, as augmentation does. A
            transform that acts on one sample in a hundred only may escape: half of the time, 64 samples do not show it.

    >>> from torch.utils.data import Subset
    >>> describe_dataset(Subset([1.0, 2.0, 4.0], [2, 0]))["class"]
    'torch.utils.data.dataset.Subset > builtins.list'
    """
    samples = len(dataset)
    if not samples:
        raise ValueError(f"dataset: {_name(dataset)} is empty; accepted: at least one sample")
    indices = sorted({round(i * (samples - 1) / (PROBES - 1)) for i in range(PROBES)})
    probes, again = (hash_of(_fetch(dataset, indices, collate_fn)) for _ in range(2))
    layers = _layers(dataset)
    if probes != again:
        raise ValueError(
            f"dataset: {_name(layers[-1])}, or its collate function, gives other samples when it is asked for the same "
            "ones again, so logits kept for them would be wrong; accepted: a dataset without random augmentation, or a "
            "teacher that runs at every step"
        )
    found: dict[str, Any] = {"class": " > ".join(map(_name, layers)), "samples": samples, "content": probes}
    for name in ("transform", "target_transform"):
        found[name] = " > ".join(_text(getattr(d, name)) for d in layers if getattr(d, name, None) is not None)
    while dataset is not None:
        if callable(getattr(dataset, "fingerprint", None)):
            return {**found, "fingerprint": str(dataset.fingerprint())}
        dataset = getattr(dataset, "org_dataset", None)
    return found


def hash_of(value: Any) -> str:
    """SHA-256, as hex, of tensors, numbers, text, arrays and images in dicts, lists and tuples."""
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor: no copy, no numpy. Keep the tensor alive as long as the view."""
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
        sha.update(raw_bytes(value))
    elif isinstance(value, Mapping):
        sha.update(f"mapping {len(value)} ".encode())
        for key, item in value.items():
            _feed(sha, key)
            _feed(sha, item)
    elif isinstance(value, (list, tuple)):
        sha.update(f"sequence {len(value)} ".encode())
        for item in value:
            _feed(sha, item)
    elif hasattr(value, "tobytes") and str(getattr(value, "dtype", "")) != "object":  # NumPy's and Pillow's
        form = [getattr(value, name, None) for name in ("dtype", "shape", "mode", "size")]
        sha.update(f"{_name(value)}{form}".encode())
        sha.update(value.tobytes())
    elif value is None or isinstance(value, (str, bytes, bool, int, float, complex)):
        sha.update(f"{value!r};".encode())
    else:
        sha.update(pickle.dumps(value))


def _fetch(dataset: Any, indices: list[int], collate_fn: Callable[[list], Any] | None) -> Any:
    """As torch's DataLoader does it."""
    many = getattr(dataset, "__getitems__", None)
    samples = many(indices) if many else [dataset[index] for index in indices]
    return samples if collate_fn is None else collate_fn(samples)


def _layers(dataset: Any) -> list[Any]:
    """The dataset, and what it wraps: ``org_dataset`` in torchdistill's wrappers, ``dataset`` in torch's Subset."""
    layers: list[Any] = []
    while dataset is not None and len(layers) < 16:
        layers.append(dataset)
        dataset = getattr(dataset, "org_dataset", getattr(dataset, "dataset", None))
    return layers


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _text(value: Any) -> str:
    """``repr`` on one line, without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(repr(value).split()))
