"""The forward pass of a frozen teacher: what it says stays the same, what it costs does not."""

import weakref

import torch
from torchdistill.common.constant import def_logger
from torchdistill.common.module_util import check_if_wrapped
from torchdistill.core.interfaces.registry import register_forward_proc_func

from akd_ext.op.private_torch import is_compiled

logger = def_logger.getChild(__name__)

# How far the copy may be from the model on the first batch, as a share of the largest output. Folding a BatchNorm
# rounds weights to float32 once more, 2^-24 each; a thousandth leaves room for hundreds of layers and is far below
# what a wrongly traced model would show.
TOLERANCE = 1e-3

_COPIES = weakref.WeakKeyDictionary()


@register_forward_proc_func
def frozen_forward(model, sample_batch, targets=None, supp_dict=None, **kwargs):
    """Run a frozen model faster: no gradients, eval mode, channels_last memory, BatchNorm folded into convolutions.

    In a stage of a torchdistill YAML::

        teacher:
          forward_proc: 'frozen_forward'
          requires_grad: False

    The work is done by a copy of the model, made at the first batch and kept as long as the model; a new one is made when
    a tensor or a module of the model was replaced, changed in place, or moved. What is written through ``.data`` leaves
    no trace, so this is for a model that is never updated. Where a copy would not do, the model itself runs: it has forward hooks (``forward_hook`` in the YAML), a wrapper
    (DataParallel and the like) or a compiled forward pass, cannot be traced by ``torch.fx``, or its copy says something
    else on the first batch.

    Args:
        model: takes [B, ...] and gives one tensor [B, ...]. It is put into eval mode.
        sample_batch: a tensor [B, ...] on the model's device.

    Returns:
        The output, a tensor [B, ...] that any loss may use. It differs from the model's own by rounding.

    Raises:
        TypeError: ``sample_batch`` is no tensor.
        ValueError: a parameter of the model requires a gradient, so the model is not frozen.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).requires_grad_(False)
        >>> frozen_forward(model, torch.zeros(2, 3, 5, 5)).shape
        torch.Size([2, 36])
    """
    if not isinstance(sample_batch, torch.Tensor):
        raise TypeError(f"frozen_forward: sample_batch is a {type(sample_batch).__name__}, accepted is a tensor")
    kept = _COPIES.get(model)
    if kept is None or kept.state != kept.state_of(model):
        model.eval()
        kept = _COPIES[model] = _Copy(model, sample_batch)
    if kept.module is None:
        with torch.no_grad():
            return model(sample_batch)
    memory_format = torch.channels_last if sample_batch.dim() == 4 else torch.contiguous_format
    with torch.inference_mode():
        output = kept.module(sample_batch.contiguous(memory_format=memory_format))
    return output.clone()  # outside of inference mode: a loss may save it for its backward pass


class _Copy:
    """A model's fast copy (None where there can be none) and the state of the model that it was made from."""

    def __init__(self, model, sample_batch):
        # A list, because walking a deep model takes longer than looking at its parts. The model itself is not in it: the
        # dictionary must not keep it alive.
        self._parts = list(model.modules())[1:]
        if any(tensor.requires_grad for tensor in (*model.parameters(), *model.buffers())):
            raise ValueError(
                "frozen_forward: the model's parameters require gradients, which they would never get; "
                "say `requires_grad: False` beside this forward_proc"
            )
        self.state = self.state_of(model)
        is_watched = any(part._forward_hooks or part._forward_pre_hooks for part in (model, *self._parts))
        unseen = any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))  # count no changes
        self.module = None
        if not (is_watched or unseen or check_if_wrapped(model) or is_compiled(model)):
            self.module = _fast_copy(model, sample_batch)

    def state_of(self, model):
        """A list that changes when a tensor or a module of the model does, or a hook wants to see the inside."""
        state = []
        for part in (model, *self._parts):
            state += [part.training, len(part._forward_hooks), len(part._forward_pre_hooks)]
            state += map(id, part._modules.values())
            for tensor in (*part._parameters.values(), *part._buffers.values()):
                if tensor is not None:
                    changes = 0 if tensor.is_inference() else tensor._version
                    state += [id(tensor), changes, tensor.dtype, tensor.device, tensor.requires_grad]
        return state


def _fast_copy(model, sample_batch):
    from torch.fx.experimental.optimization import fuse  # half a second that only users of this function should pay

    few = sample_batch[:16]
    try:
        with torch.no_grad(), torch.autocast(sample_batch.device.type, enabled=False):
            fast = fuse(model).to(memory_format=torch.channels_last)
            expected, found = model(few), fast(few)
            error, scale = (found - expected).abs().max(), expected.abs().max()
    except Exception as error:  # whatever a model of somebody else's may raise when it is traced
        logger.info(f"frozen_forward: the model runs as it is: {type(error).__name__}: {str(error).splitlines()[:1]}")
        return None
    if not error <= TOLERANCE * scale:
        logger.info(
            f"frozen_forward: the model runs as it is: its copy is off by {error:.2g}, the largest output is {scale:.2g}"
        )
        return None
    logger.info(f"frozen_forward: BatchNorm is folded; outputs differ by up to {error:.2g}, the largest is {scale:.2g}")
    return fast
