"""Registers, spills and memory instructions of every CUDA kernel: python -m benchmarks.resources [--arch sm_90].

Compiles ``csrc/cuda/*.cu`` with nvcc, reads ptxas' report, and disassembles with cuobjdump (the toolkit's, or the one
in the triton package). Needs no GPU. Prints a markdown table: the one in ``csrc/README.md``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-Xptxas", "-v", "-cubin"]
TYPES = {"f": "fp32", "d": "fp64", "13__nv_bfloat16": "bf16", "6__half": "fp16"}
COUNTED = ("LDG.E.128", "STG.E.128", "LDG", "STG", "LDL", "STL")


def tool(name: str) -> str:
    nvcc = shutil.which("nvcc")
    places = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    places += [Path(nvcc).resolve().parent] if nvcc else []
    if (spec := importlib.util.find_spec("triton")) is not None and spec.origin:
        places.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    found = shutil.which(name) or next((str(place / name) for place in places if (place / name).exists()), None)
    if found is None:
        raise FileNotFoundError(f"there is no {name}: not on PATH, in CUDA_HOME or in the triton package")
    return found


def compile_cubin(source: Path, arch: str, cubin: Path) -> str:
    """ptxas' report."""
    command = [tool("nvcc"), *FLAGS, f"-arch={arch}", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stderr + done.stdout


def reports(text: str) -> dict[str, tuple[int, int, int]]:
    """Mangled name -> registers, bytes of stack frame, bytes of spills."""
    found = {}
    pattern = (
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    for name, stack, stores, loads, registers in re.findall(pattern, text, re.DOTALL):
        found[name] = int(registers), int(stack), int(stores) + int(loads)
    return found


def instructions(sass: str) -> dict[str, dict[str, int]]:
    """Mangled name -> how often each of COUNTED occurs; plain LDG and STG are the narrower ones."""
    found: dict[str, dict[str, int]] = {}
    counts: dict[str, int] = {}
    for line in sass.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            counts = found.setdefault(match[1], dict.fromkeys(COUNTED, 0))
        elif match := re.search(r"\s(LDG|STG|LDL|STL)(\.\S*)?\s", line):
            wide = f"{match[1]}.E.128"
            counts[wide if wide in COUNTED and ".128" in (match[2] or "") else match[1]] += 1
    return found


def readable(name: str) -> str:
    """_ZN..14forward_kernelIfNS..Li4EE.. -> forward fp32 x fp32, 16 bytes."""
    kernel = next(
        (word for word in ("forward_kernel", "row_sums_kernel", "finish_kernel", "scale_kernel") if word in name), name
    )
    arguments = name.split(kernel, 1)[1] if kernel in name else ""
    # S<n>_ repeats a type named before: here always the first one.
    types = [TYPES.get(word, "same") for word in re.findall(r"(?<=I)[fd]|(?<=[fd])[fd](?=Li)|13__nv_bfloat16|6__half|S\w*_(?=Li)|(?<=16)[fd]|(?<=half)[fd]", arguments.split("EE")[0])]  # fmt: skip
    types = [types[0] if word == "same" else word for word in types]
    width = re.search(r"Li(\d+)E", arguments)
    path = "" if width is None else ", one element" if width[1] == "1" else f", {width[1]} elements"
    rows = ", mask" if "PathE1E" in arguments else ", rows" if "PathE2E" in arguments else ""
    return f"{kernel.removesuffix('_kernel')} {' x '.join(types)}{path}{rows}".strip()


def compiled(arch: str) -> tuple[dict[str, tuple[int, int, int]], dict[str, dict[str, int]]]:
    """``reports`` and ``instructions`` of every kernel."""
    resources, mix = {}, {}
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernels.cubin"
            resources |= reports(compile_cubin(source, arch, cubin))
            command = [tool("cuobjdump"), "--dump-sass", str(cubin)]
            mix |= instructions(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return resources, mix


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_90", help="as nvcc names it: sm_80, sm_90, ...")
    options = parser.parse_args(argv)
    resources, mix = compiled(options.arch)
    print(f"| {options.arch} | registers | stack, spills | 16-byte loads / stores | narrower loads / stores | local |")
    print("|---|---|---|---|---|---|")
    for name, (registers, stack, spills) in sorted(resources.items(), key=lambda item: readable(item[0])):
        n = mix.get(name, dict.fromkeys(COUNTED, 0))
        print(
            f"| {readable(name)} | {registers} | {stack}, {spills} | {n['LDG.E.128']} / {n['STG.E.128']} "
            f"| {n['LDG']} / {n['STG']} | {n['LDL'] + n['STL']} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
