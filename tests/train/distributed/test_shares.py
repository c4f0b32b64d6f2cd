"""The samples of several processes: nothing twice, nothing lost, equally many steps, and one order for all."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")

from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from akd_ext.torchdistill.text import LengthBucketSampler
from akd_ext.train.distributed import sampler as shares


@pytest.fixture
def make(monkeypatch):
    """The shares of ``world`` processes, made in this one."""

    def shares_of(world, data, sampler=RandomSampler, kwargs=None, batch_size=3, drop_last=False, seed=0):
        made = []
        for rank in range(world):
            monkeypatch.setattr(shares, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(shares, "world_size", lambda: world)
            made.append(shares.UnpaddedDistributedSampler(data, sampler=sampler, kwargs=kwargs or {}, batch_size=batch_size,
                                     drop_last=drop_last, seed=seed))  # fmt: skip
        return made

    return shares_of


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_sample_counts_once_and_all_take_equally_many_steps(make, world, drop_last):
    for size in range(25):
        loaders = [DataLoader(range(size), batch_size=3, sampler=share, drop_last=drop_last)
                   for share in make(world, range(size), SequentialSampler, drop_last=drop_last)]  # fmt: skip
        batches = [list(loader) for loader in loaders]
        assert {len(found) for found in batches} == {len(loaders[0])}
        for step, step_batches in enumerate(zip(*batches, strict=True)):
            counted = []
            for loader, batch in zip(loaders, step_batches, strict=True):
                mine, whole = shares.batch_sizes(loader, step, len(batch))
                counted += batch[:mine].tolist()
                assert len(batch) == max(mine, 1)
            # One process with all the samples would have this batch.
            assert sorted(counted) == list(range(size))[step * 3 * world : (step + 1) * 3 * world]
            assert whole == len(counted)


def test_the_order_is_drawn_anew_in_every_epoch_the_same_for_all_and_leaves_the_random_numbers_alone(make):
    def orders(seed):
        made = make(2, range(40), seed=seed)
        found = []
        for epoch in range(3):
            for share in made:
                shares.set_epoch(DataLoader(range(40), batch_size=3, sampler=share), epoch)
            before = torch.get_rng_state()
            found.append([list(share) for share in made])
            assert torch.equal(before, torch.get_rng_state())
            assert sorted(itertools.chain(*found[-1])) == list(range(40))
        return found

    assert orders(0) == orders(0)
    seen = [share[0] for share in orders(0) + orders(1)]
    assert len(set(map(tuple, seen))) == 6


def test_buckets_are_of_the_batch_of_all_processes(make):
    lengths = [1 + i // 8 for i in range(64)]
    data = [{"input_ids": [0] * n} for n in lengths]
    made = make(2, data, LengthBucketSampler, {"batch_size": 4}, batch_size=4)
    for share in made:
        order = list(share)
        for start in range(0, 32, 4):
            assert len({lengths[i] for i in order[start : start + 4]}) == 1  # 8 of each length: 4 for each process
