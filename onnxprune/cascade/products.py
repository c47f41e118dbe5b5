"""Products with stored weights: which outputs are constant, and which weights do nothing."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.cascade.flow import Product
from onnxprune.cascade.pointwise import settled


@dataclass(frozen=True)
class Weight:
    """A weight as a product reads it.

    Attributes:
        name: Name of the stored tensor.
        values: Its values, in the product's form.
        kept: Where its mask keeps it, in the product's form; None for a weight without a mask.
    """

    name: str
    values: Tensor
    kept: Tensor | None

    def reads(self) -> Tensor:
        """Which out channel reads which in channel: (groups, out_channels, in_channels)."""
        if self.kept is None:
            return torch.ones(self.values.shape[:3], dtype=torch.bool, device=self.values.device)
        return self.kept.any(-1)

    def summed(self, which: Tensor | None, constants: Tensor) -> Tensor:
        """What constant inputs add to the outputs, in float64: (groups, out_channels).

        Args:
            which: The weights that take part; None for all that are kept.
            constants: (groups, in_channels), finite.
        """
        groups, channels = (constants != 0).nonzero(as_tuple=True)
        which = self.kept if which is None else which
        values = self.values[groups, :, channels].double()
        if which is not None:
            values = values * which[groups, :, channels]
        terms = values.sum(-1) * constants[groups, channels, None]
        result = torch.zeros(self.values.shape[:2], dtype=torch.float64, device=terms.device)
        return result.index_add_(0, groups, terms)


def channel_constants(product: Product, constants: Tensor) -> Tensor:
    """The constants of a product's in channels: (groups, in_channels)."""
    groups, _, channels, _ = product.form
    return constants.reshape(-1).expand(groups * channels).reshape(groups, channels)


def constant_outputs(product: Product, weight: Weight, constants: Tensor) -> Tensor:
    """The constants of a product's out channels, NaN for those that vary: (all out channels,).

    Args:
        product: The product.
        weight: Its weight.
        constants: Those of its input's profile.
    """
    inputs = channel_constants(product, constants).to(weight.values.device)
    varies = inputs.isnan()
    if product.padded:
        varies |= inputs != 0
    varying = (weight.reads() & varies[:, None]).any(-1)
    sums = torch.zeros(varying.shape, dtype=torch.float64, device=varying.device)
    known = inputs.masked_fill(varies, 0.0)
    if known.any():
        sums = weight.summed(None, known)
    return settled(sums.masked_fill(varying, math.nan).reshape(-1)).cpu()


@dataclass(frozen=True)
class Idle:
    """Weights of a product that do nothing.

    Attributes:
        dead: Those that are kept and yet change nothing, in the product's form.
        foldable: Those among them that read a constant other than zero for an output that is
            used, so that the constant has to go somewhere else.
    """

    dead: Tensor
    foldable: Tensor | None


def idle_weights(
    product: Product, weight: Weight, inputs: Tensor, used: Tensor, fold: bool
) -> Idle:
    """Find the kept weights of a product that do nothing, or that a constant can replace.

    Args:
        product: The product.
        weight: Its weight, with a mask.
        inputs: Constants of its in channels, (groups, in_channels).
        used: Which out channels are used, (groups, out_channels).
        fold: Whether constants can be put elsewhere.
    """
    assert weight.kept is not None
    idle = ~used[:, :, None] | (inputs == 0)[:, None]
    foldable = None
    if fold and not product.padded:
        constant = ~inputs.isnan() & (inputs != 0)
        if constant.any():
            read = used[:, :, None] & constant[:, None]
            foldable = weight.kept & read[..., None]
            idle |= read
    return Idle(weight.kept & idle[..., None], foldable)
