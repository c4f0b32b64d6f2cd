"""What ``benchmarks.gpu_suite`` runs for slices, weights and divisors: right against float64, and how long it takes.

With ``--beside_all_reduce``, under torchrun with two processes: the loss runs on one stream while an all-reduce runs on another.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

import akd_ext

SHAPE = (8, 129, 32064)


def losses(student: Tensor, teacher: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Name -> the loss of it; all but the first are slices, weighted, or divided by a tensor."""
    loss = akd_ext.annealed_mse_loss
    rows = torch.linspace(0, 2, student[..., 0].numel(), device=student.device).view(student.shape[:-1])
    divisor = torch.tensor(1000.0, device=student.device)
    shifted = student[:, :-1], teacher[:, :-1]
    cut = student[..., :32000], teacher[..., :32000]
    return {
        "contiguous": lambda: loss(student, teacher, 0.7),
        "logits[:, :-1]": lambda: loss(*shifted, 0.7),
        "logits[..., :32000]": lambda: loss(*cut, 0.7),
        "weight": lambda: loss(student, teacher, 0.7, weight=rows),
        "weight and mask": lambda: loss(student, teacher, 0.7, weight=rows, mask=rows > 0.5),
        "divisor": lambda: loss(student, teacher, 0.7, reduction="sum", divisor=divisor),
        "slice, weight, divisor": lambda: loss(*cut, 0.7, weight=rows, divisor=divisor),
    }


def check(device: str, dtype: torch.dtype, shape: tuple[int, ...] = SHAPE) -> None:
    student, teacher = (torch.randn(shape, device=device).to(dtype) for _ in "st")
    student.requires_grad_()
    exact = losses(student.detach().double(), teacher.double())
    for name, one in losses(student, teacher).items():
        (gradient,) = torch.autograd.grad(one(), student)
        want = exact[name]()
        torch.testing.assert_close(one().detach().double(), want, rtol=2e-6, atol=0, msg=lambda m, n=name: f"{n}: {m}")
        if not bool(gradient.isfinite().all()):
            raise ArithmeticError(f"{name}: the gradient is not finite")
        print(f"{str(dtype).removeprefix('torch.'):9s} {name:24s} {milliseconds(one, device):8.3f} ms", flush=True)


def milliseconds(one: Callable[[], Tensor], device: str) -> float:
    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    times = []
    for _ in range(5):
        wait()
        begin = time.perf_counter()
        one().backward()
        wait()
        times.append(time.perf_counter() - begin)
    return sorted(times)[2] * 1e3


def beside_a_collective(device: str) -> None:
    """Under torchrun: the loss runs on one stream while an all-reduce of half a GiB runs on another. A CPU tries the program."""
    distributed = importlib.import_module("torch.distributed")
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    size, rows = (1 << 27, 512) if device == "cuda" else (1 << 16, 4)
    traffic = torch.ones(size, device=device)
    student, teacher = (torch.randn(rows, 32000, device=device) for _ in "st")
    want = akd_ext.annealed_mse_loss(student, teacher, 0.7)
    for _ in range(20):
        work = distributed.all_reduce(traffic, op=distributed.ReduceOp.MAX, async_op=True)
        got = akd_ext.annealed_mse_loss(student, teacher, 0.7)
        work.wait()
        if not torch.equal(got, want):
            raise ArithmeticError(f"beside an all-reduce the loss is {got.item()}, alone {want.item()}")
    distributed.destroy_process_group()
    print("20 losses beside 20 all-reduces: the same bits as alone")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a few rows, to try the program itself")
    parser.add_argument("--beside_all_reduce", action="store_true", help="under torchrun: beside an all-reduce")
    options = parser.parse_args(argv)
    if options.beside_all_reduce:
        return beside_a_collective(options.device)
    shape = (2, 5, 32064) if options.small else SHAPE
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check(options.device, dtype, shape)


if __name__ == "__main__":
    main()
