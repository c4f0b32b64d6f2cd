"""What ``benchmarks.gpu_suite`` runs under Nsight Compute: one launch for each large case, and a line that names it."""

from __future__ import annotations

import torch

from akd_ext.op import autograd as _op
from benchmarks.cases import DTYPES, LARGE, PHI


def main() -> None:
    rest = (None, PHI, None, None, None, _op.REDUCTION["mean"])
    for shape in LARGE:
        for dtype in DTYPES:
            student, teacher = (torch.randn(shape, device="cuda").to(dtype) for _ in range(2))
            for name, with_gradient, tensors in (("forward", False, 2), ("loss and gradient", True, 3)):
                torch.cuda.synchronize()
                _op.annealed_mse_without_grad(student, teacher, *rest, with_gradient)
                torch.cuda.synchronize()
                size = tensors * student.numel() * student.element_size()
                print(f"case\t{shape[0]}x{shape[1]} {str(dtype).removeprefix('torch.')} {name}\t{size}", flush=True)


if __name__ == "__main__":
    main()
