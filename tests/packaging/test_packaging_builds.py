"""Real builds, each into a clean environment. Minutes: ``pytest -m packaging``.

An environment here has pip and nothing else. Where torch is wanted, the torch that runs these tests is linked into it: it lies
where pip would have put it, without another five gigabytes.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import packaging_fixture as fake
import pytest
import torch

fake.import_backend()
from _build_backend import find_compiler, find_cuda  # noqa: E402

pytestmark = pytest.mark.packaging

RUN_THE_KERNEL = """
import torch, akd_ext
s = torch.randn(4, 10, requires_grad=True)
akd_ext.annealed_mse_loss(s, torch.randn(4, 10), 0.5).backward()
print("backend", akd_ext.backend("cpu"), s.grad.shape == s.shape)
print("folder", akd_ext.__file__)
from akd_ext.reproduce.recipes import config_dir
print("configs", config_dir())
"""


class Environment:
    def __init__(self, folder: Path, *, with_torch: bool):
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        paths = {"base": str(folder), "platbase": str(folder)}
        self.packages = Path(sysconfig.get_path("purelib", "venv", paths))
        if with_torch:
            here = Path(torch.__file__).parents[1]
            (self.packages / "torch").symlink_to(here / "torch")
            metadata = importlib.metadata.distribution("torch")._path
            (self.packages / metadata.name).symlink_to(metadata)
            # What torch itself imports. Not the akd_ext of this environment: an editable install is found after any folder.
            rest = folder / "rest"
            rest.mkdir()
            for entry in here.iterdir():
                if not entry.name.startswith(("akd_ext", "__editable__", "torch-")) and entry.name != "torch":
                    (rest / entry.name).symlink_to(entry)
            (self.packages / "zz_rest_of_torch.pth").write_text(f"{rest}\n")

    def pip(self, *words: str, fails: bool = False, **variables: str) -> str:
        return self.run("-m", "pip", *words, "-v", fails=fails, **variables)

    def run(self, *words: str, fails: bool = False, **variables: str) -> str:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("AKD_EXT_", "PYTHON"))}
        command = [str(self.python), *words]
        done = subprocess.run(
            command,
            env={**env, **variables},
            cwd=self.packages,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (done.returncode != 0) == fails, done.stdout[-5000:]
        return done.stdout


@pytest.fixture
def tree(tmp_path):
    """A copy of the source tree, as a clone has it, at a path with spaces."""
    target = tmp_path / "a tree with spaces"
    leave = shutil.ignore_patterns(".git", ".ci", "lib", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(fake.ROOT, target, ignore=leave)
    return target


@pytest.fixture
def quick(tmp_path):
    """Variables for a build that takes seconds: the CPU kernel, not optimised, from a PATH with a compiler and no ninja or nvcc."""
    found = find_compiler.find()
    if found is None:
        pytest.skip("no C++ compiler on this machine")
    fake.script(tmp_path / "bin" / "g++", f'exec {found.path} "$@" -O0')
    for name in ("as", "ld"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    return {"AKD_EXT_BUILD": "cpu", "PATH": str(tmp_path / "bin")}


def environment(tmp_path, *, with_torch: bool = True) -> Environment:
    return Environment(tmp_path / "environment", with_torch=with_torch)


def listing(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if "__pycache__" not in str(path)}


def files_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_install_uses_the_torch_that_is_there_and_leaves_the_tree_alone(tmp_path, tree, quick):
    there, before = environment(tmp_path), listing(tree)
    said = there.pip("install", "--no-deps", str(tree), **quick)
    assert "Collecting torch" not in said
    assert "akd_ext build: cpu kernel built" in said
    assert listing(tree) == before
    said = there.run("-c", RUN_THE_KERNEL)
    assert "backend cpu True" in said
    assert f"folder {there.packages}" in said
    assert f"configs {there.packages}" in said
    (wheel,) = there.packages.glob("akd_ext-*.dist-info/WHEEL")
    assert "Tag: py3-none-linux_" in wheel.read_text()
    assert "Root-Is-Purelib: false" in wheel.read_text()


def test_editable_install_builds_into_the_tree(tmp_path, tree, quick):
    there = environment(tmp_path)
    assert "Collecting torch" not in there.pip("install", "--no-deps", "-e", str(tree), **quick)
    said = there.run("-c", RUN_THE_KERNEL)
    assert "backend cpu True" in said
    assert f"folder {tree}" in said
    assert f"configs {tree / 'torchdistill_configs'}" in said
    assert sorted(path.name for path in (tree / "akd_ext" / "lib").iterdir()) == ["build.json", "libakd_cpu.so"]


def test_two_builds_at_once_from_one_tree(tmp_path, tree, quick):
    there, before = environment(tmp_path), listing(tree)
    command = [str(there.python), "-m", "pip", "wheel", "--no-deps", "-w"]
    env = {**os.environ, **quick}
    out = [tmp_path / "one", tmp_path / "two"]
    running = [subprocess.Popen([*command, str(folder), str(tree)], env=env) for folder in out]
    assert [process.wait() for process in running] == [0, 0]
    one, two = (next(folder.glob("*.whl")) for folder in out)
    assert files_in(one) == files_in(two) >= {"akd_ext/lib/libakd_cpu.so", "akd_ext/__init__.py"}
    assert listing(tree) == before


def test_sdist_holds_all_it_takes_to_build(tmp_path, tree, quick):
    there = environment(tmp_path)
    there.pip("install", "setuptools>=77")
    build = f"import os, sys; os.chdir({str(tree)!r}); sys.path.insert(0, '.'); from _build_backend import backend; "
    there.run("-c", build + f"print(backend.build_sdist({str(tmp_path)!r}))")
    (sdist,) = tmp_path.glob("*.tar.gz")
    names = tarfile.open(sdist).getnames()
    assert not [name for name in names if name.endswith(".so") or "__pycache__" in name]
    there.pip("wheel", "--no-deps", "-w", str(tmp_path / "out"), str(sdist), **quick)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    configs = {
        f"akd_ext/torchdistill_configs/{p.relative_to(tree / 'torchdistill_configs')}"
        for p in tree.rglob("torchdistill_configs/**/*.yaml")
    }
    assert files_in(wheel) >= {"akd_ext/lib/libakd_cpu.so", "akd_ext/lib/build.json", "akd_ext/py.typed", *configs}
    assert configs
    assert not [name for name in files_in(wheel) if not name.startswith("akd_ext")]  # no tests, no backend


def test_without_a_compiler_it_installs_and_runs_in_plain_pytorch(tmp_path, tree):
    there = environment(tmp_path)
    (tmp_path / "bin").mkdir()
    said = there.pip("install", "--no-deps", str(tree), PATH=str(tmp_path / "bin"))
    assert "no cpu kernel (no C++ compiler that runs" in said
    assert "backend reference True" in there.run("-c", RUN_THE_KERNEL)
    assert "not built: no C++ compiler that runs" in there.run("-m", "akd_ext.info")
    (wheel,) = there.packages.glob("akd_ext-*.dist-info/WHEEL")
    assert "Tag: py3-none-any" in wheel.read_text()


def test_without_a_compiler_asking_for_a_kernel_fails_in_one_sentence(tmp_path, tree):
    there = environment(tmp_path)
    (tmp_path / "bin").mkdir()
    said = there.pip("install", "--no-deps", str(tree), fails=True, AKD_EXT_BUILD="cpu", PATH=str(tmp_path / "bin"))
    assert "akd_ext: AKD_EXT_BUILD=cpu, but the cpu kernel cannot be built: no C++ compiler that runs" in said


def test_without_torch_a_wheel_with_no_kernels_asks_for_none(tmp_path, tree):
    there = environment(tmp_path, with_torch=False)
    said = there.pip("wheel", "--no-deps", "-w", str(tmp_path / "out"), str(tree), AKD_EXT_BUILD="none")
    assert "Collecting torch" not in said
    (wheel,) = (tmp_path / "out").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_cuda_kernel(tmp_path, tree):
    toolkit, why_not = find_cuda.find()
    if toolkit is None:
        pytest.skip(why_not)
    if torch.version.cuda and torch.version.cuda.split(".")[0] != toolkit.version.split(".")[0]:
        pytest.skip(f"torch is built for CUDA {torch.version.cuda}, the toolkit is {toolkit.version}")
    there = environment(tmp_path)
    said = there.pip("install", "--no-deps", str(tree), AKD_EXT_BUILD="cuda", AKD_EXT_CUDA_ARCHS="9.0+PTX")
    assert "cuda kernel built" in said
    report = there.run(
        "-c", "import akd_ext; print('active', 'cuda' not in akd_ext.load_report(), akd_ext.backend('cuda'))"
    )
    assert ("active True cuda" if torch.version.cuda else "active False reference") in report
