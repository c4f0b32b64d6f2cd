"""A driver that is too old for the CUDA kernel turns it off before it is loaded."""

from __future__ import annotations

import json

import pytest
import torch

from akd_ext.op import driver as _driver
from akd_ext.op import library as _library


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package folder whose CUDA kernel was built with CUDA 13.0, in a torch with CUDA; a load fails the test."""

    def never(path):
        raise AssertionError(f"{path} was loaded")

    (tmp_path / "build.json").write_text(json.dumps({"cuda": {"cuda_version": "13.0"}}))
    (tmp_path / "libakd_cuda.so").touch()
    monkeypatch.setattr(_library, "FOLDER", tmp_path)
    monkeypatch.setattr(_library, "_why_not", {})
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.ops, "load_library", never)
    return tmp_path


def test_too_old_is_one_warning_with_both_versions(folder, monkeypatch):
    monkeypatch.setattr(_driver, "driver_version", lambda: 12080)
    with pytest.warns(UserWarning, match="driver supports CUDA 12.8, the kernel was built with CUDA 13.0") as warned:
        assert not _library._load("cuda")
    assert len(warned) == 1
    assert "driver supports CUDA 12.8" in _library.load_report()["cuda"]


@pytest.mark.parametrize("version", [13000, 13020, 14000, None], ids=str)
def test_new_enough_or_no_driver(folder, monkeypatch, version):
    monkeypatch.setattr(_driver, "driver_version", lambda: version)
    assert _driver.why_too_old(folder / "build.json") == ""


@pytest.mark.parametrize("text", ["", "{}", '{"cuda": {"cuda_version": ""}}'])
def test_a_library_built_by_hand_is_not_judged(folder, monkeypatch, text):
    (folder / "build.json").write_text(text)
    monkeypatch.setattr(_driver, "driver_version", lambda: 1000)
    assert _driver.why_too_old(folder / "build.json") == ""
    assert _driver.why_too_old(folder / "missing.json") == ""


def test_this_machine():
    version = _driver.driver_version()
    assert version is None or version >= 11000
