"""What a cache was computed from: told as a dict that JSON can hold, compared in words, the same in every process."""

from __future__ import annotations

import copyreg
import ctypes
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor, nn

PROBES = 64
_DEEPEST = 32


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
    probes, layers = hash_of_samples(dataset, collate_fn), _layers(dataset)
    found: dict[str, Any] = {"class": " > ".join(map(_name, layers)), "samples": len(dataset), "content": probes}
    for name in ("transform", "target_transform"):
        found[name] = " > ".join(_text(getattr(d, name)) for d in layers if getattr(d, name, None) is not None)
    while dataset is not None:
        if callable(getattr(dataset, "fingerprint", None)):
            return {**found, "fingerprint": str(dataset.fingerprint())}
        dataset = getattr(dataset, "org_dataset", None)
    return found


def hash_of_samples(dataset: Any, collate_fn: Callable[[list], Any] | None = None) -> str:
    """A hash of 64 samples; arguments and errors as of :func:`describe_dataset`."""
    samples = len(dataset)
    if not samples:
        raise ValueError(f"dataset: {_name(dataset)} is empty; accepted: at least one sample")
    indices = sorted({round(i * (samples - 1) / (PROBES - 1)) for i in range(PROBES)})
    probes, again = (hash_of(_fetch(dataset, indices, collate_fn)) for _ in range(2))
    if probes != again:
        raise ValueError(
            f"dataset: {_name(_layers(dataset)[-1])}, or its collate function, gives other samples when it is asked for the "
            "same ones again, so logits kept for them would be wrong; accepted: a dataset without random augmentation, or a "
            "teacher that runs at every step"
        )
    return probes


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
    """``repr`` on one line, without what differs from process to process: addresses, and the order of a set.

    >>> _text({"b", "a"})
    "{'a', 'b'}"
    """
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(repr(value).split()))
    in_brackets = r"(?![^(\[]*[)\]])"
    return re.sub(
        r"{([^{}]*)}", lambda found: "{" + ", ".join(sorted(re.split(", " + in_brackets, found[1]))) + "}", text
    )


# -- hashes ------------------------------------------------------------------------------------------------------------


def hash_of(value: Any) -> str:
    """SHA-256, as hex, of tensors, numbers, text, arrays and images in dicts, lists, tuples, sets and plain objects.

    The order of a dict or a set does not count: Python gives sets of text another one in every process.
    """
    return _hash(value, ())


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor: no copy, no numpy. Keep the tensor alive as long as the view."""
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))


def _hash(value: Any, around: tuple) -> str:
    sha = hashlib.sha256()
    _feed(sha, value, around)
    return sha.hexdigest()


def _feed(sha: Any, value: Any, around: tuple) -> None:
    """``around`` are the objects that ``value`` is a part of, from the outermost on."""
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        sha.update(pickle.dumps(value, 4))  # its name, by which it can be imported
    elif isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
        sha.update(raw_bytes(value))
    elif isinstance(value, (Mapping, set, frozenset)):
        kind, items = ("mapping", value.items()) if isinstance(value, Mapping) else ("set", value)
        sha.update(f"{kind} {len(value)} {sorted(_hash(item, around) for item in items)}".encode())
    elif isinstance(value, (list, tuple)):
        sha.update(f"sequence {len(value)} ".encode())
        for item in value:
            _feed(sha, item, around)
    elif hasattr(value, "tobytes") and str(getattr(value, "dtype", "")) != "object":  # NumPy's and Pillow's
        form = [getattr(value, name, None) for name in ("dtype", "shape", "mode", "size")]
        sha.update(f"{_name(value)}{form}".encode())
        sha.update(value.tobytes())
    elif value is None or isinstance(value, (str, bytes, bool, int, float, complex)):
        sha.update(f"{value!r};".encode())
    else:
        _feed_object(sha, value, around)


def _feed_object(sha: Any, value: Any, around: tuple) -> None:
    """As its parts in the eyes of pickle, whose own bytes depend on the order of sets and on what is the same object."""
    depth = next((i for i, other in enumerate(around) if other is value), None)
    if depth is not None:
        sha.update(f"{depth} again;".encode())
        return
    reduce = copyreg.dispatch_table.get(type(value))
    parts = reduce(value) if reduce else value.__reduce_ex__(4)
    sha.update(f"{_name(value)} ".encode())
    for part in (parts,) if isinstance(parts, str) else parts:
        _feed(sha, list(part) if isinstance(part, Iterator) else part, (*around, value))


# -- identities --------------------------------------------------------------------------------------------------------


def as_json(identity: dict) -> dict:
    """``identity`` as it comes back from a JSON file; TypeError if it cannot."""
    if not isinstance(identity, dict):
        raise TypeError(f"identity is a {type(identity).__name__}; accepted: a dict")
    if not _is_shallow(identity):
        raise TypeError(f"identity: it is nested deeper than {_DEEPEST}; accepted: what JSON can hold, less deep")
    try:
        return json.loads(json.dumps(identity, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"identity: {error}; accepted: what JSON can hold") from error


def _is_shallow(value: Any, levels: int = _DEEPEST) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return levels > 0 and all(_is_shallow(part, levels - 1) for part in parts)


def short_name(identity: dict) -> str:
    """16 hexadecimal digits, the same for equal identities whatever the order of their keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def differences(found: dict, wanted: dict) -> list[str]:
    """A clause for each key that differs.

    >>> differences({"teacher": {"weights": "ab"}, "samples": 5}, {"teacher": {"weights": "cd"}, "samples": 5})
    ["teacher.weights is 'ab' there and 'cd' here"]
    """
    there, here = _flat(found), _flat(wanted)
    keys = [key for key in {**here, **there} if there.get(key) != here.get(key)]
    return [f"{key} is {_cut(there.get(key), here.get(key))} there and {_cut(here.get(key), there.get(key))} here"
            for key in keys]  # fmt: skip


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _cut(value: Any, other: Any, width: int = 40) -> str:
    """``value``, if it is long from a little before the place where it begins to differ from ``other``.

    >>> _cut("Compose(ToTensor(), Normalize(0.5))", "Compose(ToTensor(), Normalize(0.6))", width=12)
    "...alize(0.5))'"
    """
    text, common = repr(value), len(os.path.commonprefix([repr(value), repr(other)]))
    start = max(0, min(common - 6, len(text) - width))
    return ("..." if start else "") + text[start : start + width] + ("..." if start + width < len(text) else "")
