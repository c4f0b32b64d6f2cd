"""Everything that needs a GPU, in one command: python -m benchmarks.gpu_suite [--minutes 25] [--out DIR] [--data_dir DIR].

First what is useful within 8 minutes: builds the kernels, tries slices and weights, the loss of a linear layer's output, one case of
each kind of the kernel benchmark (printed beside what ``benchmarks.prediction`` predicted), and the op's numerics. Then all CUDA tests, the
whole kernel benchmark, mixed precision, the loss beside an all-reduce where two GPUs are, compute-sanitizer, the DRAM bytes that Nsight
Compute counts, the adapters, and, if time is left, one experiment: CIFAR-10, the ResNet rows of Table 1 with a tenth of the
epochs, where --data_dir holds the data, else the digits. Needs torch >= 2.11 with CUDA, nvcc, pytest and hypothesis;
no network. After every part ``suite.md`` and ``suite.json`` in ``--out`` say what is known so far, and ``<part>.log``
holds its output. A part that could not run is named there with the reason. Started again, it goes on with what has not passed yet.

Exit code: 0 every part ran and passed; 1 a part failed or could not run; 2 no CUDA device, nothing ran.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import prediction

ROOT = Path(__file__).resolve().parent.parent
PREDICTION = ROOT / "benchmarks" / "results" / "prediction-cuda.json"
DEVICE = "cuda"  # tests put the CPU in its place
FIRST_MINUTES = 8  # within which the parts that come first are done
ADAPTER_TESTS = "tests/adapters"
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
TESTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "op").glob("test_op*.py")) + [
    "tests/test_loss_module.py",
    "tests/test_reference.py",
    "tests/op/test_bare_kernel.py",
    "tests/linear/test_linear_topk.py",
]
# One block and many, every dtype, tails, odd alignment, masks, the captured graph: a sanitizer is 10 to 50 times slower.
SANITIZED = ("tests/op/test_op_numerics.py", "tests/op/test_op_layouts.py", "tests/op/test_op_bits.py")
SANITIZED_NAMES = "cuda and (test_shapes or test_many_blocks or test_mask or test_channels_last or of_autograd)"


@dataclasses.dataclass
class Outcome:
    status: str
    text: str
    seconds: float = 0.0


def subject() -> str:
    """What a result is of: the sources, as a hash, and the GPU."""
    digest = hashlib.sha256()
    for folder in ("csrc", "akd_ext", "benchmarks", "tests/op"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h", ".inc"):
                digest.update(path.read_bytes())
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return f"{digest.hexdigest()[:16]} on {gpu}"


class Suite:
    def __init__(self, out: Path, minutes: float, data_dir: Path | None = None):
        self.out, self.end, self.data_dir = out, time.monotonic() + minutes * 60, data_dir
        self.outcomes: dict[str, Outcome] = {}
        self.passed_before: dict[str, Outcome] = {}
        out.mkdir(parents=True, exist_ok=True)

    def go_on(self) -> None:
        """What passed in a run before, of the same sources and on the same GPU, is not run again."""
        try:
            record = json.loads((self.out / "suite.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if record.pop("of", None) == subject():
            outcomes = {name: Outcome(**outcome) for name, outcome in record.items()}
            self.passed_before = {name: outcome for name, outcome in outcomes.items() if outcome.status == PASSED}

    def left(self) -> float:
        return self.end - time.monotonic()

    def part(self, name: str, run: Callable[[], Outcome], least: float = 0, needs: tuple[str, ...] = ()) -> None:
        """Runs a part unless less than ``least`` seconds are left or a part that it ``needs`` has not passed."""
        if name in self.passed_before:
            self.outcomes[name] = self.passed_before[name]
            print(f"{name}: passed in the run before", flush=True)
            return self.write()
        missing = [other for other in needs if self.outcomes[other].status != PASSED]
        begin = time.monotonic()
        if missing:
            outcome = Outcome(NOT_RUN, f"it needs the part '{missing[0]}'")
        elif self.left() < least:
            outcome = Outcome(NOT_RUN, f"{max(self.left(), 0):.0f} s left, it takes about {least:.0f} s")
        else:
            print(f"--- {name} ({self.left():.0f} s left)", flush=True)
            try:
                outcome = run()
            except Exception as error:  # the next part may still run
                outcome = Outcome(FAILED, f"{type(error).__name__}: {error}")
        outcome.seconds = time.monotonic() - begin
        self.outcomes[name] = outcome
        print(f"{name}: {outcome.status}: {outcome.text}", flush=True)
        self.write()

    def write(self) -> None:
        lines = ["# GPU suite", "", "| part | result | seconds | |", "|---|---|---|---|"]
        for name, o in self.outcomes.items():
            lines.append(f"| {name} | {o.status} | {o.seconds:.0f} | {o.text.replace('|', '/')} |")
        (self.out / "suite.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        record = {name: dataclasses.asdict(outcome) for name, outcome in (self.passed_before | self.outcomes).items()}
        record["of"] = subject()
        (self.out / "suite.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def call(self, name: str, command: list[str], limit: float, **environment: str) -> tuple[int | None, str]:
        """Exit code (None: stopped at the limit) and output of a command run in the project's root; the log is kept."""
        limit = max(1.0, min(limit, self.left()))
        log = self.out / f"{name}.log"
        with log.open("w", encoding="utf-8", errors="replace") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
        return code, log.read_text(encoding="utf-8", errors="replace")


def verdict(code: int | None, text: str, good: str | None = None) -> Outcome:
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
    if code is None:
        return Outcome(FAILED, f"stopped: out of time; last line: {last}")
    if code:
        return Outcome(FAILED, f"exit code {code}; last line: {last}")
    return Outcome(PASSED, good or last)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def build(suite: Suite) -> Outcome:
    """In the source tree, for the GPU that is here (AKD_EXT_CUDA_ARCHS chooses others), and is it loaded?"""
    archs = os.environ.get("AKD_EXT_CUDA_ARCHS", "native")
    code, text = suite.call(
        "build", python("-m", "_build_backend.native"), 180, AKD_EXT_BUILD="cuda", AKD_EXT_CUDA_ARCHS=archs
    )
    if code != 0:
        return verdict(code, text)
    check = "import akd_ext, sys; print(akd_ext.backend('cuda'), akd_ext.load_report())"
    code, text = suite.call("load", python("-c", check + "; sys.exit(akd_ext.backend('cuda') != 'cuda')"), 120)
    return verdict(code, text)


def tests(suite: Suite) -> Outcome:
    found = [path for path in TESTS if (ROOT / path).exists()]
    command = python("-m", "pytest", "-q", "-m", "not native and (cuda or not slow)", *found)
    code, text = suite.call("tests", [*command, f"--junit-xml={suite.out / 'tests.xml'}"], suite.left() * 0.4)
    return verdict(code, text)


def sanitizer(suite: Suite, tool: str) -> Outcome:
    program = shutil.which("compute-sanitizer") or _beside_nvcc("compute-sanitizer")
    if program is None:
        return Outcome(NOT_RUN, "there is no compute-sanitizer on PATH or beside nvcc")
    command = [
        program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20",
        *python("-m", "pytest", "-q", "-p", "no:cacheprovider", *SANITIZED, "-k", SANITIZED_NAMES),
    ]  # fmt: skip
    # Without torch's caching every tensor is an allocation of its own, and its end is where the sanitizer sees it.
    code, text = suite.call(tool, command, suite.left() * 0.3, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    outcome = verdict(code, text)
    summary = [
        line.strip("= \n") for line in text.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line
    ]
    if summary:
        outcome.text = f"{summary[-1]}; {outcome.text}"
    elif outcome.status == PASSED:
        outcome = Outcome(FAILED, "the tests passed, but compute-sanitizer printed no summary")
    return outcome


def numerics(suite: Suite) -> Outcome:
    """The op against exact results: the part of ``tests`` that says most in a minute."""
    command = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *SANITIZED, "-k", DEVICE)
    return verdict(*suite.call("numerics", command, 90))


def kernels_quick(suite: Suite) -> Outcome:
    command = python("-m", "benchmarks.kernels", "--device", DEVICE, "--quick", "--out", str(suite.out))
    outcome = verdict(*suite.call("kernels_quick", command, 90), "kernels-cuda-part.md, predicted.md")
    beside_the_prediction(suite)
    return outcome


def kernels(suite: Suite) -> Outcome:
    minutes = max(1.0, suite.left() / 60 * 0.4)
    command = python(
        "-m", "benchmarks.kernels", "--device", DEVICE, "--minutes", f"{minutes:.1f}", "--out", str(suite.out)
    )
    code, text = suite.call("kernels", command, minutes * 60 * 1.5)
    aims = [line for line in text.splitlines() if line.startswith(("met ", "NOT met"))]
    good = f"{sum(line.startswith('met') for line in aims)} of {len(aims)} aims met: kernels-cuda.md, predicted.md"
    beside_the_prediction(suite)
    return verdict(code, text, good)


def beside_the_prediction(suite: Suite) -> None:
    """predicted.md: what was measured so far, a part that was cut short included, beside benchmarks/results/prediction-cuda.json."""
    found = next((path for name in ("", "-part") if (path := suite.out / f"kernels-cuda{name}.json").exists()), None)
    if found is None or not PREDICTION.exists():
        return
    measured, predicted = (json.loads(path.read_text(encoding="utf-8")) for path in (found, PREDICTION))
    lines = prediction.beside(measured["results"], predicted, torch.cuda.get_device_name(0))
    text = "\n".join(["# Measured beside predicted", "", *lines, ""])
    (suite.out / "predicted.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def overhead(suite: Suite) -> Outcome:
    code, text = suite.call(
        "overhead", python("-m", "benchmarks.overhead", "--device", "cuda", "--out", str(suite.out)), 180
    )
    return verdict(code, text, "overhead-cuda.md")


def dram(suite: Suite) -> Outcome:
    """Bytes that went over the memory bus, by Nsight Compute, against the count of 3 N."""
    program = shutil.which("ncu") or _beside_nvcc("ncu")
    if program is None:
        return Outcome(NOT_RUN, "there is no ncu on PATH or beside nvcc")
    command = [
        program, "--clock-control", "none", "--csv", "--print-units", "base", "--kernel-name", "regex:forward_kernel|scale_kernel",
        "--metrics", "dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum",
        *python("-m", "benchmarks.dram_target"),
    ]  # fmt: skip
    code, text = suite.call("dram", command, 300)
    if "ERR_NVGPUCTRPERM" in text:
        return Outcome(NOT_RUN, "this user may not read the GPU's performance counters (ERR_NVGPUCTRPERM)")
    rows = dram_rows(text)
    if code == 0 and rows:
        lines = [
            "# DRAM traffic of the large shapes",
            "",
            "| case | read | written | total | counted | ratio |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r[0]} | {r[1]:.4g} | {r[2]:.4g} | {r[1] + r[2]:.4g} | {r[3]:.4g} | {(r[1] + r[2]) / r[3]:.3f} |"
            for r in rows
        ]
        (suite.out / "dram.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        worst = max((r[1] + r[2]) / r[3] for r in rows)
        return Outcome(PASSED, f"at most {worst:.3f} of the counted bytes: dram.md")
    return verdict(code or 1, text)


def dram_rows(text: str) -> list[tuple[str, float, float, float]]:
    """(case, bytes read, bytes written, bytes counted), in the order benchmarks.dram_target ran them."""
    lines = text.splitlines()
    cases = [line.split("\t")[1:] for line in lines if line.startswith("case\t")]
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        return []
    launches: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(line for line in lines[head:] if line.startswith('"')):
        launches.setdefault(row["ID"], {})[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
    return [
        (name, values["dram__bytes_read.sum"], values["dram__bytes_write.sum"], float(counted))
        for (name, counted), values in zip(cases, launches.values(), strict=False)
    ]


def experiment(suite: Suite) -> Outcome:
    missing = [name for name in ("torchdistill", "torchvision", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        return Outcome(NOT_RUN, f"not installed here: {', '.join(missing)}")
    folder = str(suite.out / "experiment")
    table = ["digits", "--seeds", "1"]
    if suite.data_dir is not None:
        table = ["cifar10-resnet", "--data_dir", str(suite.data_dir), "--epochs_scale", "0.1"]
    command = python("-m", "akd_ext.reproduce.cli", *table, "--device", "cuda")
    code, text = suite.call("experiment", [*command, "--output_dir", folder], suite.left())
    return verdict(code, text)


def small() -> list[str]:
    return [] if DEVICE == "cuda" else ["--small"]


def rows_and_weights(suite: Suite) -> Outcome:
    """Slices, weights and a divisor against float64, with times: benchmarks.rows_target."""
    command = python("-m", "benchmarks.rows_target", "--device", DEVICE, *small())
    return verdict(*suite.call("rows", command, 45))


def linear(suite: Suite) -> Outcome:
    """The loss of a linear layer's output against float64, and its time beside plain PyTorch's: benchmarks.linear_target."""
    command = python("-m", "benchmarks.linear_target", "--device", DEVICE, *small())
    return verdict(*suite.call("linear", command, 75))


def amp(suite: Suite) -> Outcome:
    """transformers' Trainer and akd-train with --amp, against float32: benchmarks.amp_target."""
    if importlib.util.find_spec("torchdistill") is None:
        return Outcome(NOT_RUN, "not installed here: torchdistill")
    return verdict(*suite.call("amp", python("-m", "benchmarks.amp_target", "--device", DEVICE), 180))


def adapters(suite: Suite) -> Outcome:
    if importlib.util.find_spec("transformers") is None:
        return Outcome(NOT_RUN, "not installed here: transformers")
    command = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", ADAPTER_TESTS)
    return verdict(*suite.call("adapters", command, suite.left() * 0.5))


def two_gpus(suite: Suite) -> Outcome:
    if torch.cuda.device_count() < 2:
        return Outcome(NOT_RUN, f"{torch.cuda.device_count()} GPU here, it takes two")
    launcher = python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [*launcher, "-m", "benchmarks.rows_target", "--device", DEVICE, "--beside_all_reduce"]
    return verdict(*suite.call("two_gpus", command, 120))


def _beside_nvcc(name: str) -> str | None:
    nvcc = shutil.which("nvcc")
    places = [Path(nvcc).resolve().parent] if nvcc else []
    places += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    return next((str(place / name) for place in places if (place / name).exists()), None)


# (name, what runs it, seconds that it takes at least, what must have passed). The limits of the first five add up to FIRST_MINUTES.
PARTS: tuple[tuple[str, Callable[[Suite], Outcome], float, tuple[str, ...]], ...] = (
    ("build", build, 30, ()),
    ("rows", rows_and_weights, 20, ("build",)),
    ("linear", linear, 20, ("build",)),
    ("kernels_quick", kernels_quick, 60, ("build",)),
    ("numerics", numerics, 30, ("build",)),
    ("tests", tests, 60, ("build",)),
    ("kernels", kernels, 120, ("build",)),
    ("amp", amp, 60, ("build",)),
    ("two_gpus", two_gpus, 30, ("build",)),
    ("memcheck", lambda suite: sanitizer(suite, "memcheck"), 120, ("build",)),
    ("racecheck", lambda suite: sanitizer(suite, "racecheck"), 120, ("build",)),
    ("overhead", overhead, 60, ("build",)),
    ("dram", dram, 60, ("build",)),
    ("adapters", adapters, 60, ("build",)),
    ("experiment", experiment, 180, ("build",)),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25, help="the whole run takes about this long at most (25)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the results")
    parser.add_argument("--data_dir", type=Path, help="where cifar-10-batches-py is, for the experiment")
    parser.add_argument("--again", action="store_true", help="run again what passed in a run before")
    parser.add_argument("--parts", default="", help=f"comma-separated, of: {', '.join(name for name, *_ in PARTS)}")
    options = parser.parse_args(argv)
    chosen = set(options.parts.split(",")) if options.parts else {name for name, *_ in PARTS}
    if unknown := chosen - {name for name, *_ in PARTS}:
        parser.error(f"--parts: unknown: {', '.join(sorted(unknown))}")
    data_dir = options.data_dir and options.data_dir.resolve()
    if data_dir and not (data_dir / "cifar-10-batches-py").is_dir():
        parser.error(f"--data_dir: there is no folder cifar-10-batches-py in '{data_dir}'")
    suite = Suite(options.out.resolve(), options.minutes, data_dir)
    if not options.again:
        suite.go_on()
    if not torch.cuda.is_available():
        why = "no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
        for name, *_ in PARTS:
            if name in chosen:
                suite.outcomes[name] = Outcome(NOT_RUN, why)
        suite.write()
        print(f"{why}: parts {', '.join(suite.outcomes)} not run", file=sys.stderr)
        return 2
    for name, run, least, needs in PARTS:
        if name in chosen:
            suite.part(name, lambda run=run: run(suite), least, tuple(other for other in needs if other in chosen))
    print((suite.out / "suite.md").read_text(encoding="utf-8"))
    return 0 if all(outcome.status == PASSED for outcome in suite.outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
