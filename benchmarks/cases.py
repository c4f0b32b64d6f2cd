"""What is measured: the cases (shape, dtype, direction) and the contenders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import akd_ext
from akd_ext import reference
from akd_ext.op import autograd as _op

PHI = 0.7
UPSTREAM = 3.0
PADDING = 64  # columns of a row that the loss does not read
PAPER = ((128, 10), (128, 100), (32, 1), (32, 2), (32, 3))
MIDDLE = ((256, 1000),)
LARGE = ((1024, 21843), (2048, 32000))
LARGE_CUDA = (*LARGE, (8192, 128256))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORWARD, BOTH, SCALED, MASKED = "forward", "forward+backward", "upstream 3", "masked"
# Calls that once copied the logits, or meant reduction="none": measured at MIDDLE and LARGE only.
STRIDED, WEIGHTED, DIVISOR = "row-strided", "weighted", "divisor"
DIRECTIONS = (FORWARD, BOTH, SCALED, MASKED)
OTHER_CALLS = (STRIDED, WEIGHTED, DIVISOR)


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table. All directions but ``forward`` are forward + backward."""

    shape: tuple[int, int]
    dtype: torch.dtype
    direction: str

    @property
    def numel(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def tensor_bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def is_paper(self) -> bool:
        return self.shape in PAPER

    @property
    def is_large(self) -> bool:
        return self.shape in LARGE_CUDA

    @property
    def moved_bytes(self) -> int:
        """The fewest bytes this case can move: 2 N to read; N more for a gradient; 2 N more to scale it."""
        return self.tensor_bytes * {FORWARD: 2, SCALED: 5}.get(self.direction, 3)

    def __str__(self) -> str:
        return f"{self.shape[0]}x{self.shape[1]} {str(self.dtype).removeprefix('torch.')} {self.direction}"


def cases(device: str, quick: bool = False) -> list[Case]:
    """Every case of ``device``, smallest first. ``quick`` keeps one of each kind."""
    shapes = (*PAPER, *MIDDLE, *(LARGE_CUDA if device == "cuda" else LARGE))
    dtypes = DTYPES
    if quick:
        shapes, dtypes = ((128, 10), (256, 1000), (1024, 21843)), DTYPES[:2]
    return [
        Case(shape, dtype, direction)
        for shape in shapes
        for dtype in dtypes
        for direction in (DIRECTIONS if shape in PAPER else (*DIRECTIONS, *OTHER_CALLS))
    ]


@dataclasses.dataclass
class Inputs:
    student: Tensor
    teacher: Tensor
    mask: Tensor | None
    phi: Tensor  # 0-d, on the logits' device
    weight: Tensor | None = None
    divisor: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"mask": self.mask, "weight": self.weight, "divisor": self.divisor}


def make_inputs(case: Case, device: str, sets: int, seed: int = 0) -> list[Inputs]:
    """Random logits, ``sets`` times; the student is a leaf that wants a gradient."""
    generator = torch.Generator(device).manual_seed(seed)
    result = []
    for _ in range(sets):
        rows, classes = case.shape
        # The logits of a padded vocabulary, of which the loss reads the first classes.
        width = classes + PADDING if case.direction == STRIDED else classes
        student, teacher = (
            torch.randn(rows, width, generator=generator, device=device).to(case.dtype)[:, :classes] for _ in range(2)
        )
        inputs = Inputs(student.requires_grad_(), teacher, None, torch.tensor(PHI, device=device))
        if case.direction == MASKED:
            inputs.mask = torch.rand(rows, generator=generator, device=device) < 0.8
        if case.direction == WEIGHTED:
            inputs.weight = torch.rand(rows, generator=generator, device=device)
        if case.direction == DIVISOR:
            inputs.divisor = 4.0 * case.numel  # a step of four micro-batches
        result.append(inputs)
    return result


# ---- contenders: Inputs -> loss ----------------------------------------------------------------------------------


def eager(
    student: Tensor,
    teacher: Tensor,
    phi: float | Tensor,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    divisor: float | None = None,
) -> Tensor:
    """What people write. The mask keeps the shape, so that nothing waits for a device and a compiler can fuse it."""
    if divisor is not None:
        return F.mse_loss(student, phi * teacher) * (student.numel() / divisor)
    if mask is None and weight is None:
        return F.mse_loss(student, phi * teacher)
    squares = F.mse_loss(student, phi * teacher, reduction="none")
    if weight is not None:
        return (squares * weight.unsqueeze(-1)).sum(dtype=torch.float32) / (weight.sum() * student.shape[-1])
    return squares.masked_fill(~mask.unsqueeze(-1), 0).sum(dtype=torch.float32) / (mask.sum() * student.shape[-1])


class Nothing(torch.autograd.Function):
    """An autograd node without any work: a new loss and a new gradient with nothing in them."""

    @staticmethod
    def forward(ctx, student, teacher):
        ctx.gradient = torch.empty_like(student)
        return student.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, upstream):
        gradient, ctx.gradient = ctx.gradient, None
        return gradient, None


class OpAlone(Nothing):
    """The same around our op. Nothing is checked or saved, and upstream counts as 1: no loss anybody could use."""

    @staticmethod
    def forward(ctx, student, teacher):
        loss, ctx.gradient = _op.annealed_mse_without_grad(
            student, teacher, None, PHI, None, None, None, _op.REDUCTION["mean"], True
        )
        return loss


OURS, OURS_TENSOR, EAGER, COMPILE, REDUCE_OVERHEAD, FALLBACK, TRITON, FLOOR, AUTOGRAD, OP_ALONE = (
    "ours, float phi",
    "ours, tensor phi",
    "eager",
    "torch.compile",
    "torch.compile reduce-overhead",
    "our fallback",
    "Triton",
    "floor: add(s, t)",
    "floor of autograd",
    "op in a bare autograd node",
)


def contenders(case: Case, device: str, compiled: bool = True) -> Iterator[tuple[str, Callable[[Inputs], Tensor]]]:
    """Name and function of each contender, without the floors. Compiled ones are fresh: one shape, one graph."""
    yield OURS, lambda i: akd_ext.annealed_mse_loss(i.student, i.teacher, PHI, **i.options)
    yield OURS_TENSOR, lambda i: akd_ext.annealed_mse_loss(i.student, i.teacher, i.phi, **i.options)
    yield EAGER, lambda i: eager(i.student, i.teacher, PHI, **i.options)
    if compiled:
        default = torch.compile(eager, dynamic=False)
        yield COMPILE, lambda i: default(i.student, i.teacher, PHI, **i.options)
        if device == "cuda":
            graphed = torch.compile(eager, dynamic=False, mode="reduce-overhead")
            yield REDUCE_OVERHEAD, lambda i: graphed(i.student, i.teacher, PHI, **i.options)
    yield FALLBACK, lambda i: reference.annealed_mse(i.student, i.teacher, PHI, **i.options)
    if device == "cuda" and case.direction not in OTHER_CALLS:  # the Triton kernel knows none of them
        from benchmarks import triton_mse

        yield TRITON, lambda i: triton_mse.annealed_mse(i.student, i.teacher, PHI, i.mask)


def step(case: Case, device: str, loss_of: Callable[[Inputs], Tensor]) -> Callable[[Inputs], None]:
    """One call as it is timed: the loss, then backward and the release of the gradient where the case wants one."""
    if case.direction == FORWARD:

        def forward(inputs: Inputs) -> None:
            with torch.no_grad():
                loss_of(inputs)

        return forward

    upstreams = {dtype: torch.tensor(UPSTREAM, device=device, dtype=dtype) for dtype in (*DTYPES, torch.float64)}

    def both(inputs: Inputs) -> None:
        loss = loss_of(inputs)
        loss.backward(upstreams[loss.dtype] if case.direction == SCALED else None)
        inputs.student.grad = None

    return both


def floors(case: Case, device: str) -> Iterator[tuple[str, Callable[[Inputs], None]]]:
    """The cheapest op that reads both tensors and writes a fresh third; for the paper's shapes also what autograd costs."""

    def add(inputs: Inputs) -> None:
        with torch.no_grad():
            torch.add(inputs.student, inputs.teacher)

    yield FLOOR, add
    if case.is_paper and case.direction == BOTH:
        for name, node in ((AUTOGRAD, Nothing), (OP_ALONE, OpAlone)):
            yield name, step(case, device, lambda i, node=node: node.apply(i.student, i.teacher))
