"""What ``import akd_ext`` says when the build made no kernel."""

from __future__ import annotations

import json
import warnings

import pytest

from akd_ext.op import library as _library

NO_COMPILER = "no C++ compiler that runs: g++, c++ and clang++ tried"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Writes the build.json of an installed akd_ext without libraries; returns the texts of the warnings of its import."""

    def loaded(**build) -> list[str]:
        lib = tmp_path / "akd_ext" / "lib"
        lib.mkdir(parents=True)
        if build:
            (lib / "build.json").write_text(json.dumps(build))
        monkeypatch.setattr(_library, "FOLDER", lib)
        monkeypatch.setattr(_library, "OWN", lib)
        monkeypatch.setattr(_library, "_why_not", {})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert not _library._load("cpu")
        assert all(warning.category is UserWarning for warning in caught)
        return [str(warning.message) for warning in caught]

    return loaded


@pytest.mark.parametrize("mode", ["auto", "cpu"])
def test_a_build_without_a_kernel_is_one_warning_with_its_reason(installed, mode):
    said = installed(mode=mode, cpu={"built": False, "why_not": NO_COMPILER})
    assert said == [f"akd_ext: plain PyTorch runs, without kernels: not built: {NO_COMPILER}"]
    assert _library.load_report() == {"cpu": f"not built: {NO_COMPILER}"}


def test_who_chose_none_is_not_told(installed):
    assert installed(mode="none", cpu={"built": False, "why_not": "AKD_EXT_BUILD=none"}) == []
    assert _library.load_report() == {"cpu": "not built: AKD_EXT_BUILD=none"}


def test_without_a_record_of_a_build_nothing_is_claimed(installed):
    assert installed() == []
    assert _library.load_report()["cpu"].startswith("not built (python -m akd_ext.info")


def test_the_source_tree_says_the_reason_of_its_own_build(installed, tmp_path):
    (tmp_path / "setup.py").touch()
    (said,) = installed(mode="auto", cpu={"built": False, "why_not": NO_COMPILER})
    assert said.endswith(f"not built: {NO_COMPILER}")


def test_the_source_tree_without_a_build(installed, tmp_path):
    (tmp_path / "setup.py").touch()
    (said,) = installed()
    assert f"this is the source tree {tmp_path}" in said
