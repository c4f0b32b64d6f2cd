"""The logit cache: what it returns, what it refuses and why, and that a file is read where it lies."""

import contextlib
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from akd_ext.logit_cache import LogitCache, LogitCacheError

LOGITS = torch.arange(35, dtype=torch.float32).view(7, 5).div(3)
IDENTITY = {"teacher": {"class": "Net", "weights": "ab" * 32}, "dataset": {"samples": 7, "transform": "Compose(a, b)"}}


def fill(logits=LOGITS, order=None, batch=3, wrap=lambda rows: rows):
    """Batches of logits in the given order, and how often they were asked for."""
    order = torch.arange(len(logits)) if order is None else order
    calls = []

    def batches():
        calls.append(1)
        for index in order.split(batch):
            yield index, wrap(logits[index])

    batches.calls = calls
    return batches


def build(place, logits=LOGITS, identity=IDENTITY, dtype=None, num_samples=None, **kwargs):
    num_samples = len(logits) if num_samples is None else num_samples
    return LogitCache.build_or_open(place, identity, fill(logits, **kwargs), num_samples=num_samples, dtype=dtype)


def the_file(folder):
    (file,) = Path(folder).iterdir()
    return file


@pytest.fixture(params=["memory", "folder", "file"])
def place(request, tmp_path):
    return {"memory": None, "folder": tmp_path / "new" / "folder", "file": str(tmp_path / "x.safetensors")}[
        request.param
    ]


def test_rows_come_back_bit_for_bit(place):
    cache = build(place)
    index = torch.tensor([6, 0, 0, 3])
    assert torch.equal(cache[index], LOGITS[index])
    assert torch.equal(cache.logits, LOGITS)
    assert (len(cache), cache.output, cache.identity) == (7, "tensor", IDENTITY)
    assert (cache.path is None) == (place is None)


def test_rows_may_come_in_any_order(place):
    assert torch.equal(build(place, order=torch.randperm(7)).logits, LOGITS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_teachers_dtype_is_kept(tmp_path, dtype):
    cache = build(tmp_path, LOGITS.to(dtype))
    assert cache.logits.dtype == dtype
    assert torch.equal(cache.logits, LOGITS.to(dtype))


def test_another_dtype_is_rounded_once(place):
    assert torch.equal(build(place, dtype=torch.float16).logits, LOGITS.half())


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 2, 3)])
def test_the_shape_of_a_row_is_kept(tmp_path, shape):
    logits = torch.randn(shape)
    assert torch.equal(build(tmp_path, logits)[torch.tensor([5, 1])], logits[[5, 1]])


def test_an_object_with_logits_is_told_from_a_tensor(place):
    assert build(place, wrap=lambda rows: SimpleNamespace(logits=rows)).output == "logits"


def test_a_file_is_filled_once(tmp_path):
    asked = fill()
    for _ in range(3):
        cache = LogitCache.build_or_open(tmp_path, IDENTITY, asked, num_samples=7)
    assert len(asked.calls) == 1
    assert torch.equal(cache.logits, LOGITS)


def test_caches_of_different_identity_share_a_folder(tmp_path):
    other = {**IDENTITY, "teacher": "another"}
    build(tmp_path)
    build(tmp_path, -LOGITS, other)
    assert torch.equal(build(tmp_path).logits, LOGITS)
    assert torch.equal(build(tmp_path, LOGITS, other).logits, -LOGITS)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_new_cache_beside_an_old_one_is_explained_in_the_log(tmp_path, caplog):
    build(tmp_path)
    with caplog.at_level(logging.INFO, "akd_ext.logit_cache"):
        build(tmp_path, identity={**IDENTITY, "dataset": {**IDENTITY["dataset"], "transform": "Compose(a, c)"}})
    assert "dataset.transform is 'Compose(a, b)' there and 'Compose(a, c)' here" in caplog.text


def test_it_is_a_safetensors_file(tmp_path):
    load_file = pytest.importorskip("safetensors.torch", reason="needs safetensors: pip install '.[test]'").load_file
    build(tmp_path)
    assert torch.equal(load_file(the_file(tmp_path))["logits"], LOGITS)


def test_the_logits_stay_in_the_file(tmp_path):
    """Neither opening nor reading rows may copy a cache that is larger than memory."""
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("this system does not list the mappings of a process in /proc/self/maps")
    cache = build(tmp_path, torch.randn(4096, 8))
    ranges = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith(cache.path)]
    assert len(ranges) == 1
    first, last = (int(end, 16) for end in ranges[0])
    assert first <= cache.logits.data_ptr() < cache.logits.data_ptr() + cache.logits.nbytes <= last
    rows = cache[torch.tensor([1, 2])]
    assert rows.untyped_storage().nbytes() == 2 * 8 * 4


# -- files that cannot be used ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"teacher": {**IDENTITY["teacher"], "weights": "cd" * 32}},
            r"teacher.weights is 'abab.* there and 'cdcd.* here",
        ),
        ({"teacher": "a text"}, "teacher is None there and 'a text' here; teacher.class is 'Net' there and None here"),
        ({"dataset": {"samples": 8, "transform": "Compose(a, b)"}}, "dataset.samples is 7 there and 8 here"),
        ({"extra": {"task": "cola"}}, "extra.task is None there and 'cola' here"),
    ],
)
def test_another_identity_is_refused_with_the_key_that_differs(tmp_path, change, told):
    path = tmp_path / "x.safetensors"
    build(path)
    with pytest.raises(LogitCacheError, match=f"x.safetensors cannot be used.*something else: {told}"):
        build(path, identity={**IDENTITY, **change})


def test_long_values_are_shown_where_they_differ(tmp_path):
    path = tmp_path / "x.safetensors"
    build(path, identity={"transform": "x" * 200 + "0.5" + "y" * 200})
    with pytest.raises(
        LogitCacheError, match=r"transform is \.\.\.xxx+0\.5y+\.\.\. there and \.\.\.xxx+0\.6y+\.\.\. here"
    ):
        LogitCache.open(path, {"transform": "x" * 200 + "0.6" + "y" * 200})


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path, kept):
    build(tmp_path)
    data = the_file(tmp_path).read_bytes()
    the_file(tmp_path).write_bytes(data[:kept])
    with pytest.raises(
        LogitCacheError, match="cannot be used: its header cannot be read|cannot be used: it is cut off"
    ):
        build(tmp_path)


def test_a_file_that_has_grown_is_refused(tmp_path):
    build(tmp_path)
    with open(the_file(tmp_path), "ab") as file:
        file.write(b"x")
    with pytest.raises(LogitCacheError, match="cut off or has grown"):
        build(tmp_path)


@pytest.mark.parametrize("where", ["data", "shape"])
def test_a_file_that_was_changed_is_refused(tmp_path, where):
    build(tmp_path)
    data = bytearray(the_file(tmp_path).read_bytes())
    if where == "data":
        data[-3] ^= 1
    else:  # as many bytes, but other rows
        assert b'"shape": [7, 5]' in data
        data = data.replace(b'"shape": [7, 5]', b'"shape": [5, 7]')
    the_file(tmp_path).write_bytes(data)
    with pytest.raises(LogitCacheError, match="content has changed"):
        LogitCache.open(the_file(tmp_path), IDENTITY)
    assert LogitCache.open(the_file(tmp_path), IDENTITY, verify=False).logits.numel() == 35


def test_another_format_is_refused(tmp_path):
    build(tmp_path)
    data = the_file(tmp_path).read_bytes()
    the_file(tmp_path).write_bytes(data.replace(b"version 1", b"version 2"))
    with pytest.raises(LogitCacheError, match="its format is 'akd_ext logit cache, version 2'"):
        build(tmp_path)


@pytest.mark.parametrize("header", [b"not JSON", json.dumps({"weight": {}}).encode()])
def test_another_safetensors_file_is_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(LogitCacheError, match="header cannot be read"):
        LogitCache.open(path)


def test_a_file_with_another_number_of_samples_or_dtype_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    build(path)
    with pytest.raises(LogitCacheError, match="holds 7 x 5 float32 .*; wanted: 8 samples"):
        build(path, num_samples=8)
    with pytest.raises(LogitCacheError, match="holds 7 x 5 float32 .*; wanted: 7 samples in torch.float16"):
        build(path, dtype=torch.float16)


def with_header(path, change):
    """A good cache's file, its header changed."""
    build(path)
    data = path.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    header = change(json.loads(data[8:length]))
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[length:])


def replaced(header, *keys, by):
    inner = header
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = by
    return header


@pytest.mark.parametrize(
    "change",
    [
        lambda header: "[" * 100_000 + "]" * 100_000,
        lambda header: '{"a":' * 100_000 + "1" + "}" * 100_000,
        lambda header: [header],
        lambda header: replaced(header, "__metadata__", by="a text"),
        lambda header: replaced(header, "__metadata__", "output", by=["tensor"]),
        lambda header: replaced(header, "__metadata__", "identity", by="[1, 2]"),
        lambda header: replaced(header, "__metadata__", "identity", by="[" * 100_000 + "]" * 100_000),
        lambda header: replaced(header, "__metadata__", "identity", by='{"a":' * 300 + "1" + "}" * 300),
        lambda header: replaced(header, "__metadata__", "identity", by=3),
        lambda header: replaced(header, "logits", by=[]),
        lambda header: replaced(header, "logits", "dtype", by=["F32"]),
        lambda header: replaced(header, "logits", "shape", by=35),
        lambda header: replaced(header, "logits", "shape", by=["7", "5"]),
        lambda header: replaced(header, "logits", "shape", by=[7.0, 5]),
        lambda header: replaced(header, "logits", "shape", by=[-7, -5]),
        lambda header: replaced(header, "logits", "shape", by=[[7], 5]),
        lambda header: replaced(header, "logits", "shape", by={"7": 5}),
    ],
)
def test_a_header_of_another_form_is_refused(tmp_path, change):
    path = tmp_path / "x.safetensors"
    with_header(path, change)
    with pytest.raises(LogitCacheError, match="header cannot be read"):
        LogitCache.open(path, IDENTITY)
    build(tmp_path)  # which looks at what else is there


def test_writing_to_the_logits_changes_neither_the_file_nor_another_cache(tmp_path):
    path = tmp_path / "x.safetensors"
    cache, other = build(path), build(path)
    cache.logits.zero_()
    assert not cache[torch.tensor([0, 3])].any()
    assert torch.equal(other.logits, LOGITS) and torch.equal(LogitCache.open(path, IDENTITY).logits, LOGITS)


def test_a_file_larger_than_memory_can_be_opened(tmp_path):
    """It is sparse: four times the memory in rows of zeros that nobody wrote."""
    if not hasattr(os, "sysconf"):
        pytest.skip("this system does not say how much memory it has")
    samples = 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 20
    path = tmp_path / "x.safetensors"
    with_header(path, lambda header: replaced(header, "logits", "shape", by=[samples, 5]))
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    try:
        os.truncate(path, header + samples * 20)
    except OSError as error:
        pytest.skip(f"this file system holds no such file: {error}")
    cache = LogitCache.open(path, IDENTITY, verify=False)
    assert not cache[torch.tensor([samples - 1])].any()


@pytest.mark.parametrize("name", ["x.safetensors.akd_part", ".x.safetensors.lock"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    """Whoever may write to the folder could leave one there, to a file of somebody else's."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).symlink_to(tmp_path / "theirs")
    with contextlib.suppress(OSError):  # which says what is in the way
        build(tmp_path / "cache" / "x.safetensors")
    assert (tmp_path / "theirs").read_text() == "theirs"


# -- what fill and the caller may get wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "gave 0 samples"),
        ([([0, 1, 2, 3], LOGITS[:4])], "gave 4 samples"),
        ([([0, 1], LOGITS[:2]), ([1], LOGITS[:1])], "came twice"),
        ([([0, 0], LOGITS[:2])], "came twice"),
        ([([7], LOGITS[:1])], "outside of 0..6"),
        ([([-1], LOGITS[:1])], "outside of 0..6"),
        ([([0, 1], LOGITS[:3])], r"2 indices came with logits \[3, 5\]"),
        ([([0], torch.tensor(1.0))], r"1 indices came with logits \[\]"),
        ([([0], LOGITS[:1].long())], "torch.int64; accepted: a row for each, of torch.float64"),
        ([([0, 1], LOGITS[:2]), ([2], LOGITS[:1, :4])], "accepted: all alike"),
        ([([0, 1], LOGITS[:2]), ([2], LOGITS[:1].half())], "accepted: all alike"),
    ],
)
def test_a_wrong_fill_is_an_error_and_leaves_nothing(tmp_path, batches, message):
    with pytest.raises(ValueError, match=message):
        LogitCache.build_or_open(tmp_path, IDENTITY, lambda: batches, num_samples=7)
    assert list(tmp_path.iterdir()) == []


def test_an_output_without_logits_is_an_error():
    with pytest.raises(TypeError, match="output is a tuple; accepted: a tensor, or an object with .logits"):
        build(None, wrap=lambda rows: (rows, rows))


def deep(levels):
    return {"a": deep(levels - 1)} if levels else {}


@pytest.mark.parametrize("identity", ["a text", {"weights": torch.zeros(2)}, {"scale": float("nan")}, deep(40)])
def test_an_identity_that_json_cannot_hold_is_an_error(identity):
    with pytest.raises(TypeError, match="identity.*accepted"):
        build(None, identity=identity)


def test_a_fill_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield torch.arange(3), LOGITS[:3]
        raise RuntimeError("the teacher is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        LogitCache.build_or_open(tmp_path, IDENTITY, broken, num_samples=7)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(build(tmp_path).logits, LOGITS)


@pytest.mark.parametrize("index", [torch.tensor([7]), torch.tensor([0, -1])])
def test_an_index_outside_is_an_error(place, index):
    with pytest.raises(IndexError, match="accepted: 0 to 6"):
        build(place)[index]


@pytest.mark.parametrize("index", [3, [3], torch.tensor(3), torch.tensor([3.0]), torch.tensor([[3]])])
def test_an_index_that_is_no_index_tensor_is_an_error(index):
    with pytest.raises(TypeError, match="accepted: an int64 or int32 tensor"):
        build(None)[index]
