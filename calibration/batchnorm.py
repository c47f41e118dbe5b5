"""BatchNorm recalibration: running statistics measured again after the weights have changed.

Pruning shifts the activations that a network's normalisation was fitted to. Measuring the
statistics again over a few hundred samples recovers part of the loss without training
(the way of Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
Generalization", for averaged weights; the averaging over batches is made exact here).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from onnxprune.errors import DataError

if TYPE_CHECKING:
    import torch


class _Statistics:
    """Mean and variance of one layer's input, pooled over all calls.

    A layer in training mode with momentum 1 leaves one call's mean and variance in its running
    buffers. They are pooled by the law of total variance in float64, so the result is that of the
    whole set in one batch, also where batches differ in size.
    """

    def __init__(self, layer: "torch.nn.Module") -> None:
        self.layer: Any = layer
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def update(self, count: int) -> None:
        """Pool in the statistics of a call over `count` values a channel."""
        mean = self.layer.running_mean.detach().double()
        variance = self.layer.running_var.detach().double()
        total = self.count + count
        step = mean - self.mean
        self.squares = self.squares + variance * count + step**2 * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    def write(self) -> None:
        """Put the pooled statistics into the layer's buffers."""
        self.layer.running_mean.copy_(self.mean)
        self.layer.running_var.copy_(self.squares / self.count)


def recalibrate(module: "torch.nn.Module", batches: "Iterable[Mapping[str, torch.Tensor]]") -> int:
    """Measure the running mean and variance of every normalisation layer again.

    Layers are found by their `running_mean` and `running_var` buffers and their `momentum` (torch's
    BatchNorm and SyncBatchNorm, and those of imported models). They run in training mode, so each
    sees inputs that the layers before it normalised by batch statistics; everything else (Dropout)
    runs in evaluation mode. The variance is torch's unbiased estimate within a batch, pooled over
    batches.

    Args:
        module: Called as `module(**batch)`. Its running statistics are replaced; training flags,
            momenta and, if anything fails, the statistics are put back. A layer that no batch
            reaches keeps its statistics.
        batches: Input name -> `(batch, *sample_shape)`, on the module's device.

    Returns:
        The number of layers recalibrated.

    Raises:
        DataError: No batches, or a batch with a single value a channel.
    """
    import torch

    layers: dict[str, Any] = {
        name: layer for name, layer in module.named_modules() if _has_statistics(layer)
    }
    if not layers:
        return 0
    statistics = {name: _Statistics(layer) for name, layer in layers.items()}
    saved = {
        name: (layer.momentum, layer.running_mean.clone(), layer.running_var.clone())
        for name, layer in layers.items()
    }
    training = {layer: layer.training for layer in module.modules()}
    hooks = [
        hook
        for name, layer in layers.items()
        for hook in (
            layer.register_forward_pre_hook(_checking(name)),
            layer.register_forward_hook(_pooling(statistics[name])),
        )
    ]
    finished = False
    try:
        module.eval()
        for layer in layers.values():
            layer.train()
            layer.momentum = 1.0
            layer.running_mean.zero_()  # a NaN left there would outlive a momentum of 1
            layer.running_var.fill_(1)
        seen = 0
        with torch.no_grad():
            for batch in batches:
                module(**batch)
                seen += 1
        if not seen:
            raise DataError("there are no batches to recalibrate BatchNorm with", got="0 batches")
        finished = True
    finally:
        for hook in hooks:
            hook.remove()
        for layer, flag in training.items():
            layer.training = flag
        with torch.no_grad():
            for name, (momentum, mean, variance) in saved.items():
                layers[name].momentum = momentum
                if finished and statistics[name].count:
                    statistics[name].write()
                else:
                    layers[name].running_mean.copy_(mean)
                    layers[name].running_var.copy_(variance)
    return sum(1 for entry in statistics.values() if entry.count)


def _has_statistics(layer: "torch.nn.Module") -> bool:
    return (
        hasattr(layer, "momentum")
        and getattr(layer, "running_mean", None) is not None
        and getattr(layer, "running_var", None) is not None
    )


def _checking(name: str) -> Callable[..., None]:
    """A forward pre-hook that refuses a call without a variance."""

    def hook(layer: Any, args: tuple[Any, ...]) -> None:
        if _values_a_channel(layer, args) < 2:
            raise DataError(
                "a batch has a single value a channel, which has no variance",
                where=f"layer {name!r}",
                got=f"input of shape {tuple(args[0].shape)}",
                remedy="use a larger batch size",
            )

    return hook


def _pooling(statistics: _Statistics) -> Callable[..., None]:
    """A forward hook that pools one call's statistics."""

    def hook(layer: Any, args: tuple[Any, ...], output: Any) -> None:
        statistics.update(_values_a_channel(layer, args))

    return hook


def _values_a_channel(layer: Any, args: tuple[Any, ...]) -> int:
    return int(args[0].numel() // layer.running_mean.numel())
