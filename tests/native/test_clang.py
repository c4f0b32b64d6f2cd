"""Every clang on this machine compiles the CPU kernels, for all of their instruction sets, without a warning."""

import shutil
import subprocess

import pytest
from places import ROOT
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
