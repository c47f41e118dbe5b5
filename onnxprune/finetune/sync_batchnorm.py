"""BatchNorm that uses the statistics of the batch over all ranks.

torch's `SyncBatchNorm` does this on GPUs only and replaces torch's own layers only. This does it
for the BatchNorm of imported models as well, on any device, and for parts of unequal size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onnxprune.finetune.ranks import Ranks


def synchronise_batchnorm(module: nn.Module, ranks: Ranks) -> int:
    """Let every BatchNorm layer normalise by the global batch while it trains.

    In training mode, where gradients are recorded, a layer's mean and variance are those of the
    parts of all ranks together, and so are the running statistics (with the unbiased variance).
    Gradients of the inputs are those of the sum of the ranks' losses; gradients of scale and shift
    are each rank's share of it, for the data-parallel wrapper to add up. All ranks have to call the
    layers in the same order. Evaluation, and training mode without gradients as in a
    recalibration, stay local.

    With one rank nothing is changed. A BatchNorm node whose statistics the graph itself goes on to
    use is no layer, and stays local.

    Args:
        module: Its layers are changed in place, once: their buffers keep their names.
        ranks: All ranks; each calls this.

    Returns:
        The number of layers.
    """
    layers = [layer for layer in module.modules() if _is_batchnorm(layer)]
    if ranks.world > 1:
        for layer in layers:
            changed: Any = layer
            changed.forward = partial(_forward, layer, ranks, layer.forward)
    return len(layers)


def _is_batchnorm(layer: nn.Module) -> bool:
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        return isinstance(layer, nn.modules.batchnorm._BatchNorm)
    return all(hasattr(layer, name) for name in ("running_mean", "running_var", "momentum", "eps"))


def _forward(
    layer: Any,
    ranks: Ranks,
    local: Callable[..., Tensor],
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Forward of a changed layer; torch's layers have scale and shift of their own."""
    own = scale is None and shift is None
    if not (layer.training and torch.is_grad_enabled()):
        return local(x) if own else local(x, scale, shift)
    if own:
        scale, shift = getattr(layer, "weight", None), getattr(layer, "bias", None)
    y, mean, var, count = cast(
        tuple[Tensor, Tensor, Tensor, Tensor],
        _GlobalBatchNorm.apply(x, scale, shift, layer.eps, ranks),
    )
    if layer.running_mean is not None:
        _update_statistics(layer, mean, var, count)
    return y


@torch.no_grad()
def _update_statistics(layer: Any, mean: Tensor, var: Tensor, count: Tensor) -> None:
    layer.num_batches_tracked.add_(1)
    weight: Any = layer.momentum
    if weight is None:
        weight = 1.0 / layer.num_batches_tracked.double()
    unbiased = var * (count / (count - 1).clamp(min=1))
    for running, batch in ((layer.running_mean, mean), (layer.running_var, unbiased)):
        running.copy_(running + weight * (batch - running))


class _GlobalBatchNorm(torch.autograd.Function):
    """The function and its gradient; Ioffe and Szegedy, arXiv 1502.03167, algorithm 1."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalise x: (batch, channels, ...); also returns mean, biased variance and count."""
        mean, var, count = _global_statistics(x, ranks)
        y = F.batch_norm(x, mean, var, scale, shift, False, 0.0, eps)
        ctx.save_for_backward(x, scale, mean, var, count)
        ctx.eps, ctx.ranks = eps, ranks
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, *unused: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Gradients of x over all ranks' losses, and this rank's share of scale's and shift's."""
        x, scale, mean, var, count = ctx.saved_tensors
        axes = [axis for axis in range(x.ndim) if axis != 1]
        inverse = torch.rsqrt(var + ctx.eps)
        shape = (1, -1, *[1] * (x.ndim - 2))
        normalised = (x.to(mean.dtype) - mean.reshape(shape)) * inverse.reshape(shape)
        grad = grad.to(mean.dtype)
        sums = torch.stack([grad.sum(axes), (grad * normalised).sum(axes)])
        mean_grad, mean_product = (ctx.ranks.sum(sums) / count).unbind()
        factor = inverse if scale is None else inverse * scale
        grad = grad - mean_grad.reshape(shape) - normalised * mean_product.reshape(shape)
        grad_x = (grad * factor.reshape(shape)).to(x.dtype)
        if scale is None:
            return grad_x, None, None, None, None
        return grad_x, sums[1].to(scale.dtype), sums[0].to(scale.dtype), None, None


def _global_statistics(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance a channel over all ranks, and the number of values behind them.

    Each rank's own mean and variance are pooled by the law of total variance in float64, so
    nothing is lost where means are large, and all ranks get the same bits.
    """
    channels = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    if x.numel():
        own_var, own_mean = torch.var_mean(x.to(dtype), dim=axes, correction=0)
    else:
        own_var = own_mean = torch.zeros(channels, dtype=dtype, device=x.device)
    own_count = torch.full((1, channels), x.numel() // channels, device=x.device)
    own = torch.cat([own_count.double(), own_mean.double()[None], own_var.double()[None]])
    counts, means, variances = ranks.gather(own).unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    var = (counts * (variances + (means - mean).square())).sum(0) / count
    return mean.to(dtype), var.to(dtype), count.to(dtype)
