"""What the build decides, with fake compilers, toolkits and torches: no test here compiles anything."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import packaging_fixture as fake
import pytest

fake.import_backend()
from _build_backend import archs, backend, find_compiler, find_cuda, find_torch, native, sources  # noqa: E402
from _build_backend.report import BuildError  # noqa: E402

VARIABLES = (
    "AKD_EXT_BUILD",
    "AKD_EXT_CUDA_ARCHS",
    "TORCH_CUDA_ARCH_LIST",
    "AKD_EXT_MANYLINUX",
    "CUDA_HOME",
    "CXX",
    "CXXFLAGS",
    "LDFLAGS",
    "ARCHFLAGS",
)


class Machine:
    """A machine that has nothing but what a test puts there."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.bin, self.packages, self.out = folder / "bin", folder / "packages", folder / "out"
        for made in (self.bin, self.packages, self.out):
            made.mkdir()
        for name in (*VARIABLES, "CUDA_PATH"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setattr(find_torch, "places", lambda: [self.packages])
        # the machine that runs the tests may have a toolkit in /usr/local
        everywhere = find_cuda.places
        monkeypatch.setattr(
            find_cuda, "places", lambda: (root for root in everywhere() if not str(root).startswith("/usr/local/"))
        )

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)

    def build(self):
        return native.build(fake.ROOT, self.out)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir())


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def full(machine):
    """Compiler, toolkit and torch with CUDA, all there and of one major version."""
    fake.compiler(machine.bin / "g++")
    fake.torch(machine.packages)
    machine.set(CUDA_HOME=str(machine.folder / "cuda"))
    fake.toolkit(machine.folder / "cuda")
    return machine


# ---- torch ----------------------------------------------------------------------------------------------------------


def test_torch_of_the_target_is_used_and_no_other_asked_for(full):
    assert backend.get_requires_for_build_wheel() == []
    assert backend.get_requires_for_build_editable() == []
    assert find_torch.find() == find_torch.Torch(full.packages / "torch", "2.13.0+cu130", "13.0")


def test_no_torch_installed_asks_for_one_and_says_so(machine, capfd):
    fake.compiler(machine.bin / "g++")
    assert backend.get_requires_for_build_wheel() == ["torch>=2.10"]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("akd_ext build: no torch>=2.10 here to compile against: one is fetched for the build alone")


@pytest.mark.parametrize(
    "wrong", [{"version": "2.9.1"}, {"version": "1.13.0"}, {"headers": False}], ids=["2.9", "1.13", "no-headers"]
)
def test_torch_that_will_not_do_asks_for_another(machine, wrong):
    fake.compiler(machine.bin / "g++")
    fake.torch(machine.packages, **wrong)
    assert backend.get_requires_for_build_wheel() == ["torch>=2.10"]


def test_torch_is_not_asked_for_when_nothing_will_be_compiled(machine):
    assert backend.get_requires_for_build_wheel() == []  # no compiler
    fake.compiler(machine.bin / "g++")
    machine.set(AKD_EXT_BUILD="none")
    assert backend.get_requires_for_build_wheel() == []


def test_no_torch_at_build_time_builds_nothing_and_says_why(machine):
    fake.compiler(machine.bin / "g++")
    report = machine.build()
    assert not report.any_built
    assert report.cpu.why_not == "no torch >= 2.10 to build against"


def test_cpu_only_torch_gets_the_cpu_kernel(machine):
    fake.compiler(machine.bin / "g++")
    fake.torch(machine.packages, "2.13.0+cpu", None)
    fake.toolkit(machine.folder / "cuda")
    machine.set(CUDA_HOME=str(machine.folder / "cuda"))
    report = machine.build()
    assert machine.files == ["build.json", "libakd_cpu.so"]
    assert report.cuda.why_not == "torch 2.13.0+cpu is built without CUDA"


def test_cpu_only_torch_is_enough_for_a_release_with_cuda(machine):
    fake.compiler(machine.bin / "g++")
    fake.torch(machine.packages, "2.13.0+cpu", None)
    fake.toolkit(machine.folder / "cuda")
    machine.set(CUDA_HOME=str(machine.folder / "cuda"), AKD_EXT_BUILD="cuda")
    machine.build()
    assert machine.files == ["build.json", "libakd_cpu.so", "libakd_cuda.so"]


# ---- compilers ------------------------------------------------------------------------------------------------------


def test_everything_there_builds_both(full):
    report = full.build()
    assert full.files == ["build.json", "libakd_cpu.so", "libakd_cuda.so"]
    assert report.cuda.archs == ["sm_80", "sm_90", "sm_100", "compute_80", "compute_100"]
    assert (report.cuda.cuda_version, report.torch, report.torch_cuda) == ("13.0", "2.13.0+cu130", "13.0")


def test_no_compiler_auto_builds_nothing_and_says_why(full, capfd):
    (full.bin / "g++").unlink()
    report = full.build()
    assert full.files == ["build.json"]
    assert report.cpu.why_not == report.cuda.why_not == "no C++ compiler that runs: g++, c++ and clang++ tried"
    (line,) = capfd.readouterr().err.splitlines()
    assert line == report.line() == json.loads((full.out / "build.json").read_text())["line"]


@pytest.mark.parametrize("mode", ["cpu", "cuda"])
def test_no_compiler_fails_when_a_kernel_was_asked_for(full, mode):
    (full.bin / "g++").unlink()
    full.set(AKD_EXT_BUILD=mode)
    with pytest.raises(BuildError, match=f"AKD_EXT_BUILD={mode}, but the cpu kernel cannot be built: no C.. compiler"):
        full.build()


def test_failure_reaches_pip_as_one_sentence(full, tmp_path):
    (full.bin / "g++").unlink()
    full.set(AKD_EXT_BUILD="cpu")
    with pytest.raises(SystemExit, match="^akd_ext: AKD_EXT_BUILD=cpu, but"):
        backend.build_wheel(str(tmp_path))


def test_cxx_decides_and_the_first_that_runs_wins(machine):
    fake.script(machine.bin / "g++", "exit 1")
    clang = fake.compiler(machine.bin / "clang++")
    assert find_compiler.find() == find_compiler.Compiler(str(clang), "fake 1.0")
    machine.set(CXX=str(fake.compiler(machine.folder / "my compiler")))
    assert find_compiler.find().path == str(machine.folder / "my compiler")


# Says how it was called, then works; a launcher runs what follows it.
SAYS_ITS_ARGUMENTS = f'echo "called: $0 $@"\n{fake.MAKES_THE_FILE}'


def test_cxx_may_be_a_launcher_with_a_compiler_and_options(full, capfd):
    ccache = fake.script(full.bin / "ccache", 'echo "through: $1"\nexec "$@"')
    mine = fake.compiler(full.bin / "mine", SAYS_ITS_ARGUMENTS)
    full.set(CXX="ccache mine -m64", AKD_EXT_BUILD="cuda")
    found = find_compiler.find()
    assert found.command == [str(ccache), str(mine), "-m64"]
    assert full.build().any_built
    said = capfd.readouterr().out
    assert f"through: {mine}" in said and f"called: {mine} -m64 -std=c++17" in said
    assert f"-ccbin {mine}" in said  # nvcc takes one program


@pytest.mark.parametrize("cxx", ["ccache nothing", "nothing g++", "'g++", "--version"])
def test_cxx_that_names_no_compiler_is_none(full, cxx):
    fake.script(full.bin / "ccache", 'exec "$@"')
    full.set(CXX=cxx)
    assert find_compiler.find() is None
    assert f"no C++ compiler that runs: CXX={cxx} tried" in full.build().cpu.why_not


def test_flags_of_the_environment_reach_compiler_and_linker(full, capfd):
    full.set(AKD_EXT_BUILD="cuda", CXXFLAGS="-O1 '-DA=b c'", LDFLAGS="-Wl,-z,now -pthread", ARCHFLAGS="-arch arm64")
    report = full.build()
    assert report.cpu.flags[-4:] == ["-arch", "arm64", "-O1", "-DA=b c"]
    lines = capfd.readouterr().out.splitlines()
    compiled = [line for line in lines if ".cpp -o" in line and "/g++ -std" in line]
    assert compiled and all("-arch arm64 -O1 '-DA=b c'" in line for line in compiled)
    linked = {name: next(line for line in lines if line.endswith(f"{name}.so")) for name in ("akd_cpu", "akd_cuda")}
    assert "-arch arm64 -Wl,-z,now -pthread" in linked["akd_cpu"]
    assert "-Xcompiler -arch -Xcompiler arm64 -Xlinker -z,now -Xcompiler -pthread" in linked["akd_cuda"]


def test_a_quote_that_is_never_closed_is_one_sentence(full):
    full.set(CXXFLAGS="-DA='b")
    with pytest.raises(BuildError, match="CXXFLAGS=.*No closing quotation"):
        full.build()


def test_compiler_that_fails_is_no_reason_to_fail_in_auto(full):
    fake.compiler(full.bin / "g++", "echo 'x.cpp:1: error: no C++17 here'; exit 1")
    report = full.build()
    assert full.files == ["build.json"]
    assert "error: no C++17 here" in report.cpu.why_not


def test_cuda_that_does_not_compile_leaves_the_cpu_kernel(full):
    fake.toolkit(full.folder / "broken")
    nvcc = full.folder / "broken" / "bin" / "nvcc"
    nvcc.write_text(nvcc.read_text().replace(fake.MAKES_THE_FILE, "echo 'error: unsupported GNU version'; exit 1"))
    full.set(CUDA_HOME=str(full.folder / "broken"))
    report = full.build()
    assert full.files == ["build.json", "libakd_cpu.so"]
    assert "unsupported GNU version" in report.cuda.why_not
    full.set(AKD_EXT_BUILD="cuda")
    with pytest.raises(BuildError, match="unsupported GNU version"):
        full.build()


def test_no_ninja_is_needed(full):
    assert sorted(path.name for path in full.bin.iterdir()) == ["g++"]
    assert full.build().any_built


def test_none_builds_nothing_and_removes_what_an_older_build_left(full):
    full.build()
    full.set(AKD_EXT_BUILD="none")
    full.build()
    assert full.files == ["build.json"]


def test_unknown_mode(full):
    full.set(AKD_EXT_BUILD="gpu")
    with pytest.raises(BuildError, match='AKD_EXT_BUILD="gpu"; accepted: auto, cuda, cpu, none'):
        full.build()


def test_the_build_notes_what_it_was_made_of(full):
    full.build()
    noted = json.loads((full.out / "build.json").read_text())["sources"]
    assert noted == sources.digest(fake.ROOT / "csrc") and len(noted) == 64


def test_two_builds_at_once_into_one_folder(full):
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: full.build(), range(2)))
    assert all(report.cpu.built and report.cuda.built for report in reports)
    assert full.files == ["build.json", "libakd_cpu.so", "libakd_cuda.so"]  # and nothing half-written


# ---- CUDA toolkits --------------------------------------------------------------------------------------------------


def test_nvcc_without_its_headers_is_no_toolkit(full):
    bare = fake.toolkit(full.folder / "bare", headers=False)
    full.set(CUDA_HOME=str(full.folder / "bare"))
    report = full.build()
    assert report.cuda.why_not == f"nvcc without cuda_runtime.h in {bare.parents[1]}"
    assert report.cpu.built


def test_nvcc_without_its_headers_looks_further(full):
    fake.toolkit(full.folder / "bare", headers=False)
    full.set(CUDA_HOME=str(full.folder / "bare"), CUDA_PATH=str(full.folder / "cuda"))
    assert find_cuda.find()[0].root == full.folder / "cuda"


def test_wrapper_script_on_path_leads_to_the_toolkit(machine):
    nvcc = fake.toolkit(machine.folder / "real place")
    fake.script(machine.bin / "nvcc", f'exec "{nvcc}" "$@"')
    assert find_cuda.find()[0].root == machine.folder / "real place"


def test_link_on_path_leads_to_the_toolkit(machine):
    nvcc = fake.toolkit(machine.folder / "cuda")
    nvcc.write_text(nvcc.read_text().replace("--dryrun)", "--never)"))
    (machine.bin / "nvcc").symlink_to(nvcc)
    assert find_cuda.find()[0].root == machine.folder / "cuda"


def test_headers_below_targets(machine):
    fake.toolkit(machine.folder / "cuda", headers=False)
    include = machine.folder / "cuda" / "targets" / "x86_64-linux" / "include"
    include.mkdir(parents=True)
    (include / "cuda_runtime.h").touch()
    machine.set(CUDA_HOME=str(machine.folder / "cuda"))
    assert find_cuda.find()[0].include == include


def test_toolkit_from_nvidia_packages(machine):
    fake.toolkit(machine.packages / "nvidia" / "cu13")
    assert find_cuda.find()[0].root == machine.packages / "nvidia" / "cu13"


def test_no_toolkit(machine):
    toolkit, why_not = find_cuda.find()
    assert toolkit is None
    assert why_not.startswith("no CUDA toolkit")


def test_another_major_version_is_skipped_loudly(full, capfd):
    fake.toolkit(full.folder / "old", "12.8")
    full.set(CUDA_HOME=str(full.folder / "old"))
    report = full.build()
    assert full.files == ["build.json", "libakd_cpu.so"]
    assert "has another major version than torch 2.13.0+cu130" in report.cuda.why_not
    assert report.cuda.why_not in capfd.readouterr().err
    full.set(AKD_EXT_BUILD="cuda")
    with pytest.raises(BuildError, match=r"the cuda kernel cannot be built: CUDA 12\.8 in .*old has another major"):
        full.build()


def test_another_minor_version_is_fine(full):
    fake.toolkit(full.folder / "newer", "13.2")
    full.set(CUDA_HOME=str(full.folder / "newer"))
    assert full.build().cuda.built


# ---- GPU architectures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "known", "chosen"),
    [
        ("", "75 80 86 87 89 90 100 103 120 121", "sm_80 sm_86 sm_89 sm_90 sm_100 sm_120 compute_80 compute_120"),
        ("", "75 80 86 89 90", "sm_80 sm_86 sm_89 sm_90 compute_80 compute_90"),
        ("all", "80 90", "sm_80 sm_90 compute_80 compute_90"),
        ("8.0;9.0+PTX", "80 86 90", "sm_80 sm_90 compute_90"),
        ("8.0+PTX 9.0", "80 86 90", "sm_80 sm_90 compute_80"),
        ("sm_90,80", "80 90", "sm_90 sm_80 compute_80"),
        ("10.0", "90 100", "sm_100 compute_100"),
        ("9.0a", "90", "sm_90a compute_90a"),
    ],
)
def test_architectures(machine, asked, known, chosen):
    machine.set(AKD_EXT_CUDA_ARCHS=asked)
    assert archs.choose(tuple(known.split())) == chosen.split()


def test_torch_cuda_arch_list_is_read_after_our_own_variable(machine):
    machine.set(TORCH_CUDA_ARCH_LIST="9.0")
    assert archs.choose(("80", "90")) == ["sm_90", "compute_90"]
    machine.set(AKD_EXT_CUDA_ARCHS="8.0")
    assert archs.choose(("80", "90")) == ["sm_80", "compute_80"]


@pytest.mark.parametrize("asked", ["7.0", "hopper", "9.0;12.0"])
def test_architecture_nvcc_does_not_know(full, asked):
    full.set(AKD_EXT_CUDA_ARCHS=asked)
    report = full.build()
    assert "is none of the architectures of this nvcc: 80, 90, 100" in report.cuda.why_not
    assert report.cpu.built


def test_native_without_a_gpu_is_said(machine):
    machine.set(AKD_EXT_CUDA_ARCHS="native")
    with pytest.raises(BuildError, match="nvidia-smi shows no GPU"):
        archs.choose(("80", "90"))


def test_native_takes_every_visible_gpu(machine):
    fake.script(machine.bin / "nvidia-smi", "echo 9.0; echo 8.0; echo 9.0")
    machine.set(AKD_EXT_CUDA_ARCHS="native")
    assert archs.choose(("80", "86", "90")) == ["sm_80", "sm_90", "compute_90"]


def test_jobs(machine):
    from _build_backend.compile import jobs

    machine.set(MAX_JOBS="3")
    assert jobs() == 3
    machine.set(MAX_JOBS="many")
    assert jobs() == len(os.sched_getaffinity(0))
