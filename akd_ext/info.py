"""``akd-info``, or ``python -m akd_ext.info``: which kernels run here, why not the others, and the versions a bug report needs."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from pathlib import Path

import torch

from akd_ext.op import library

BUILD = library.FOLDER / "build.json"


def info() -> dict[str, dict[str, str]]:
    """What the command prints: section -> name -> text. Needs no kernel, no GPU and no network.

    >>> sorted(info())
    ['backend', 'build', 'machine', 'versions', 'why not']
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a kernel that does not load warns; here the reason is in the report
        import akd_ext
    return {
        "backend": {
            "cpu tensors": akd_ext.backend("cpu"),
            "cuda tensors": akd_ext.backend("cuda"),
            **({"kernels from": str(library.FOLDER)} if library.FOLDER != library.OWN else {}),
        },
        "why not": akd_ext.load_report() or {"-": "every kernel is active"},
        "versions": {
            "akd_ext": f"{akd_ext.__version__} in {Path(akd_ext.__file__).parent}",
            "torch": torch.__version__,
            "torch's CUDA": torch.version.cuda or "none",
            "python": f"{platform.python_version()} ({platform.python_implementation()})",
        },
        "build": _build_section(),
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu(),
            "cpu capability": torch.backends.cpu.get_cpu_capability(),
            "threads": str(torch.get_num_threads()),
            **_gpus(),
        },
    }


def text(report: dict[str, dict[str, str]]) -> str:
    """``info()`` as the command shows it: a line per entry, names in one column."""
    lines = []
    for section, entries in report.items():
        lines += [section, *(f"  {name:<16}{value}" for name, value in entries.items())]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="akd-info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    args = parser.parse_args(argv)
    report = info()
    print(json.dumps(report, indent=2) if args.json else text(report))
    return 0


def _read_build() -> dict:
    try:
        return json.loads(BUILD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _build_section() -> dict[str, str]:
    build = _read_build()
    if not build:
        return {"-": "no build.json: nothing was built into this tree (pip install -e . builds)"}
    entries = {"AKD_EXT_BUILD": build["mode"], "torch": build["torch"] or "none"}
    for name in ("cpu", "cuda"):
        kernel = build[name]
        entries[f"{name} kernel"] = kernel["compiler"] if kernel["built"] else f"not built: {kernel['why_not']}"
        if kernel["built"]:
            entries[f"{name} flags"] = " ".join(kernel["flags"])
    if build["cuda"]["built"]:
        entries["cuda archs"] = " ".join(build["cuda"]["archs"])
    return entries


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {"gpu": "none visible"}
    found = {}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found[f"gpu {index}"] = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
    return found


if __name__ == "__main__":
    sys.exit(main())
