"""The C++ kernels under sanitizers: alone, with threads, and the whole op inside Python.

    pytest -m native

Needs g++ or clang++ with libasan, libubsan and libtsan; skips, and says so, only where there is no such compiler.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from subject_process import copy_of_the_package, run, run_op_tests
from torch.utils.cpp_extension import include_paths

pytestmark = pytest.mark.native

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{CSRC}"]
FLAGS += [option for path in include_paths() for option in ("-isystem", path)]
INSTRUCTION_SETS = ["portable", "avx2", "avx512"] if platform.machine() in ("x86_64", "AMD64") else ["portable"]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    if not CSRC.is_dir():
        pytest.skip(f"no C++ sources at {CSRC}: these tests run in a checkout")
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not found:
        pytest.skip("no C++ compiler: neither $CXX nor g++ nor clang++")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.cpp").write_text("int main() { return 0; }\n")
    for sanitizer in ("address,undefined", "thread"):
        done = subprocess.run(
            [found, f"-fsanitize={sanitizer}", str(folder / "probe.cpp"), "-o", str(folder / "probe")],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.skip(f"{found} cannot link with -fsanitize={sanitizer}: {done.stderr.strip()[-300:]}")
    return found


def build(compiler, output, *arguments):
    done = subprocess.run([compiler, *FLAGS, *arguments, "-o", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


def execute(program, instruction_set, *arguments):
    def start(*arguments):
        environment = {**os.environ, "AKD_EXT_CPU": instruction_set}
        return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=600)

    probe = start("probe")
    if probe.returncode == 77:
        pytest.skip(f"this machine has no {instruction_set}: {probe.stderr.strip()}")
    done = start(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{instruction_set}: 0 failures" in done.stdout


@pytest.fixture(scope="module")
def driver(compiler, tmp_path_factory):
    sources = [str(CSRC / "cpu" / "kernels.cpp"), str(HERE / "kernels_test.cpp")]
    folder = tmp_path_factory.mktemp("driver")
    return {
        sanitizer: build(
            compiler, folder / sanitizer.replace(",", "-"), f"-fsanitize={sanitizer}", *sources, "-pthread"
        )
        for sanitizer in ("address,undefined", "thread")
    }


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_kernels_under_address_and_undefined_behaviour_sanitizer(driver, instruction_set):
    execute(driver["address,undefined"], instruction_set)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_kernels_under_thread_sanitizer(driver, instruction_set):
    execute(driver["thread"], instruction_set, "threads")


def test_the_op_inside_python_under_address_sanitizer(compiler, tmp_path):
    """The whole library, with its cutting into blocks and masks, on tensors that have red zones around them."""
    if platform.system() != "Linux":
        pytest.skip("preloading the sanitizer's runtime is done for Linux only")
    # libstdc++ too: the sanitizer looks for the real __cxa_throw when it starts, before Python has loaded any C++.
    runtimes = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(os.path.isabs(path) for path in runtimes):
        pytest.skip(f"{compiler} has no shared libasan and libstdc++ to preload into Python: {runtimes}")
    folder = copy_of_the_package(tmp_path, with_library=False)
    sources = [str(path) for path in [*CSRC.glob("*.cpp"), *(CSRC / "cpu").glob("*.cpp")]]
    library = folder / "akd_ext" / "lib" / "libakd_cpu.so"
    torch_lib = Path(torch.__file__).parent / "lib"
    build(compiler, library, "-fsanitize=address", "-shared", "-fPIC", *sources, f"-L{torch_lib}", "-ltorch_cpu")
    environment = {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep much until the end
        "AKD_TEST_BACKEND": "cpu",
        "OMP_NUM_THREADS": "2",
    }
    # First that it would be seen at all: one element too many must stop the process.
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        run(["-c", READ_PAST_THE_END], folder, **environment)
    names = ["test_op_numerics.py", "test_op_layouts.py", "test_op_special_values.py", "test_op_direct.py"]
    run_op_tests(names, folder, "--capture=no", timeout=900, **environment)


READ_PAST_THE_END = """
import torch, akd_ext
memory = torch.zeros(1000)
too_long = torch.as_strided(memory, (1000,), (1,))
memory.untyped_storage().resize_(3996)
akd_ext.annealed_mse_loss(too_long, torch.zeros(1000), 0.5)
"""
