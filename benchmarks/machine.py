"""What a reader needs to judge a number: hardware, versions, load, date, command, commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

import akd_ext

ROOT = Path(__file__).resolve().parent.parent


def describe(device: str) -> dict[str, str]:
    """Label -> value, in the order to print. Knows no host names and no paths."""
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "commit": _commit(),
        "CPU": f"{_cpu()}, {os.cpu_count()} cores, last-level cache {llc_bytes('cpu') / 2**20:.0f} MiB",
        "threads": str(torch.get_num_threads()),
        "load average before": " ".join(f"{x:.2f}" for x in os.getloadavg()),
        "huge pages": _huge_pages(),
        "torch": f"{torch.__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}",
        "kernel": akd_ext.backend(device),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["GPU"] = (
            f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
            f"{properties.total_memory / 2**30:.0f} GiB, L2 {llc_bytes('cuda') / 2**20:.0f} MiB, "
            f"driver {_driver()}, CUDA {torch.version.cuda}"
        )
    return facts


def llc_bytes(device: str) -> int:
    """Size of the last cache before memory; 32 MiB where the system does not tell."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20}.get(text[-1], 1))
    return max(sizes, default=32 * 2**20)


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).name


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = values.get("flags", "").split()
    best = next((name for name in ("avx512bw", "avx2", "sse2") if name in flags), platform.machine())
    return f"{values.get('model name', platform.machine())} (family {values.get('cpu family')}, {best})"


def compaction_stalls() -> int | None:
    """How often anybody on this system has waited for memory to be defragmented, since it started; None: not known."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("compact_stall ")), None)


def _huge_pages() -> str:
    try:
        enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip()
    except OSError:
        return "unknown"
    return f"{enabled}, THP_MEM_ALLOC_ENABLE={os.environ.get('THP_MEM_ALLOC_ENABLE', '0')} (PyTorch's own tensors)"


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        dirty = git("status", "--porcelain", "--", "akd_ext/*.py", "csrc", "benchmarks/*.py").strip()
        return git("rev-parse", "--short", "HEAD").strip() + (" with local changes" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
