"""Every clang on this machine compiles the CPU kernels, for all of their instruction sets, without a warning."""

import os
import shutil
import subprocess

import pytest
from places import ROOT
from subject_process import copy_of_the_package, run, run_op_tests
from torch.utils.cpp_extension import include_paths

pytestmark = pytest.mark.native
CLANGS = [name for name in ("clang++", *(f"clang++-{n}" for n in range(14, 24))) if shutil.which(name)]


@pytest.mark.skipif(not CLANGS, reason="no clang++ on this machine")
@pytest.mark.parametrize("clang", CLANGS)
def test_the_kernels_compile(clang, tmp_path):
    system = [option for path in include_paths() for option in ("-isystem", path)]
    flags = ["-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", *system]
    source, target = ROOT / "csrc/cpu/kernels.cpp", tmp_path / "kernels.o"
    done = subprocess.run([clang, *flags, "-c", str(source), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not CLANGS, reason="no clang++ on this machine")
def test_the_op_is_right_on_a_clang_build(tmp_path):
    """The library that ``CXX=clang++ pip install .`` makes, and the tests that hold it to plain PyTorch, bit by bit."""
    folder = copy_of_the_package(tmp_path, with_library=False)
    code = f"from pathlib import Path; from _build_backend import native; native.build(Path({str(ROOT)!r}), Path('akd_ext/lib'))"
    environment = {"CXX": CLANGS[-1], "AKD_EXT_BUILD": "cpu", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    run(["-c", code], folder, **environment)
    assert CLANGS[-1].split("-")[0].rstrip("+") in (folder / "akd_ext/lib/build.json").read_text()
    names = [f"test_op_{name}.py" for name in ("bits", "numerics", "layouts", "special_values")]
    run_op_tests(names, folder, timeout=600, AKD_TEST_BACKEND="cpu")
