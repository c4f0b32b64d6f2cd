"""Without compiled kernels the same function runs in plain PyTorch, and passes the same tests."""

import ast
import os

import pytest
import torch
from subject_process import copy_of_the_package, run, run_op_tests

import akd_ext

CORE = ["test_op_numerics.py", "test_op_bits.py", "test_op_autograd.py", "test_op_special_values.py"]
CORE += ["test_op_compile.py::test_opcheck"]
# The second run of these tests: some dtype pairs and opchecks will do.
PAIRS = ["float32-float32", "float16-float16", "bfloat16-float32"]
CHOSEN = f"(not test_dtypes_masks_reductions or {' or '.join(PAIRS)}) and (not opcheck or (float16 and mask) or phi)"
CHOSEN += " and not float64_sums and not big_upstream and not phi_as and not equal_squares"


@pytest.fixture
def without_binaries(tmp_path):
    return copy_of_the_package(tmp_path, with_library=False)


@pytest.mark.integration
def test_core_tests_pass(without_binaries):
    run_op_tests(CORE, without_binaries, "-k", CHOSEN, AKD_TEST_BACKEND="reference")


@pytest.mark.integration
def test_it_says_why_and_has_the_same_schema(without_binaries):
    """The schema stands in C++ and, for this case, in Python: compare what the dispatcher knows."""
    code = (
        "import akd_ext, torch\n"
        "print(akd_ext.backend('cpu'), akd_ext.load_report()['cpu'])\n"
        "print(torch.ops.akd_ext.annealed_mse.default._schema)\n"
        "print(torch.ops.akd_ext.scale_.default._schema)\n"
    )
    report, *schemas = run(["-W", "error::UserWarning", "-c", code], without_binaries).splitlines()
    assert report.startswith("reference not built")
    assert schemas == [str(op.default._schema) for op in (torch.ops.akd_ext.annealed_mse, torch.ops.akd_ext.scale_)]
    if akd_ext.backend("cpu") == "reference":
        pytest.skip("no compiled library here either: nothing was compared with C++")


@pytest.fixture
def clone(without_binaries):
    """A source tree into which nothing was built."""
    (without_binaries / "setup.py").touch()
    return without_binaries


def installed(folder, version):
    """What ``pip install .`` leaves: the package with its kernels, and its metadata."""
    if akd_ext.backend("cpu") == "reference":
        pytest.skip("no compiled library here")
    about = copy_of_the_package(folder, with_library=True) / f"akd_ext-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: akd_ext\nVersion: {version}\n")
    return folder


def only_installed_in(site):
    """Code after which nothing else counts as installed, such as the akd_ext that these tests are about."""
    return f"from importlib import metadata as m; f = m.distributions; m.distributions = lambda **k: f(path=[{str(site)!r}], **k)"


@pytest.mark.integration
@pytest.mark.parametrize("version", [akd_ext.__version__, "0.0.1"])
def test_a_source_tree_borrows_the_kernels_of_the_same_akd_ext_only(clone, tmp_path_factory, version):
    site = installed(tmp_path_factory.mktemp("site"), version)
    code = f"{only_installed_in(site)}; import akd_ext; from akd_ext import info; print(akd_ext.backend('cpu'), akd_ext.__file__); print(info.text(info.info()))"
    out = run(["-W", "ignore", "-c", code], clone, PYTHONPATH=f"{clone}{os.pathsep}{site}")
    same = version == akd_ext.__version__
    assert out.split()[:2] == ["cpu" if same else "reference", str(clone / "akd_ext" / "__init__.py")]
    assert (f"kernels from    {site / 'akd_ext' / 'lib'}" in out) == same


@pytest.mark.integration
def test_a_source_tree_without_kernels_says_so_once(clone):
    code = (
        f"{only_installed_in(clone)}\n"
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import akd_ext\n"
        "print([str(w.message) for w in caught if 'akd_ext' in str(w.message)])\n"
    )
    (said,) = ast.literal_eval(run(["-c", code], clone))
    assert "no kernel was built into it" in said and "pip install -e ." in said


@pytest.mark.integration
def test_a_broken_binary_is_one_warning_and_no_crash(without_binaries):
    (without_binaries / "akd_ext" / "lib" / "libakd_cpu.so").write_bytes(b"this is no library")
    code = (
        "import warnings, torch\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import akd_ext\n"
        "assert len([w for w in caught if 'akd_ext' in str(w.message)]) == 1, caught\n"
        "assert akd_ext.backend('cpu') == 'reference'\n"
        "assert 'libakd_cpu' in akd_ext.load_report()['cpu']\n"
        "print(akd_ext.annealed_mse_loss(torch.ones(2, 2), torch.zeros(2, 2), 0.5).item())\n"
    )
    assert run(["-c", code], without_binaries).strip() == "1.0"


@pytest.mark.integration
def test_a_library_of_another_version_is_one_sentence(without_binaries):
    """The file an older build left behind declares other ops; a Python library plays it here."""
    (without_binaries / "akd_ext" / "lib" / "libakd_cpu.so").write_bytes(b"")
    code = (
        "import torch\n"
        "old = torch.library.Library('akd_ext', 'FRAGMENT')\n"
        "def load_library(path):\n"
        "    old.define('annealed_mse(Tensor student, Tensor teacher, float phi) -> (Tensor, Tensor)')\n"
        "torch.ops.load_library = load_library\n"
        "try:\n"
        "    import akd_ext\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    out = run(["-c", code], without_binaries)
    assert "libakd_cpu.so is of another version of akd_ext" in out and "install akd_ext again" in out


@pytest.mark.integration
def test_kernels_built_after_the_import_wait_for_a_restart(without_binaries, tmp_path_factory):
    """The ops are Python's by then; a library that declared them again would end the process."""
    if akd_ext.backend("cpu") == "reference":
        pytest.skip("no compiled library here")
    built = copy_of_the_package(tmp_path_factory.mktemp("built"), with_library=True)
    code = (
        "import sys, akd_ext\n"
        "first = dict(sys.modules)\n"
        "for name in [name for name in sys.modules if name.startswith('akd_ext')]:\n"
        "    del sys.modules[name]\n"
        f"sys.path.insert(0, {str(built)!r})\n"
        "try:\n"
        "    import akd_ext\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "restart Python" in run(["-c", code], without_binaries)
