"""What ``benchmarks.gpu_suite`` runs for mixed precision: transformers' Trainer and ``akd-train --amp``, against float32.

Both train the tests' toys (tests/support) for a few epochs. The weights stay float32, and what mixed precision learns is
near what float32 learns.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import akd_ext

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"
NEAR = 0.05  # relative; bfloat16 rounds to 2^-9, and a few dozen steps add up


def trainer(device: str, folder: str) -> None:
    """The adapter's Trainer with ``bf16`` and ``fp16``."""
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("datasets") is None:
        print("transformers' Trainer: not installed here")
        return
    toy = importlib.import_module("trainer_fixture")
    torch.manual_seed(0)
    data = {
        "features": torch.randn(toy.SAMPLES, toy.FEATURES), "labels": torch.arange(toy.SAMPLES) % toy.CLASSES,
        "teacher_logits": torch.randn(toy.SAMPLES, toy.CLASSES),
    }  # fmt: skip
    learned = {}
    for precision in ("float32", "bf16", *(["fp16"] if device == "cuda" else [])):  # the Trainer has no fp16 on a CPU
        mixed = {} if precision == "float32" else {precision: True}
        settings = {"num_train_epochs": 4, "per_device_train_batch_size": 5, "use_cpu": device == "cpu"}
        found, _ = toy.train(folder, data, akd_ext.AnnealingKDLoss(3), **settings, **mixed)
        weights = torch.cat([parameter.detach().cpu().flatten() for parameter in found.model.parameters()])
        if weights.dtype != torch.float32:
            raise TypeError(f"{precision}: the weights became {weights.dtype}")
        learned[precision] = weights
    for precision, weights in learned.items():
        far = float((weights - learned["float32"]).norm() / learned["float32"].norm())
        near(f"transformers' Trainer, {precision}", far)


def akd_train(device: str, folder: str) -> None:
    losses = {}
    tiny_net = importlib.import_module("train_fixture").tiny_net
    torch.save(tiny_net(width=8).state_dict(), Path(folder) / "teacher.pt")
    for amp in ("none", "bf16", "fp16"):
        out = Path(folder) / amp
        command = [sys.executable, "-m", "akd_ext.train.cli", "--config", str(SUPPORT / "train_tiny.yaml")]
        command += ["--device", device, "--seed", "0", "--output_dir", str(out)]
        command += [] if amp == "none" else ["--amp", amp]
        path = os.pathsep.join([str(ROOT), str(SUPPORT)])  # train_tiny.yaml imports from there
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        epochs = json.loads((out / "results.json").read_text(encoding="utf-8"))["epochs"]
        losses[amp] = [epoch["train_loss"] for epoch in epochs]
    for amp, found in losses.items():
        far = max(abs(a - b) / b for a, b in zip(found, losses["none"], strict=True))
        near(f"akd-train, --amp {amp}", far)


def near(name: str, far: float) -> None:
    print(f"{name}: {far:.4f} from float32", flush=True)
    if not far <= NEAR:
        raise ArithmeticError(f"{name}: {far:.3f} from float32, at most {NEAR} is expected")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options = parser.parse_args(argv)
    sys.path.insert(0, str(SUPPORT))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer(options.device, folder)
        akd_train(options.device, folder)
    print("mixed precision learns what float32 learns")


if __name__ == "__main__":
    main()
