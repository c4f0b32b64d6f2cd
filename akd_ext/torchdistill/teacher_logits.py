"""The one pass of a frozen teacher over a stage's training set, for ``cached_forward``."""

import functools
import sys
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import distributed
from torch.utils.data import DataLoader, Subset
from torchdistill.common.module_util import check_if_fsdp_wrapped, check_if_wrapped

from akd_ext.logit_cache import LogitCache, describe_dataset, describe_teacher, logits_of
from akd_ext.logit_cache.fingerprint import hash_of_samples

from .datasets import IndexedDatasetWrapper
from .forward_procs import CachedOutput, cached_forward, take_index

# Of the batch size in training. A CPU gains nothing from more; elsewhere there is room, for nothing waits for a gradient.
_LARGER_BATCHES = 4
# A cache up to this size is kept on the accelerator: no copy and no waiting per step.
_RESIDENT_BYTES = 256 * 2**20
# What was not to be written to a file: {teacher: {identity: cache}}. It lives as long as the teacher.
_in_memory = WeakKeyDictionary()


def prepare_cached_forward(box, teacher_is_trained):
    """Give the box's ``cached_forward`` its cache, if this stage uses it and has none yet.

    The cache is bound to the box's own forward process, which torchdistill sets anew in every stage: a second stage, box
    or teacher cannot see it. torch's random numbers go on as if nothing had happened: training is the same whether the
    cache is computed or found.

    Args:
        box: a torchdistill distillation box.
        teacher_is_trained: whether the optimizer changes the teacher.

    Raises:
        ValueError: the stage is not one whose teacher can be looked up; the message says what to change.
        LogitCacheError: the file cannot be used; see ``LogitCache.open``.
    """
    if box.teacher_forward_proc is not cached_forward:
        return
    loader, device = box.train_data_loader, torch.device(box.device)
    dataset = loader.dataset
    _check(box, dataset, teacher_is_trained)
    teacher = box.teacher_model.module if check_if_wrapped(box.teacher_model) else box.teacher_model
    with torch.random.fork_rng(devices=[]):
        autocast = torch.is_autocast_enabled(device.type)
        identity = {
            "teacher": describe_teacher(teacher),
            "dataset": describe_dataset(dataset, loader.collate_fn),
            "autocast": str(torch.get_autocast_dtype(device.type)) if autocast else None,
            "dtype": dataset.cache_dtype,
            "extra": dataset.cache_extra,
        }
        kept = _in_memory.setdefault(teacher, {}) if dataset.cache_dir is None else {}
        key = repr(identity)
        if key not in kept:
            # A file is made by one process while the others wait for it; in memory, all of them share the work.
            outputs = _outputs if dataset.cache_dir is not None else _outputs_of_all
            kept[key] = LogitCache.build_or_open(
                dataset.cache_dir,
                identity,
                functools.partial(outputs, box.teacher_model, loader, device),
                num_samples=len(dataset),
                dtype=dataset.cache_dtype and getattr(torch, dataset.cache_dtype),
            )
    cache = kept[key]
    if cache.logits.nbytes <= _RESIDENT_BYTES:
        cache = cache.to(device)
    box.teacher_forward_proc = functools.partial(cached_forward, cache=cache)


def check_cached_forward(box, teacher_is_trained):
    """Refuses, before anything is computed, a stage whose teacher cannot be looked up.

    Args:
        box: torchdistill's box.
        teacher_is_trained: whether the box's optimizer updates any of the teacher's parameters.

    Raises:
        ValueError: the teacher is trained or has hooks, or the data set gives no index, or other samples each time.
    """
    dataset = box.train_data_loader.dataset
    _check(box, dataset, teacher_is_trained)
    hash_of_samples(dataset, box.train_data_loader.collate_fn)


def forward_as_cached(model, sample_batch, targets=None, supp_dict=None, **kwargs):
    """What `cached_forward` will give, by running the teacher: for one batch, while there is no cache."""
    take_index(sample_batch, supp_dict)
    logits, kind = logits_of(_run(model, sample_batch))
    return logits if kind == "tensor" else CachedOutput(logits)


def _check(box, dataset, teacher_is_trained):
    if not isinstance(dataset, IndexedDatasetWrapper):
        raise ValueError(
            f"cached_forward: the stage's training set is a {type(dataset).__name__}, which does not say which samples a "
            "batch holds; add `dataset_wrapper: {key: 'IndexedDatasetWrapper'}` to its train_data_loader"
        )
    if teacher_is_trained:
        raise ValueError(
            "cached_forward: the teacher is being trained, so its logits change; set `requires_grad: False` for it, or "
            "let it run with `forward_proc: 'forward_batch_only'`"
        )
    if box.teacher_io_dict:
        raise ValueError(
            f"cached_forward: the teacher's forward_hook lists {', '.join(map(repr, box.teacher_io_dict))}, but it does "
            "not run, so nothing is recorded there; remove forward_hook and read '.' with io 'output', the logits"
        )
    if check_if_fsdp_wrapped(box.teacher_model):
        raise ValueError("cached_forward: the teacher is wrapped by FSDP, which needs every process; do not wrap it")


def _outputs_of_all(teacher, loader, device):
    """``_outputs``, of which each of several processes runs a part and all get everything."""
    if not (distributed.is_available() and distributed.is_initialized()):
        yield from _outputs(teacher, loader, device)
        return
    rank, size = distributed.get_rank(), distributed.get_world_size()
    mine = _outputs(teacher, loader, device, range(rank, len(loader.dataset), size))
    while True:
        index, output = next(mine, (None, None))
        logits, kind = (None, None) if index is None else logits_of(output)
        found = [None] * size
        distributed.all_gather_object(found, None if index is None else (index.cpu(), logits.cpu(), kind))
        if not any(found):
            return
        for index, logits, kind in filter(None, found):
            yield index, logits if kind == "tensor" else CachedOutput(logits)


def _outputs(teacher, loader, device, samples=None):
    """Yield ``(index, output)`` of the frozen teacher for the dataset, in order, collated as in training.

    ``samples``: only these.
    """
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 32
    if device.type != "cpu":
        size *= _LARGER_BATCHES
    in_order = DataLoader(
        loader.dataset if samples is None else Subset(loader.dataset, samples),
        batch_size=size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
    for batch in _with_bar(in_order):
        samples, supp_dict = (batch, None) if isinstance(batch, Mapping) else (batch[0], batch[2])
        index = take_index(samples, supp_dict)
        with torch.inference_mode():  # closed before the yield: it would hold for the caller, too
            output = _run(teacher, _to(samples, device))
        yield index, output


def _run(teacher, samples):
    return teacher(**samples) if isinstance(samples, Mapping) else teacher(samples)


def _to(value, device):
    if isinstance(value, Mapping):
        return {name: _to(part, device) for name, part in value.items()}
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


def _with_bar(batches):
    if not sys.stderr.isatty():
        return batches
    try:
        from tqdm import tqdm
    except ImportError:
        return batches
    return tqdm(batches, desc="teacher logits", leave=False)
