"""The cache of hidden states: what it returns for ragged samples, what it refuses and why, and that nothing is read twice."""

import json
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch

from akd_ext.logit_cache import HiddenStateCache, LogitCache, LogitCacheError, TeacherHead, describe_head

WIDTH, LENGTHS = 3, [4, 0, 2, 5, 1]
SAMPLES = [
    torch.arange(n * WIDTH, dtype=torch.float32).view(n, WIDTH).div(7).add(10 * i) for i, n in enumerate(LENGTHS)
]
HEAD = TeacherHead(torch.arange(18.0).view(6, WIDTH), torch.arange(6.0), 0.5)
IDENTITY = {"teacher": {"class": "Llama", "weights": "ab" * 32}, "texts": {"ids": "cd" * 32}}


def batches(order=(0, 1, 2, 3, 4), size=2, padding="right", states=torch.float32):
    """Batches of samples padded with NaN, and their attention mask; for ``padding=None`` their lengths."""
    for part in torch.tensor(order).split(size):
        chosen = [SAMPLES[i] for i in part]
        longest = max(1, *map(len, chosen))
        hidden = torch.full((len(part), longest, WIDTH), torch.nan, dtype=states)
        mask = torch.zeros(len(part), longest, dtype=torch.int64)
        for row, kept, sample in zip(hidden, mask, chosen, strict=True):
            where = slice(longest - len(sample), None) if padding == "left" else slice(len(sample))
            row[where], kept[where] = sample, 1
        yield part, hidden, torch.tensor([len(sample) for sample in chosen]) if padding is None else mask


def build(place, identity=IDENTITY, num_samples=5, dtype=None, head=None, **given):
    return HiddenStateCache.build_or_open(
        place, identity, lambda: batches(**given), num_samples=num_samples, dtype=dtype, head=head
    )


def the_file(folder):
    (file,) = Path(folder).iterdir()
    return file


def equals(found, wanted):
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


@pytest.fixture(params=["memory", "folder", "file"])
def place(request, tmp_path):
    return {"memory": None, "folder": tmp_path / "new" / "folder", "file": str(tmp_path / "x.safetensors")}[
        request.param
    ]


@pytest.mark.parametrize("padding", ["right", "left", None])
def test_every_sample_comes_back_bit_for_bit(place, padding):
    cache = build(place, padding=padding)
    assert equals([cache[i] for i in range(5)], SAMPLES)
    assert equals(cache[torch.tensor([3, 1, 3])], [SAMPLES[i] for i in (3, 1, 3)])
    assert (len(cache), cache.lengths.tolist(), cache.identity, cache.head) == (5, LENGTHS, IDENTITY, None)
    assert (cache.path is None) == (place is None)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_samples_may_come_in_any_order(place, size):
    assert equals(list(build(place, order=(3, 0, 4, 1, 2), size=size)), SAMPLES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_teachers_dtype_is_kept(place, dtype):
    cache = build(place, states=dtype)
    assert equals(list(cache), [states.to(dtype) for states in SAMPLES])


def test_another_dtype_is_rounded_once(place):
    assert equals(list(build(place, dtype=torch.bfloat16)), [states.bfloat16() for states in SAMPLES])


def test_a_batch_is_padded_with_zeros(place):
    cache, index = build(place), torch.tensor([2, 1, 0])
    batch = cache.padded(index)
    assert batch.shape == (3, 4, WIDTH)
    assert torch.equal(batch[0], torch.cat([SAMPLES[2], torch.zeros(2, WIDTH)]))
    assert not batch[1].any()
    assert torch.equal(batch[2], SAMPLES[0])
    assert torch.equal(cache.padded(index, 6)[:, :4], batch) and not cache.padded(index, 6)[:, 4:].any()
    assert torch.equal(cache.padded(index, 3), batch[:, :3])
    assert cache.padded(index, device="meta").device.type == "meta"
    assert cache.padded(index[:0]).shape == (0, 0, WIDTH)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64])
def test_a_mask_puts_states_where_the_batch_has_the_tokens(place, kind):
    mask = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]]).to(kind)
    batch = build(place).padded(torch.tensor([2, 0]), mask=mask)
    assert torch.equal(batch[0, [1, 3]], SAMPLES[2]) and not batch[0, [0, 2]].any()
    assert torch.equal(batch[1], SAMPLES[0])


def test_a_file_is_filled_once(tmp_path):
    asked = []

    def fill():
        asked.append(1)
        return batches()

    for _ in range(3):
        cache = HiddenStateCache.build_or_open(tmp_path, IDENTITY, fill, num_samples=5)
    assert len(asked) == 1
    assert equals(list(cache), SAMPLES)


def test_states_are_written_as_they_come(tmp_path):
    """Memory must never hold the dataset: what a batch gave is in the file before the next one is asked for."""
    sizes = []

    def fill():
        for batch in batches(size=1):
            yield batch
            (growing,) = tmp_path.glob("*.tmp")
            sizes.append(growing.stat().st_size)

    HiddenStateCache.build_or_open(tmp_path, IDENTITY, fill, num_samples=5)
    assert [b - a for a, b in zip(sizes, sizes[1:], strict=False)] == [4 * WIDTH * n for n in LENGTHS[1:]]


def test_it_is_a_safetensors_file(tmp_path):
    load_file = pytest.importorskip("safetensors.torch", reason="needs safetensors: pip install '.[test]'").load_file
    build(tmp_path, order=(4, 3, 2, 1, 0), head=HEAD)
    found = load_file(the_file(tmp_path))
    assert sorted(found) == ["head_bias", "head_weight", "hidden", "spans"]
    assert equals([found["hidden"][begin:end] for begin, end in found["spans"]], SAMPLES)
    assert torch.equal(found["head_weight"], HEAD.weight) and torch.equal(found["head_bias"], HEAD.bias)


def test_the_states_stay_in_the_file(tmp_path):
    """Neither opening nor reading a sample copies anything."""
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("this system does not list the mappings of a process in /proc/self/maps")
    cache = build(tmp_path, head=HEAD)
    ranges = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith(cache.path)]
    assert len(ranges) == 1
    first, last = (int(end, 16) for end in ranges[0])
    for tensor in (cache.hidden, cache[3], cache[torch.tensor([0])][0], cache.head.weight):
        assert first <= tensor.data_ptr() < last


def test_writing_to_the_states_changes_no_file(tmp_path):
    build(tmp_path).hidden.zero_()
    assert equals(list(build(tmp_path)), SAMPLES)


def test_a_worker_gets_the_path(tmp_path):
    cache = build(tmp_path / "x.safetensors", head=HEAD)
    sent = pickle.dumps(cache)
    assert cache.hidden.numpy().tobytes() not in sent
    there = pickle.loads(sent)
    assert equals(list(there), SAMPLES) and there.path == cache.path
    here = pickle.loads(pickle.dumps(build(None, head=HEAD)))
    assert equals(list(here), SAMPLES) and torch.equal(here.head.weight, HEAD.weight)


# -- the head ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head", [HEAD, HEAD._replace(bias=None), tuple(HEAD[:1]), HEAD._replace(weight=HEAD[0].half())]
)
def test_the_head_is_stored_and_told(place, head):
    for _ in range(2):
        cache = build(place, head=head)
        weight, bias, scale = TeacherHead(*head)
        assert torch.equal(cache.head.weight, weight) and cache.head.weight.dtype == weight.dtype
        assert cache.head.bias is bias is None or torch.equal(cache.head.bias, bias)
        assert cache.head.logit_scale == scale
        assert cache.identity == {**IDENTITY, "head": describe_head(head)}


def test_another_head_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    build(path, head=HEAD)
    other = HEAD._replace(bias=HEAD.bias.add(1))
    with pytest.raises(LogitCacheError, match="the states of something else: head.values is '.* there and '.* here"):
        build(path, head=other)
    with pytest.raises(ValueError, match="identity\\['head'\\] is not the description of the argument head"):
        build(path, {**IDENTITY, "head": describe_head(other)}, head=HEAD)


def test_a_head_that_is_only_told_is_the_callers(tmp_path):
    identity = {**IDENTITY, "head": describe_head(HEAD)}
    assert build(tmp_path, identity).head is None
    cache = build(tmp_path, head=HEAD)
    assert torch.equal(cache.head.weight, HEAD.weight)
    assert torch.equal(pickle.loads(pickle.dumps(cache)).head.weight, HEAD.weight)
    assert build(tmp_path, identity).head is None


def test_a_copy_on_a_device_has_states_and_head(device):
    cache = build(None, head=HEAD).to(device)
    assert {cache.hidden.device.type, cache.head.weight.device.type, cache.head.bias.device.type} == {device}
    batch = cache.padded(torch.tensor([2, 0], device=device))
    assert batch.device.type == device and torch.equal(batch[1].cpu(), SAMPLES[0])
    mask = torch.tensor([[0, 1, 1, 0]], device=device)
    assert torch.equal(cache.padded(torch.tensor([2]), mask=mask)[0, 1:3].cpu(), SAMPLES[2])
    assert torch.equal(build(None).padded(torch.tensor([0]), device=device)[0].cpu(), SAMPLES[0])


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (HEAD.weight, TypeError, "head is a Tensor; accepted: .weight, bias or None, logit_scale"),
        ((HEAD.weight.long(),), TypeError, "its weight is a Tensor of torch.int64"),
        ((None,), TypeError, "its weight is a NoneType"),
        ((HEAD.weight[0],), ValueError, r"its weight has shape \[3\]"),
        ((HEAD.weight, HEAD.bias[:2]), ValueError, r"its bias has shape \[2\]"),
        ((torch.ones(6, 4),), ValueError, "its width is 4; accepted: 3"),
    ],
)
def test_a_wrong_head_is_an_error_and_leaves_nothing(tmp_path, head, error, message):
    for place in (None, tmp_path):
        with pytest.raises(error, match=message):
            build(place, head=head)
    assert list(tmp_path.iterdir()) == []


# -- files that cannot be used -----------------------------------------------------------------------------------------


def test_another_teacher_is_refused_with_the_key_that_differs(tmp_path):
    path = tmp_path / "x.safetensors"
    build(path)
    with pytest.raises(LogitCacheError, match="x.safetensors cannot be used.*the states of something else: teacher.we"):
        build(path, {**IDENTITY, "teacher": {"class": "Llama", "weights": "ef" * 32}})


def test_a_new_cache_beside_an_old_one_is_explained_in_the_log(tmp_path, caplog):
    build(tmp_path)
    with caplog.at_level(logging.INFO, "akd_ext.logit_cache"):
        build(tmp_path, {**IDENTITY, "texts": {"ids": "ef" * 32}})
    assert "no teacher states in" in caplog.text and "texts.ids is 'cdcd" in caplog.text


def test_logits_and_states_share_a_folder_and_are_told_apart(tmp_path):
    build(tmp_path)
    LogitCache.build_or_open(tmp_path, {"x": 1}, lambda: [(torch.arange(2), torch.ones(2, 3))], num_samples=2)
    assert equals(list(build(tmp_path)), SAMPLES)
    with pytest.raises(LogitCacheError, match="its format is .*; accepted: 'akd_ext logit cache, version 1'"):
        LogitCache.open(build(tmp_path).path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path, kept):
    build(tmp_path)
    data = the_file(tmp_path).read_bytes()
    the_file(tmp_path).write_bytes(data[:kept])
    with pytest.raises(LogitCacheError, match="its header cannot be read|it is cut off"):
        build(tmp_path)


def spans_at(data):
    return 8 + int.from_bytes(data[:8], "little")


def test_a_file_that_was_changed_is_refused(tmp_path):
    build(tmp_path)
    data = bytearray(the_file(tmp_path).read_bytes())
    for at in (spans_at(data) + 8, -3):  # where sample 0 ends, and a state
        damaged = data.copy()
        damaged[at] ^= 1
        the_file(tmp_path).write_bytes(damaged)
        with pytest.raises(LogitCacheError, match="content has changed"):
            build(tmp_path)
        assert len(HiddenStateCache.open(the_file(tmp_path), verify=False)) == 5


def test_spans_that_lead_out_of_the_file_are_found_without_the_checksum(tmp_path):
    build(tmp_path)
    data = bytearray(the_file(tmp_path).read_bytes())
    data[spans_at(data) + 8] = 200
    the_file(tmp_path).write_bytes(data)
    with pytest.raises(LogitCacheError, match="tokens outside of the file"):
        HiddenStateCache.open(the_file(tmp_path), verify=False)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("spans", "dtype", "F64"),
        ("spans", "shape", [10]),
        ("spans", "shape", [10, 1]),
        ("hidden", "dtype", "I64"),
        ("hidden", "shape", [36]),
        ("hidden", "shape", [9, 4]),
        ("head_weight", "shape", [18]),
        ("head_bias", "shape", [2, 3]),
        ("__metadata__", "logit_scale", "much"),
        ("__metadata__", "identity", "[1]"),
        ("more", None, {"dtype": "F32", "shape": [1]}),
        ("hidden", None, None),
    ],
)
def test_a_header_of_another_form_is_refused(tmp_path, name, key, value):
    build(tmp_path, head=HEAD)
    data = the_file(tmp_path).read_bytes()
    header = json.loads(data[8 : spans_at(data)])
    if key is None:
        header.pop(name, None)
        header |= {} if value is None else {name: value}
    else:
        header[name][key] = value
    text = json.dumps(header).encode()
    the_file(tmp_path).write_bytes(len(text).to_bytes(8, "little") + text + data[spans_at(data) :])
    with pytest.raises(LogitCacheError, match="header cannot be read"):
        HiddenStateCache.open(the_file(tmp_path))


def test_another_number_of_samples_or_dtype_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    build(path)
    with pytest.raises(LogitCacheError, match="holds 5 samples, 12 tokens x 3 float32 .*; wanted: 6 samples in any"):
        build(path, num_samples=6)
    with pytest.raises(LogitCacheError, match="wanted: 5 samples in torch.bfloat16"):
        build(path, dtype=torch.bfloat16)


# -- what fill and the caller may get wrong ----------------------------------------------------------------------------

STATES, ONE = torch.ones(2, 3, WIDTH), torch.ones(1, 3, WIDTH)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "gave 0 samples"),
        ([([0], ONE, [2])], "gave 1 samples; accepted: each of the 2 once"),
        ([([0], ONE)], "gave 2 values; accepted: index, states, and lengths or an attention mask"),
        ([([0], ONE, [2]), ([0], ONE, [2])], "came twice"),
        ([([0, 2], STATES, [1, 1])], "outside of 0..1"),
        ([([0, 1], ONE, [1, 1])], r"indices \[2\] came with states \[1, 3, 3\] of torch.float32"),
        ([([0, 1], STATES[0], [1, 1])], r"came with states \[3, 3\]"),
        ([([0, 1], STATES.long(), [1, 1])], "of torch.int64; accepted"),
        ([([0, 1], "states", [1, 1])], "came with states str"),
        ([([0, 1], STATES, [1, 4])], r"lengths are \[1, 4\]; accepted: integers from 0 to 3"),
        ([([0, 1], STATES, [-1, 2])], r"lengths are \[-1, 2\]"),
        ([([0, 1], STATES, [1.0, 2.0])], r"lengths are \[1.0, 2.0\]"),
        ([([0, 1], STATES, torch.ones(2, 2))], r"mask is torch.float32 \[2, 2\]; accepted: \[2, 3\] of True"),
        ([([0, 1], STATES, torch.full((2, 3), 2))], "accepted: .* of True and False, or 1 and 0"),
        ([([0, 1], STATES, [0, 0])], "no sample has a token"),
        ([([0], ONE, [2]), ([1], ONE[..., :2], [2])], "accepted: all alike"),
        ([([0], ONE, [2]), ([1], ONE.half(), [2])], "accepted: all alike"),
    ],
)
def test_a_wrong_fill_is_an_error_and_leaves_nothing(tmp_path, given, message):
    for place in (None, tmp_path):
        with pytest.raises(ValueError, match=message):
            HiddenStateCache.build_or_open(place, IDENTITY, lambda: given, num_samples=2)
    assert list(tmp_path.iterdir()) == []


def test_a_fill_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield from list(batches())[:1]
        raise RuntimeError("the teacher is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        HiddenStateCache.build_or_open(tmp_path, IDENTITY, broken, num_samples=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("index", [5, -1, torch.tensor([5]), torch.tensor([0, -1])])
def test_an_index_outside_is_an_error(place, index):
    with pytest.raises(IndexError, match="accepted: 0 to 4"):
        build(place)[index]


def test_an_index_of_numpy(place):
    numpy, cache = pytest.importorskip("numpy"), build(place)
    for dtype in (numpy.int64, numpy.int32, numpy.uint8):
        assert torch.equal(cache[dtype(3)], cache[3])


@pytest.mark.parametrize("index", [[3], 3.0, torch.tensor(3), torch.tensor([3.0]), torch.tensor([[3]])])
def test_an_index_that_is_no_index_is_an_error(index):
    with pytest.raises(TypeError, match="accepted: an int64 or int32 tensor"):
        build(None)[index]


def test_one_sample_is_no_batch():
    with pytest.raises(TypeError, match="index is int; accepted: an int64 or int32 tensor"):
        build(None).padded(3)


@pytest.mark.parametrize(
    ("mask", "length", "message"),
    [
        (torch.ones(1, 4, dtype=torch.bool), None, "sample 2 has 4 tokens in the batch and 2 in the cache"),
        (torch.ones(2, 4, dtype=torch.bool), None, r"mask is torch.bool \[2, 4\]; accepted: \[1, L\]"),
        (torch.ones(1, 4), None, "mask is torch.float32"),
        (torch.tensor([[1, 1, 2]]), None, "of True and False, or 1 and 0"),
        (torch.tensor([[True, True]]), 2, "length and mask are both given"),
    ],
)
def test_a_wrong_mask_is_an_error(mask, length, message):
    with pytest.raises(ValueError, match=message):
        build(None).padded(torch.tensor([2]), length, mask=mask)
