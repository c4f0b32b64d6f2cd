"""How long the CUDA kernels should take, before anybody measured: python -m benchmarks.prediction [--out DIR].

A model that can be wrong. It knows four things and no more:

- bytes: 2 N to read, N to write with a gradient; scaling reads and writes N;
- instructions: those that a warp issues for a trip, two packs a thread of each tensor (3,072 bytes with the gradient), times the
  trips of all warps, at one instruction a clock for each of the four schedulers of a multiprocessor. ``benchmarks.sass`` counts them in
  the machine code: the shortest way around the main loop that reads, computes and stores everything. What only some packs need
  (they go on in the next row, or the mask drops them) is not on it, nor are weights, for ``row-strided``;
- Little's law: loads in flight (blocks that run at once x 512 threads x the bytes of a trip) over the latency of memory is
  the most that can be read in a second;
- fixed times: a launch that fills the GPU, and a second small one where the blocks' sums have to be added.

The time is the fixed part plus the longest of the three. Needs nvcc and cuobjdump, no GPU; writes ``prediction-cuda.{md,json}``.
``benchmarks.gpu_suite`` prints what it measures beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import resources, sass

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = ((128, 10), (256, 1000), (1024, 21843), (2048, 32000), (8192, 128256))
SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}
KINDS = ("forward", "forward+backward", "masked", "row-strided", "scale")
THREADS, WARPS = 512, 16
LAUNCH_SECONDS, SECOND_LAUNCH_SECONDS = 3e-6, 2e-6  # the first: start, one trip to memory and back, the block's sum
REACHED = 0.92  # of the data sheet's bandwidth, by the best kernels
KERNEL = {"scale": "scale {0}, {1} elements", "masked": "forward {0} x {0}, {1} elements, mask", "row-strided": "forward {0} x {0}, {1} elements, rows"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class GPU:
    """From the data sheets, latencies as microbenchmarks have them."""

    name: str
    arch: str
    multiprocessors: int
    threads: int  # that fit on a multiprocessor
    clock: float  # Hz
    bandwidth: float  # bytes a second
    latency: float  # seconds, of memory


GPUS = (
    GPU("H100", "sm_90", 132, 2048, 1.75e9, 3.35e12, 0.65e-6),
    GPU("H200", "sm_90", 132, 2048, 1.75e9, 4.8e12, 0.70e-6),
    GPU("A100", "sm_80", 108, 2048, 1.41e9, 2.04e12, 0.55e-6),
    GPU("RTX 4090", "sm_89", 128, 1536, 2.52e9, 1.01e12, 0.55e-6),
    GPU("B200", "sm_100", 148, 2048, 1.85e9, 8.0e12, 0.80e-6),
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    registers: int
    instructions: dict[str, int]  # of a trip, by kind


def trips(code: list[sass.Instruction], name: str) -> dict[str, int]:
    """Instructions of a trip for the kinds that run the kernel of this name. See ``sass.trip``.

    An element is multiplied by phi, squared, and for the gradient multiplied again.
    """
    found = {}
    for kind in KINDS:
        for dtype, size in SIZES.items():
            count = 16 // size
            if name != kernel_name(kind, dtype):
                continue
            loads, stores, products = {"forward": (4, 0, 4 * count), "scale": (1, 1, count)}.get(
                kind, (4, 2, 6 * count)
            )
            found[kind] = sass.trip(code, loads, stores, products)
    return found


def kernel_name(kind: str, dtype: str) -> str:
    return KERNEL.get(kind, "forward {0} x {0}, {1} elements").format(dtype, 16 // SIZES[dtype])


def kernels(arch: str) -> dict[str, Kernel]:
    """Every kernel by its readable name."""
    found = {}
    for source in sorted((resources.ROOT / "csrc" / "cuda").glob("*.cu")):
        if source.stem == "forward_float64":
            continue
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernels.cubin"
            reports = resources.reports(resources.compile_cubin(source, arch, cubin))
            command = [resources.tool("cuobjdump"), "--dump-sass", str(cubin)]
            code = sass.functions(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for name, (registers, _, _) in reports.items():
            readable = resources.readable(name)
            found[readable] = Kernel(registers, trips(code[name], readable))
    return found


def cut(numel: int, count: int) -> tuple[int, int]:
    """(tiles, blocks) of the forward kernel: plan_forward in csrc/cuda/launch.cu."""
    tiles = max(math.ceil(numel / (THREADS * 2 * count)), 1)
    per_block = 4 if tiles <= 4 else min(max(tiles // 1024, 1), 16)
    return tiles, math.ceil(tiles / per_block)


def predict(gpu: GPU, kernel: Kernel, shape: tuple[int, int], size: int, kind: str) -> dict[str, float]:
    """Seconds, what decides them, and the bytes and instructions behind them."""
    numel, count = shape[0] * shape[1], 16 // size
    tensors = {"forward": 2, "scale": 2}.get(kind, 3)
    read = 1 if kind == "scale" else 2
    if kind == "scale":
        trips, blocks, packs = math.ceil(numel / (THREADS * count)), 0, 1
        blocks = min(trips, 2048)
    else:
        (trips, blocks), packs = cut(numel, count), 2
    per_multiprocessor = min(gpu.threads // THREADS, 65536 // (math.ceil(kernel.registers / 8) * 8 * THREADS))
    together = min(blocks, gpu.multiprocessors * per_multiprocessor)
    in_flight = together * THREADS * packs * read * 16
    traffic = tensors * numel * size
    reached = min(REACHED * gpu.bandwidth, in_flight / gpu.latency * tensors / read)
    busy = min(blocks, gpu.multiprocessors)
    instructions = kernel.instructions[kind]
    issue = trips * WARPS * instructions / (busy * 4 * gpu.clock)
    fixed = LAUNCH_SECONDS + (SECOND_LAUNCH_SECONDS if kind != "scale" and blocks > 1 else 0)
    seconds = fixed + max(traffic / reached, issue)
    limits = {"memory": traffic / reached, "instructions": issue, "launches": fixed}
    bound = max(limits, key=limits.get)
    if bound == "memory" and reached < REACHED * gpu.bandwidth:
        bound = "loads in flight"
    return {
        "seconds": seconds, "fraction_of_dram_peak": traffic / seconds / gpu.bandwidth, "bound": bound, "bytes": traffic,
        "instructions_a_trip": instructions, "bytes_in_flight": in_flight,
        "bytes_in_flight_wanted": gpu.bandwidth * gpu.latency,
    }  # fmt: skip


def predict_all() -> list[dict]:
    compiled = {arch: kernels(arch) for arch in dict.fromkeys(gpu.arch for gpu in GPUS)}
    rows = []
    for gpu in GPUS:
        for kind in KINDS:
            for dtype, size in SIZES.items():
                kernel = compiled[gpu.arch][kernel_name(kind, dtype)]
                for shape in SHAPES:
                    row = {"gpu": gpu.name, "kernel": kind, "dtype": dtype, "shape": shape}
                    rows.append(row | {"registers": kernel.registers} | predict(gpu, kernel, shape, size, kind))
    return rows


def markdown(rows: list[dict]) -> str:
    lines = ["# Predicted, not measured: the CUDA kernels", "", *(__doc__ or "").split("\n\n", 1)[1].splitlines(), ""]
    lines += [
        "Microseconds, in brackets the fraction of the data sheet's bandwidth, and what decides: m memory, l too few loads"
    ]
    lines += ["in flight, i instructions, f the fixed times of the launches.", ""]
    letter = {"memory": "m", "loads in flight": "l", "instructions": "i", "launches": "f"}
    for gpu in GPUS:
        wanted = gpu.bandwidth * gpu.latency / gpu.multiprocessors / 1024
        lines += [
            f"## {gpu.name}: {gpu.bandwidth / 1e12:.2f} TB/s, {wanted:.0f} KiB wanted in flight a multiprocessor",
            "",
        ]
        lines += ["| kernel | registers | instructions a trip | " + " | ".join(f"{a} x {b}" for a, b in SHAPES) + " |"]
        lines += ["|---" * (3 + len(SHAPES)) + "|"]
        mine = [row for row in rows if row["gpu"] == gpu.name]
        for kind in KINDS:
            for dtype in SIZES:
                cells = [row for row in mine if (row["kernel"], row["dtype"]) == (kind, dtype)]
                first = cells[0]
                text = (
                    f"{c['seconds'] * 1e6:.1f} ({c['fraction_of_dram_peak']:.2f} {letter[c['bound']]})" for c in cells
                )
                lines.append(
                    f"| {kind} {dtype} | {first['registers']} | {first['instructions_a_trip']} | {' | '.join(text)} |"
                )
        lines.append("")
    return "\n".join(lines)


def beside(measured: list[dict], predicted: list[dict], gpu_name: str) -> list[str]:
    """Lines of a table: what ``benchmarks.kernels`` measured for ours, and what was predicted for this GPU."""
    gpu = next((gpu for gpu in sorted(GPUS, key=lambda gpu: -len(gpu.name)) if gpu.name in gpu_name), None)
    if gpu is None:
        return [f"There is no prediction for '{gpu_name}', only for {', '.join(gpu.name for gpu in GPUS)}."]
    short = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    found = {(r["kernel"], r["dtype"], tuple(r["shape"])): r for r in predicted if r["gpu"] == gpu.name}
    lines = [
        "| case | measured, us | predicted, us | measured / predicted | predicted bound |",
        "|---|---|---|---|---|",
    ]
    for record in measured:
        key = record["direction"], short.get(record["dtype"]), tuple(record["shape"])
        if record["contender"] != "ours, float phi" or "median_seconds" not in record or key not in found:
            continue
        guess, took = found[key], record["median_seconds"]
        lines.append(
            f"| {key[2][0]}x{key[2][1]} {key[1]} {key[0]} | {took * 1e6:.1f} | {guess['seconds'] * 1e6:.1f} "
            f"| {took / guess['seconds']:.2f} | {guess['bound']} |"
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for prediction-cuda.{md,json}")
    options = parser.parse_args(argv)
    rows = predict_all()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "prediction-cuda.md").write_text(markdown(rows), encoding="utf-8")
    (options.out / "prediction-cuda.json").write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
