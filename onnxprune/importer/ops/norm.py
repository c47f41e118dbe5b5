"""Normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from onnxprune.importer.builder import to_torch
from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, UnsupportedNode, register


class BatchNormalization(nn.Module):
    """BatchNorm with running statistics of its own; scale and shift are arguments.

    In training it normalises with batch statistics and updates the running ones as
    `torch.nn.BatchNorm2d` does, with the unbiased variance. In evaluation it normalises with the
    running statistics, unless the file sets `training_mode`.

    Args:
        running_mean: (channels,)
        running_var: (channels,)
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics; None for a cumulative average.
        batch_statistics: Whether evaluation uses batch statistics, too.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float | None,
        batch_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.batch_statistics = batch_statistics
        self.register_buffer("running_mean", running_mean)
        self.register_buffer("running_var", running_var)
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def reset_running_stats(self) -> None:
        """Forget the running statistics."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Normalise x: (batch, channels, ...), with scale and shift: (channels,)."""
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        keep = not self.training and self.batch_statistics
        mean, var = (None, None) if keep else (self.running_mean, self.running_var)
        batch = self.training or self.batch_statistics
        return F.batch_norm(x, mean, var, scale, shift, batch, momentum, self.eps)

    def extra_repr(self) -> str:
        """Sizes and settings for `print`."""
        return f"{self.running_mean.numel()}, eps={self.eps:g}, momentum={self.momentum}"


def batch_norm_training(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm that returns the updated running statistics as ONNX defines them."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    batch_var, batch_mean = torch.var_mean(x, dim=axes, correction=0)
    y = F.batch_norm(x, None, None, scale, shift, True, 0.0, eps)
    new_mean = mean * momentum + batch_mean * (1 - momentum)
    new_var = var * momentum + batch_var * (1 - momentum)
    return y, new_mean, new_var


def batch_norm_of_tensors(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """BatchNorm whose statistics the model itself computes, so that gradients pass to them."""
    shape = (-1, *[1] * (x.ndim - 2))
    factor = scale * torch.rsqrt(var + eps)
    return (x - mean.reshape(shape)) * factor.reshape(shape) + shift.reshape(shape)


@register("BatchNormalization")
def _batch_normalization(op: Op) -> Result:
    if not op.attr("spatial", 1):
        raise UnsupportedNode("spatial=0")
    eps, onnx_momentum = op.attr("epsilon", 1e-5), op.attr("momentum", 0.9)
    training = bool(op.attr("training_mode", 0)) or (op.version < 14 and len(op.node.output) > 1)
    training = training or (op.version < 7 and not op.attr("is_test", 0))
    operands = op.tensor(0), op.tensor(1), op.tensor(2)
    if training and any(op.used_outputs[1:]):
        statistics = op.tensor(3), op.tensor(4)
        result = op.call(batch_norm_training, *operands, *statistics, eps, onnx_momentum)
        return op.unpack(result, 3)
    mean, var = (op.builder.statistics(op.value(i), op.node.input[i]) for i in (3, 4))
    if mean is None or var is None:
        return op.call(batch_norm_of_tensors, *operands, op.tensor(3), op.tensor(4), eps)

    def make() -> BatchNormalization:
        running_mean = to_torch(mean.array, mean.elem_type)
        running_var = to_torch(var.array, var.elem_type)
        momentum = _momentum(onnx_momentum)
        return BatchNormalization(running_mean, running_var, eps, momentum, training)

    return op.builder.normalisation(op.label, make, mean, var, *operands)


def _momentum(onnx_momentum: float) -> float:
    """PyTorch's momentum, without the noise of ONNX's float32."""
    return float(f"{1.0 - onnx_momentum:.6g}")


def layer_norm_with_statistics(
    x: Tensor, scale: Tensor, shift: Tensor | None, axis: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm over all axes from `axis` on, with mean and inverse standard deviation."""
    axes = list(range(axis % x.ndim, x.ndim))
    var, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(var + eps)
    y = (x - mean) * inverse * scale
    return (y if shift is None else y + shift), mean, inverse


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor | None, axis: int, eps: float) -> Tensor:
    """LayerNorm over all axes from `axis` on."""
    axis %= x.ndim
    shape = list(x.shape[axis:])
    if list(scale.shape) == shape and (shift is None or list(shift.shape) == shape):
        return F.layer_norm(x, shape, scale, shift, eps)
    y = F.layer_norm(x, shape, None, None, eps) * scale
    return y if shift is None else y + shift


@register("LayerNormalization")
def _layer_normalization(op: Op) -> Result:
    axis, eps = op.attr("axis", -1), op.attr("epsilon", 1e-5)
    operands = op.tensor(0), op.tensor(1), op.optional(2)
    if any(op.used_outputs[1:]):
        return op.unpack(op.call(layer_norm_with_statistics, *operands, axis, eps), 3)
    scale_shape, rank = op.shape(1), op.rank()
    last = axis == -1 or (rank is not None and axis == rank - 1)
    if last and scale_shape is not None and len(scale_shape) == 1 and scale_shape[0]:
        return op.call(F.layer_norm, operands[0], scale_shape, *operands[1:], eps)
    return op.call(layer_norm, *operands, axis, eps)


def rms_norm(x: Tensor, scale: Tensor, axis: int, eps: float) -> Tensor:
    """Division by the root mean square over all axes from `axis` on."""
    axes = list(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(dim=axes, keepdim=True) + eps) * scale


@register("RMSNormalization", since=23)
@register("SimplifiedLayerNormalization")
@register("SimplifiedLayerNormalization", domain="com.microsoft")
def _rms_normalization(op: Op) -> Result:
    if any(op.used_outputs[1:]):
        raise UnsupportedNode("its second output is used")
    return op.call(
        rms_norm, op.tensor(0), op.tensor(1), op.attr("axis", -1), op.attr("epsilon", 1e-5)
    )


@register("InstanceNormalization")
def _instance_normalization(op: Op) -> Result:
    eps = op.attr("epsilon", 1e-5)
    return op.call(F.instance_norm, op.tensor(0), weight=op.tensor(1), bias=op.tensor(2), eps=eps)


def group_norm_by_group(x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """GroupNorm with one scale and shift for each group."""
    y = F.group_norm(x, groups, None, None, eps)
    shape = (1, -1, *[1] * (x.ndim - 2))
    repeats = x.shape[1] // groups
    expanded = [t.repeat_interleave(repeats).reshape(shape) for t in (scale, shift)]
    return y * expanded[0] + expanded[1]


@register("GroupNormalization", since=18, until=21)
def _group_normalization_by_group(op: Op) -> Result:
    arguments = op.attr("num_groups"), op.tensor(1), op.tensor(2), op.attr("epsilon", 1e-5)
    return op.call(group_norm_by_group, op.tensor(0), *arguments)


@register("GroupNormalization", since=21)
def _group_normalization(op: Op) -> Result:
    arguments = op.attr("num_groups"), op.tensor(1), op.tensor(2), op.attr("epsilon", 1e-5)
    return op.call(F.group_norm, op.tensor(0), *arguments)


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Normalisation across neighbouring channels; x: (batch, channels, ...)."""
    squares = x.square().movedim(1, -1)
    windows = F.pad(squares, ((size - 1) // 2, size // 2)).unfold(-1, size, 1)
    return x / (bias + alpha / size * windows.sum(-1).movedim(-1, 1)).pow(beta)


@register("LRN")
def _lrn(op: Op) -> Result:
    alpha, beta, bias = op.attr("alpha", 1e-4), op.attr("beta", 0.75), op.attr("bias", 1.0)
    return op.call(local_response_norm, op.tensor(0), op.attr("size"), alpha, beta, bias)


def lp_normalize(x: Tensor, p: int, dim: int) -> Tensor:
    """Division by the Lp norm; vectors of zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, ord=p, dim=dim, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@register("LpNormalization")
def _lp_normalization(op: Op) -> Result:
    return op.call(lp_normalize, op.tensor(0), op.attr("p", 2), op.attr("axis", -1))


def mean_variance_normalize(x: Tensor, axes: list[int]) -> Tensor:
    """Zero mean and unit variance over the given axes."""
    mean = x.mean(dim=axes, keepdim=True)
    deviation = (x.square().mean(dim=axes, keepdim=True) - mean.square()).sqrt()
    return (x - mean) / (deviation + 1e-9)


@register("MeanVarianceNormalization", since=9)
def _mean_variance_normalization(op: Op) -> Result:
    result: fx.Node = op.call(mean_variance_normalize, op.tensor(0), op.attr("axes", [0, 2, 3]))
    return result
