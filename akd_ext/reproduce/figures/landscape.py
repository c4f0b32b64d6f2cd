"""Loss surfaces along two random directions that are scaled filter by filter (Li et al., NeurIPS 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from akd_ext import annealed_mse_loss

Direction = dict[str, Tensor]
BATCH = 256


def random_direction(model: nn.Module, generator: torch.Generator) -> Direction:
    """A random direction in the space of the model's weights, each of its filters as long as the weights' own filter.

    A filter is a slice of the first dimension: what makes one output channel of a convolution, one output of a linear
    layer. Biases and BatchNorm's weights do not move (``ignore='biasbn'`` in the authors' code); they are left out.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> direction = random_direction(layer, torch.Generator().manual_seed(0))
        >>> torch.allclose(direction["weight"].norm(dim=1), layer.weight.norm(dim=1))
        True
    """
    direction = {}
    for name, weight in model.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
        if weight.dim() > 1:
            filters = tuple(range(1, weight.dim()))
            lengths = weight.detach().pow(2).sum(filters, keepdim=True).sqrt()
            direction[name] = drawn * (lengths / drawn.pow(2).sum(filters, keepdim=True).sqrt())
    return direction


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, weights: Direction | None = None) -> Tensor:
    """The model's answers, [N, classes], in eval mode; ``weights`` stand in for its own."""
    model.eval()
    return torch.cat([functional_call(model, weights or {}, (chunk,)) for chunk in images.split(BATCH)])


@torch.no_grad()
def surfaces(
    model: nn.Module,
    images: Tensor,
    taught: Tensor,
    phis: Sequence[float],
    directions: tuple[Direction, Direction],
    axis: Sequence[float],
) -> Tensor:
    """The loss of stage I at ``weights + a * directions[0] + b * directions[1]``, a and b along ``axis``.

    Args:
        model: the student; it is put into eval mode, its weights stay as they are.
        images: [N, ...] on the model's device.
        taught: the teacher's logits, [N, classes].
        phis: one surface for each of these. They come from the same forward passes.
        directions: as :func:`random_direction` makes them.
        axis: the values of a and of b.

    Returns:
        float64 [len(phis), len(axis), len(axis)] on the CPU; b counts the rows, a the columns.
    """
    along_a, along_b = directions
    weights = {name: weight for name, weight in model.named_parameters() if name in along_a}
    found = torch.empty(len(phis), len(axis), len(axis), dtype=torch.float64)
    for row, b in enumerate(axis):
        for column, a in enumerate(axis):
            moved = {name: weight + a * along_a[name] + b * along_b[name] for name, weight in weights.items()}
            student = logits(model, images, moved)
            for k, phi in enumerate(phis):
                found[k, row, column] = annealed_mse_loss(student, taught, phi).item()
    return found


def sharpness(surface: Tensor, axis: Sequence[float], scale: float) -> dict[str, float]:
    """How sharp a surface is at its centre, in three numbers that are larger where it is sharper.

    ``curvature``: the second derivative by central differences, the mean over both directions. ``rise``: how much higher
    the loss is at the ends of both axes than at the centre, the mean of the four. ``relative_rise``: ``rise / scale``.

    Args:
        surface: [n, n], n odd.
        axis: its n coordinates, evenly spaced, 0 in the middle.
        scale: the loss to compare ``rise`` with.

    Example:
        >>> axis = [-1.0, -0.5, 0.0, 0.5, 1.0]
        >>> bowl = torch.tensor([[3.0 * a * a + b * b for a in axis] for b in axis])
        >>> sharpness(bowl, axis, scale=4.0)
        {'curvature': 4.0, 'rise': 2.0, 'relative_rise': 0.5}
    """
    middle = len(axis) // 2
    step, centre = axis[middle + 1] - axis[middle], surface[middle, middle]
    along = torch.stack([surface[middle], surface[:, middle]])
    curvature = (along[:, middle - 1] - 2 * centre + along[:, middle + 1]).mean() / step**2
    rise = (along[:, [0, -1]].mean() - centre).item()
    return {"curvature": curvature.item(), "rise": rise, "relative_rise": rise / scale}
