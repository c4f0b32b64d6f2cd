"""Two output heads, read in blocks of rows; the basis in which the difference of their logits is written.

The difference of a token's logits is ``d = P a + Q b`` with one row of P and Q per class:

=========== =================== =============== ======================= ==========
basis       when                P               a                       Q, b
=========== =================== =============== ======================= ==========
plain       H != Ht             student's head  h_s                     teacher's head, -phi h_t
difference  H == Ht             student's head  h_s - phi h_t           student's - teacher's head, phi h_t
shared      one and same head   the head        h_s - phi h_t           none
=========== =================== =============== ======================= ==========

The difference basis subtracts before it multiplies, so a student close to its teacher loses no digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .products import compute_dtype, splits

# Elements of a block of rows: what is copied at a time where heads have to be converted, centred or gathered.
BLOCK = 2**21


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of student and teacher, and what is common to all tokens.

    ``student_bias``, ``teacher_bias``: one more column; the hidden states then have one more entry, a 1.
    ``student_ids``, ``teacher_ids``: rows that mean the same token; None: all rows, in order.
    ``reduce``, ``average``: the sum and the mean of a tensor over the processes that hold other rows of the heads; None:
    this one has all. ``total_classes``: rows of all of them. ``compute_dtype``: of the arithmetic, if wider than the
    heads. ``plain``: never another basis.
    """

    student_weight: Tensor
    teacher_weight: Tensor
    student_bias: Tensor | None = None
    teacher_bias: Tensor | None = None
    student_ids: Tensor | None = None
    teacher_ids: Tensor | None = None
    class_weight: Tensor | None = None
    center: bool = False
    shared: bool = False
    reduce: Callable[[Tensor], Tensor] | None = None
    average: Callable[[Tensor], Tensor] | None = None
    total_classes: int | None = None
    compute_dtype: torch.dtype | None = None
    plain: bool = False

    @property
    def basis(self) -> str:
        if self.shared and not self.plain:
            return "shared"
        equal = self.student_weight.shape[1] == self.teacher_weight.shape[1]
        return "difference" if equal and not self.plain else "plain"

    @property
    def biased(self) -> bool:
        return self.student_bias is not None or self.teacher_bias is not None

    @property
    def classes(self) -> int:
        """Rows of this process."""
        return self.student_weight.shape[0] if self.student_ids is None else self.student_ids.shape[0]

    @property
    def all_classes(self) -> int:
        """Rows of all processes."""
        return self.classes if self.total_classes is None else self.total_classes

    @property
    def dtype(self) -> torch.dtype:
        return self.compute_dtype or compute_dtype(self.student_weight, self.teacher_weight)

    @property
    def split(self) -> bool:
        dtypes = (self.student_weight.dtype, self.teacher_weight.dtype)
        return splits(self.student_weight.device, dtypes)

    def detached(self) -> Heads:
        tensors = {
            field.name: value.detach()
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)

    def to_save(self) -> list[Tensor]:
        """What a backward pass reads again, for ``save_for_backward``: autograd tells of a change between.

        Without tensors of inference mode, which have no version and which autograd does not save.
        """
        tensors = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [x for x in tensors if isinstance(x, Tensor) and can_be_saved(x)]

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of every block of rows."""
        size = max(1, BLOCK // max(self.student_weight.shape[1], self.teacher_weight.shape[1]))
        for start in range(0, self.classes, size):
            yield start, min(start + size, self.classes)

    def student_rows(self, start: int, stop: int) -> Tensor:
        return self._rows(self.student_weight, self.student_bias, self.student_ids, start, stop)

    def teacher_rows(self, start: int, stop: int) -> Tensor:
        return self._rows(self.teacher_weight, self.teacher_bias, self.teacher_ids, start, stop)

    def _rows(self, weight, bias, ids, start, stop) -> Tensor:
        """In the dtype of the arithmetic; with the bias as last column where one of the heads has one."""
        if ids is None:
            rows, column = weight[start:stop], None if bias is None else bias[start:stop]
        else:
            chosen = ids[start:stop]
            rows, column = weight.index_select(0, chosen), None if bias is None else bias.index_select(0, chosen)
        rows = rows.to(self.dtype)
        if not self.biased:
            return rows
        column = rows.new_zeros(len(rows)) if column is None else column.to(self.dtype)
        return torch.cat([rows, column.unsqueeze(1)], 1)

    def basis_rows(self, start: int, stop: int, means: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Rows of P and Q; Q has no columns in the shared basis. ``means``: taken out of either."""
        p = self.student_rows(start, stop)
        if self.basis == "shared":
            q = p.new_empty(len(p), 0)
        else:
            q = self.teacher_rows(start, stop)
            if self.basis == "difference":
                q = p - q
        return (p, q) if means is None else (p - means[0], q - means[1])

    def means(self) -> tuple[Tensor, Tensor] | None:
        """Of the rows of P and of Q over the vocabulary, where logits are to be centred."""
        if not self.center:
            return None
        sums = None
        for block in self.blocks():
            found = [rows.sum(0) for rows in self.basis_rows(*block)]
            sums = found if sums is None else [x + y for x, y in zip(sums, found, strict=True)]
        if self.reduce is not None:
            sums = [self.reduce(x) for x in sums]
        return tuple(x / self.all_classes for x in sums)

    def weights(self, start: int, stop: int) -> Tensor | None:
        """Those of the classes, as a column."""
        return None if self.class_weight is None else self.class_weight[start:stop].to(self.dtype).unsqueeze(1)


def coordinates(basis: str, student: Tensor, teacher: Tensor, phi: float | Tensor) -> tuple[Tensor, Tensor]:
    """a and b of every token, ``[N, columns of P]`` and ``[N, columns of Q]``."""
    if basis == "plain":
        return student, teacher * -phi
    scaled = phi * teacher
    if basis == "difference":
        return student - scaled, scaled
    return student - scaled, scaled[:, :0]


def can_be_saved(tensor: Tensor) -> bool:
    """For a backward pass: autograd saves nothing that was made in inference mode."""
    return torch.compiler.is_compiling() or not tensor.is_inference()


def whole(tensor: Tensor | None) -> Tensor | None:
    """All rows of a head that may be cut over processes, for a softmax, which needs them."""
    if tensor is None or type(tensor) in (Tensor, torch.nn.Parameter):
        return tensor
    from .distributed import gathered

    return gathered(tensor)
