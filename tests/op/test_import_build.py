"""What ``import akd_ext`` says when the build made no kernel."""

from __future__ import annotations

import json
import runpy
import shutil
import warnings

import pytest
from places import ROOT

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


# ---- a source tree whose csrc/ has changed since ---------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A source tree with kernels of its own; gives what its import says of its sources."""
    (tmp_path / "setup.py").touch()
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    (tmp_path / "csrc" / "cpu" / "kernels.cpp").write_text("int a;")
    (tmp_path / "_build_backend").mkdir()
    shutil.copy(ROOT / "_build_backend" / "sources.py", tmp_path / "_build_backend")
    lib = tmp_path / "akd_ext" / "lib"
    lib.mkdir(parents=True)
    digest = runpy.run_path(str(tmp_path / "_build_backend" / "sources.py"))["digest"]
    (lib / "build.json").write_text(json.dumps({"sources": digest(tmp_path / "csrc")}))
    monkeypatch.setattr(_library, "FOLDER", lib)
    monkeypatch.setattr(_library, "OWN", lib)

    def said() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _library._warn_of_changed_sources()
        return [str(warning.message) for warning in caught]

    return tmp_path, said


def test_kernels_of_these_sources_are_no_word(tree):
    folder, said = tree
    (folder / "csrc" / "README.md").write_text("not compiled")
    assert said() == []


@pytest.mark.parametrize("change", ["edited", "renamed", "added"])
def test_kernels_from_before_a_change_are_said_with_the_command(tree, change):
    folder, said = tree
    source = folder / "csrc" / "cpu" / "kernels.cpp"
    if change == "edited":
        source.write_text("int b;")
    elif change == "renamed":
        source.rename(source.with_name("other.cpp"))
    else:
        (folder / "csrc" / "new.cuh").touch()
    (text,) = said()
    assert "has changed since the kernels" in text and "`python -m _build_backend.native`" in text


def test_borrowed_kernels_are_built_anew_by_pip(tree, tmp_path, monkeypatch):
    folder, said = tree
    elsewhere = tmp_path / "site-packages"
    shutil.copytree(folder / "akd_ext" / "lib", elsewhere)
    monkeypatch.setattr(_library, "FOLDER", elsewhere)
    (folder / "csrc" / "cpu" / "kernels.cpp").write_text("int b;")
    assert "`pip install .`" in said()[0]


def test_what_an_older_build_did_not_note_is_not_claimed(tree):
    folder, said = tree
    (folder / "akd_ext" / "lib" / "build.json").write_text("{}")
    (folder / "csrc" / "cpu" / "kernels.cpp").write_text("int b;")
    assert said() == []
