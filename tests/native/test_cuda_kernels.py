"""The CUDA kernels executed on the CPU, with CUDA's semantics: barriers, shuffles, shared memory, random schedules.

    pytest -m integration tests/native/test_cuda_kernels.py      # about a minute of one core
    pytest -m native tests/native/test_cuda_kernels.py           # under three: more seeds, sanitizers, planted faults

``cuda_emulation/cudasim.h`` says how. Needs no GPU and no nvcc, but the headers of the CUDA toolkit.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from places import ROOT

HERE = Path(__file__).parent
EMULATION, CSRC = HERE / "cuda_emulation", ROOT / "csrc"
HEADERS = ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h")
# The one construct of a kernel that no header can stand in for.
SHARED = re.compile(r"__shared__ (\w+) (\w+)\[([^\]]*)\];")
EMULATED = r'\1(&\2)[\3] = ::cudasim::shared_variable<\1[\3]>(__FILE__ "\2");'
SANITIZERS = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DCUDASIM_ASAN"],
    "thread": ["-fsanitize=thread", "-DCUDASIM_TSAN"],
}


@pytest.fixture(scope="module")
def toolkit():
    """The compiler and the folder of the toolkit's headers."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler: neither $CXX nor g++ nor clang++")
    nvcc = shutil.which("nvcc")
    places = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    places += [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    for place in places:
        if all((place / name).exists() for name in HEADERS):
            return compiler, place
    pytest.skip(f"no CUDA toolkit: {', '.join(HEADERS)} not all in {' or '.join(map(str, places))}")


_objects = {}  # of the emulation itself, which faults in the kernels leave as it is


def build(toolkit, folder, sanitizer="plain", only_float32=False, planted=False):
    """The program, of a copy of csrc in which, if wanted, all FAULTS are planted: each sleeps until its number is given."""
    compiler, headers = toolkit
    (folder / "csrc").mkdir(parents=True)
    for header in CSRC.glob("*.h"):
        shutil.copy(header, folder / "csrc")
    shutil.copytree(CSRC / "cuda", folder / "csrc" / "cuda")
    for path in (folder / "csrc" / "cuda").iterdir():
        text = path.read_text(encoding="utf-8")
        if planted:
            text = plant(path.name, text)
        text = SHARED.sub(EMULATED, text)
        assert "__shared__" not in text, f"{path.name}: a shared variable of another form than TYPE NAME[SIZE];"
        path.write_text(text, encoding="utf-8")
    kernels = sorted((folder / "csrc" / "cuda").glob("*.cu"))
    own = [EMULATION / "cases.cpp", EMULATION / "cudasim.cpp"]
    if only_float32:
        kernels = [path for path in kernels if path.name in ("launch.cu", "forward_float32.cu")]
        own.append(EMULATION / "float32_only.cpp")
    flags = ["-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fno-strict-aliasing", "-w", f"-isystem{headers}"]
    flags += ["-include", "cudasim.h", *(f"-I{path}" for path in (folder / "csrc", HERE, EMULATION))]
    options = SANITIZERS[sanitizer]
    define = [word for word in options if word.startswith("-D")]

    def compile_one(source):
        once = (sanitizer, source) if source in own and not planted else None
        if once not in _objects:
            object_file = compile_now(source)
            if once is None:
                return object_file
            _objects[once] = object_file
        return _objects[once]

    def compile_now(source):
        # The emulation itself is not instrumented: it switches stacks under the sanitizer's feet, and tells it so.
        chosen = options if source in kernels or (sanitizer == "address" and source.name == "cases.cpp") else define
        target = folder / f"{source.stem}.o"
        run([compiler, *flags, *chosen, "-x", "c++", "-c", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, [*kernels, *own]))
    run([compiler, *options, *objects, "-o", str(folder / "program")])
    return folder / "program"


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"


def plant(name, text):
    for number, (file, marked, wrong, _) in enumerate(FAULTS.values(), 1):
        if file == name:
            before, right, after = re.split("[«»]", marked)
            assert text.count(before + right + after) == 1, f"{name} has not once: {before + right + after}"
            choice = f"(::cudasim::planted == {number} ? ({wrong}) : ({right}))"
            text = text.replace(before + right + after, before + choice + after)
    return text


def execute(program, mode, seed=1, cases=1, fault=0):
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    command = [str(program), mode, str(seed), str(cases), str(fault)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)


def passes(program, mode, seed=1, cases=1):
    done = execute(program, mode, seed, cases)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert re.search(rf"^{mode}: \d+ cases, \d+ runs, 0 failures$", done.stdout, re.MULTILINE), done.stdout


@pytest.fixture(scope="module")
def program(toolkit, tmp_path_factory):
    return build(toolkit, tmp_path_factory.mktemp("emulation") / "plain")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("mode", "cases"), [("host", 1), ("forward", 1000), ("scale", 1000), ("count", 500), ("wide", 2)]
)
def test_emulated_kernels(program, mode, cases):
    passes(program, mode, cases=cases)


@pytest.mark.integration
def test_emulated_kernels_have_no_races(toolkit, tmp_path):
    """ThreadSanitizer, which every CUDA thread is a thread to; only barriers and shuffles are said to order them."""
    program = build(toolkit, tmp_path / "thread", "thread", only_float32=True)
    passes(program, "float32", seed=3, cases=100)


@pytest.mark.native
@pytest.mark.parametrize("seed", [2, 3])
def test_long_enumeration(program, seed):
    passes(program, "forward", seed, 3000)


@pytest.mark.native
def test_wide_grids(program):
    passes(program, "wide", cases=6)


@pytest.mark.native
def test_address_and_undefined_behaviour_sanitizer(toolkit, tmp_path):
    program = build(toolkit, tmp_path / "address", "address")
    passes(program, "forward", seed=5, cases=200)
    passes(program, "count", seed=5, cases=14)
    passes(program, "scale", seed=5, cases=100)
    passes(program, "host")


RACE = "the results are right in every order that threads are run in: only the sanitizer can see it"
# (file, its text with «what is right», wrong, the mode that must fail): what the emulation is there to find.
FAULTS = {
    "no barrier before the warps' sums are read": ("device.cuh", "«__syncthreads()»;\n  if (threadIdx.x < 32)", "void()", "float32"),
    "half of a warp is not summed": ("device.cuh", "warp_sums[threadIdx.x / 32] = «x»;", "x * (threadIdx.x != 64)", "float32"),
    "the divisor is read before it is there": ("forward.cuh", "«__syncthreads()»;\n  return {norm", "void()", "float32"),
    "a trip reaches beyond the end": ("forward.cuh", "«p + (kUnroll - 1) * kThreads >= packs»", "p >= packs", "float32"),
    "the last block has too many packs": ("forward.cuh", "«begin + per_block < numel ? per_block : numel - begin»", "per_block", "float32"),
    "the last element is left out": ("forward.cuh", "«last < elements»", "last + 1 < elements", "float32"),
    "a pack takes the next row for its own": ("forward.cuh", "before + i + «count» - row", "1", "float32"),
    "the gradient forgets the weight": ("forward.cuh", "static_cast<A>(«weight[u] * scale»)", "scale", "float32"),
    "rows of a second group": ("forward.cuh", "(«row - group * layout.inner»)", "row", "float32"),
    "a mask's true is 1": ("work.cuh", "«__ldg(problem.mask + row) == 0»", "__ldg(problem.mask + row) != 1", "float32"),
    "a mask's true is 1, where there is a mask alone": ("forward.cuh", "«__ldg(problem.mask + rows.first + row) == 0» ? 0.0", "__ldg(problem.mask + rows.first + row) != 1", "float32"),
    "rows that weigh nothing have a gradient": ("forward.cuh", "} else if («weight[u] == 0») {", "weight[u] < 0", "float32"),
    "more classes than are counted in a block": ("forward.cuh", "«all > kMostClasses ? all - kMostClasses : 0»", "0", "host"),
    "a row's number that is off in a block": ("device.cuh", "uint64_t{n << 1} * «magic»", "magic - 1", "host"),
    "a division that is off for large numbers": ("device.cuh", "<< 2, «magic») >> shift", "magic - 1", "host"),
    "16-byte loads at odd places": ("launch.cu", "«layout.inner_stride % count == 0»", "true", "float32"),
    "an error is left for the next call": ("device.cuh", "if («error != cudaSuccess») cudaGetLastError();", "false", "host"),
    "a failed launch goes unnoticed": ("launch.cu", "if («error != cudaSuccess») return error;\n  }\n  const Work", "false", "host"),
    "blocks' sums beyond the first of each thread": ("launch.cu", "«b < blocks»; b += kThreads", "b < blocks && b < kThreads", "wide32"),
    "rows' sums read beyond their number": ("forward.cuh", "«threadIdx.x < static_cast<unsigned>(work.row_sums_count)»", "true", "count32"),
    RACE: ("forward.cuh", "«work.partial[blockIdx.x] = total»", "*work.divisor_for_sum = norm.divisor, work.partial[blockIdx.x] = total", "float32"),
}  # fmt: skip


@pytest.fixture(scope="module")
def planted(toolkit, tmp_path_factory):
    return build(toolkit, tmp_path_factory.mktemp("planted") / "plain", only_float32=True, planted=True)


@pytest.mark.native
@pytest.mark.parametrize("name", [name for name in FAULTS if name != RACE])
def test_a_planted_fault_is_found(planted, name):
    number, mode = list(FAULTS).index(name) + 1, FAULTS[name][3]
    assert execute(planted, mode, cases=300, fault=number).returncode != 0, "the planted fault was not found"


@pytest.mark.native
@pytest.mark.parametrize("mode, cases", [("float32", 20), ("host", 1), ("count32", 1)])
def test_planted_faults_sleep(planted, mode, cases):
    """Nothing is found where none is awake, so what finds one does not find the planting."""
    passes(planted, mode, cases=cases)


@pytest.mark.native
def test_a_planted_race_is_found(toolkit, tmp_path):
    program = build(toolkit, tmp_path / "race", "thread", only_float32=True, planted=True)
    done = execute(program, "float32", seed=3, cases=100, fault=list(FAULTS).index(RACE) + 1)
    assert done.returncode != 0 and "data race" in done.stderr
