"""What ``benchmarks.gpu_suite`` runs for the loss of a linear layer's output: right against float64, and how long it takes.

Forward and backward, hidden states and head both learn. Plain is PyTorch with the logits of all tokens in bfloat16.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import akd_ext

PHI = 0.7
WAYS = ("chunked", "gram")
# Of a gradient, by its norm. float32: sums of about a thousand products; bfloat16: a gradient is rounded once, to 2^-9.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 4e-3}


class Size(NamedTuple):
    tokens: int
    hidden: int
    teacher_hidden: int
    classes: int


CHECKED = Size(256, 64, 96, 1000)
TIMED, TIMED_SMALL = Size(8192, 1024, 1024, 131072), Size(64, 16, 16, 500)


def inputs(size: Size, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Hidden states and head of the student, which learn, and of the teacher."""
    torch.manual_seed(0)
    shapes = [(size.tokens, size.hidden), (size.classes, size.hidden)]
    shapes += [(size.tokens, size.teacher_hidden), (size.classes, size.teacher_hidden)]
    made = [torch.randn(shape, device=device).div(shape[1] ** 0.25).to(dtype) for shape in shapes]
    return [tensor.requires_grad_(i < 2) for i, tensor in enumerate(made)]


def plain(student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor) -> Tensor:
    with torch.no_grad():
        target = F.linear(teacher, teacher_head) * PHI
    return F.mse_loss(F.linear(student, head), target)


def ours(way: str) -> Callable[..., Tensor]:
    return functools.partial(akd_ext.linear_annealed_mse_loss, phi=PHI, implementation=way)


def check(device: str) -> None:
    for dtype, bound in BOUNDS.items():
        given = inputs(CHECKED, dtype, device)
        exact = [tensor.detach().double().requires_grad_(i < 2) for i, tensor in enumerate(given)]
        want = plain(*exact)
        wanted = [want.detach(), *torch.autograd.grad(want, exact[:2])]
        for way in WAYS:
            loss = ours(way)(*given)
            got = [loss.detach(), *torch.autograd.grad(loss, given[:2])]
            errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True)]
            name = f"{str(dtype).removeprefix('torch.'):8s} {way:7s}"
            print(f"{name} errors: loss {errors[0]:.1e}, gradients {errors[1]:.1e} {errors[2]:.1e}", flush=True)
            if not max(errors) <= bound:
                raise ArithmeticError(f"{name.strip()}: an error of {max(errors):.1e}, at most {bound:.0e} is expected")


def milliseconds(loss_of: Callable[..., Tensor], given: Sequence[Tensor], device: str) -> tuple[float, float]:
    """The median of five steps after one that does not count, and MiB at their peak beyond the inputs (CUDA only)."""
    times, before, peak = [], 0, 0
    for _ in range(6):
        for tensor in given:
            tensor.grad = None
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        begin = time.perf_counter()
        loss_of(*given).backward()
        if device == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:]) * 1e3, peak / 2**20


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a few tokens, to try the program itself")
    options = parser.parse_args(argv)
    check(options.device)
    size = TIMED_SMALL if options.small else TIMED
    given = inputs(size, torch.bfloat16, options.device)
    times = {}
    for name, loss_of in (("plain", plain), *((way, ours(way)) for way in WAYS)):
        times[name], peak = milliseconds(loss_of, given, options.device)
        print(f"{name:7s} {times[name]:9.2f} ms, {peak:7.0f} MiB beyond the inputs", flush=True)
    text = ", ".join(f"{name} {took:.2f} ms" for name, took in times.items())
    print(f"{size.tokens} tokens, H {size.hidden}, V {size.classes}, bfloat16: {text}")


if __name__ == "__main__":
    main()
