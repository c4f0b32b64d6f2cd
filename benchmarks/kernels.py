"""Speed and memory of the op against eager PyTorch, torch.compile and the memory's own limit.

    python -m benchmarks.kernels                  # everything this machine can run, about 10 minutes on two cores
    python -m benchmarks.kernels --quick          # one of each kind, a minute
    python -m benchmarks.kernels --only '128x10 float32'

Prints a table and writes ``benchmarks/results/kernels-<device>.{md,json,png}``. Asserts no time. An incomplete run
(``--quick``, ``--only``) writes to ``kernels-<device>-part.*`` so that it never replaces a whole one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import torch

import akd_ext
from benchmarks import machine, report
from benchmarks.cases import FLOOR, Case, cases
from benchmarks.measure import measure

RESULTS = Path(__file__).resolve().parent / "results"
COMPILE_SECONDS = 5.0  # what compiling one case takes, set aside before the rest of the time is shared out


def main(argv: list[str] | None = None) -> int:
    options = _parse(argv)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured", file=sys.stderr)
        return 2
    if akd_ext.backend(device) == "reference" and not options.allow_reference:
        print(
            f"no kernel runs on {device} here (akd-info says why), so plain PyTorch would pass for ours: nothing was "
            "measured; --allow-reference does it all the same",
            file=sys.stderr,
        )
        return 2
    wanted = [case for case in cases(device, options.quick) if re.search(options.only, str(case))]
    if not wanted:
        print(f"--only {options.only!r} names no case", file=sys.stderr)
        return 2
    whole = not options.quick and not options.only and options.compile
    facts, notes = machine.describe(device), []
    load = os.getloadavg()[0]
    if load > 0.5:
        notes.append(f"The machine was not idle: load average {load:.2f} before the run. Absolute times are too long.")
    for label, value in facts.items():
        print(f"{label}: {value}")
    results: report.Results = {}
    start, stalls = time.monotonic(), machine.compaction_stalls()
    for index, case in enumerate(wanted):
        left = options.minutes * 60 - (time.monotonic() - start)
        seconds = max(_share(wanted[index:], left, options.compile), min(1.0, options.minutes))
        try:
            results[case] = measure(case, device, seconds, options.compile)
        except Exception as error:  # out of memory, most likely: the other cases still count
            notes.append(f"{case} was not measured: {type(error).__name__}: {str(error).splitlines()[0]}"[:300])
            print(notes[-1], file=sys.stderr)
        else:
            _print(case, results[case])
        if stalls is not None:
            facts["waits for defragmentation during the run"] = str(machine.compaction_stalls() - stalls)
        _write(results, facts, device, notes, options.out, whole, last=case is wanted[-1])
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes\n")
    for aim in report.aims(results, device):
        print({True: "met    ", False: "NOT met", None: "   -   "}[aim.met], aim.text, "|", aim.measured)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--quick", action="store_true", help="one case of each kind")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name (see the table) matches")
    parser.add_argument(
        "--minutes", type=float, default=None, help="rough length of the run (default 9; 1 with --quick)"
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument(
        "--allow-reference", action="store_true", help='go on where no kernel runs: "ours" is then plain PyTorch'
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(argv)
    if options.minutes is None:
        options.minutes = 1.0 if options.quick else 9.0
    return options


def _share(left: list[Case], seconds: float, compiled: bool) -> float:
    """Seconds of measuring for the first of ``left``; a large case weighs as much as ten small ones."""
    weights = [10.0 if case.is_large else 1.0 for case in left]
    seconds -= COMPILE_SECONDS * len(left) if compiled else 0
    return seconds * weights[0] / sum(weights)


def _print(case: Case, row: dict[str, report.Result]) -> None:
    print(f"\n{case}")
    for name, result in row.items():
        if result.failure:
            print(f"  {name:30s} did not run: {result.failure}")
            continue
        vs_eager, of_floor = (report._ratio(row, base, name) for base in (report.EAGER, FLOOR))
        print(
            f"  {name:30s} {result.median * 1e6:12.1f} us  vs eager {vs_eager:22s} of floor {of_floor:20s}"
            f" {case.moved_bytes / result.median / 1e9:8.2f} GB/s  memory {result.peak_bytes / case.tensor_bytes:6.2f}",
            flush=True,
        )


def _write(results, facts, device, notes, folder: Path, whole: bool, last: bool) -> None:
    """After every case, so that a run that is cut short leaves what it knows."""
    name = f"kernels-{device}" if whole and last else f"kernels-{device}-part"
    folder.mkdir(parents=True, exist_ok=True)
    text = report.markdown(results, facts, device, notes).replace(f"kernels-{device}.png", f"{name}.png")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / f"{name}.json").write_text(report.as_json(results, facts, device, notes), encoding="utf-8")
    if last:
        try:
            report.plot(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), folder / f"{name}.png")
        except ImportError as error:
            print(f"no plot: {error}", file=sys.stderr)
        if whole:
            for suffix in ("md", "json"):
                (folder / f"kernels-{device}-part.{suffix}").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
