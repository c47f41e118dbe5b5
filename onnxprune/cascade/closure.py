"""The structural closure: weights that no path from an input to an output uses any more.

Masks cut paths. A channel that no kept weight computes from anything that varies is constant, and
one that no kept weight reads is unused; both spread through the graph. One sweep from the inputs
finds what is constant, one from the outputs what is used, and a weight is dead if its output is
unused, if its input is zero, or if its input is another constant that a bias or a running mean
takes in its place. The outputs of the model in evaluation mode stay the same.

Taken for granted is that activations are finite, so that 0 × activation = 0.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.cascade.flow import Flow, Move, Opaque, Operand, Pointwise, Product, Reduce
from onnxprune.cascade.pointwise import constant, settled, unused
from onnxprune.cascade.products import (
    Weight,
    channel_constants,
    constant_outputs,
    idle_weights,
)
from onnxprune.cascade.views import find, restored, viewed


@dataclass(frozen=True)
class DeadChannels:
    """Channels of a weight that have lost all of their weights.

    Attributes:
        inputs: In channels that no kept weight reads.
        outputs: Out channels that no kept weight feeds.
    """

    inputs: int
    outputs: int


@dataclass(frozen=True)
class Unfolded:
    """Constant channels that a product goes on reading.

    Attributes:
        tensor: Name of the product's weight.
        channels: How many of its in channels carry a constant other than zero into used outputs.
        reason: Why no bias or running mean takes the constant instead.
    """

    tensor: str
    channels: int
    reason: str


@dataclass(frozen=True)
class Closure:
    """What `close` has found.

    Attributes:
        masks: The masks given, with dead weights False; tensors that lost nothing are the same.
        dead: Number of dead weights of each tensor that has some.
        changes: New values of the biases and running means that took constants, by tensor name.
        dead_channels: Channels without any kept weight, of each tensor under a mask that a product
            reads, after the closure.
        unfolded: Constants that stay where they are.
    """

    masks: dict[str, Tensor]
    dead: dict[str, int]
    changes: dict[str, Tensor]
    dead_channels: dict[str, DeadChannels]
    unfolded: list[Unfolded]


def close(
    flow: Flow,
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    floors: Mapping[str, int] | None = None,
    *,
    most: int | None = None,
    among: Mapping[str, Tensor] | None = None,
) -> Closure:
    """Find all weights that the outputs no longer depend on.

    Apply `changes` and `masks` together: neither is right without the other. Limits are kept
    exactly, and what then stays is as it was.

    Args:
        flow: What `onnxprune.structure.read_flow` says of the graph.
        tensors: Parameters and buffers by ONNX name, in the file's shapes; they are not changed. A
            tensor that is missing is taken to be unknown, if the flow does not hold its values.
        masks: Masks of some of them, True where a weight is kept; they are not changed.
        floors: How many weights each tensor keeps at least, by name. Where there are more dead
            weights than may go, the first in row-major order go.
        most: How many weights go at most, in all; those nearest to the outputs go first. None for
            no limit.
        among: Name -> boolean tensor like the mask: only weights that are True here may go. None
            for all.
    """
    with torch.no_grad():
        sweep = _Sweep(flow, tensors, masks, floors or {}, most, among)
        sweep.forward()
        sweep.backward()
        return sweep.result()


class _Sweep:
    def __init__(
        self,
        flow: Flow,
        tensors: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        floors: Mapping[str, int],
        most: int | None,
        among: Mapping[str, Tensor] | None,
    ) -> None:
        self._flow = flow
        self._tensors = tensors
        self._masks = dict(masks)
        self._floors = floors
        self._left = sum(mask.numel() for mask in masks.values()) if most is None else most
        self._among = among
        self._operands = {operand.value: operand for operand in flow.operands}
        self._constants: dict[str, Tensor] = {}
        self._used: dict[str, Tensor] = {}
        products = [step for step in flow.steps if isinstance(step, Product)]
        self._readers = Counter(find(step.weight, tensors) for step in products)
        self._weights = {step.output: self._weight(step) for step in products}
        self._shared: dict[str, Tensor] = {}
        self._dead: dict[str, int] = {}
        self._changes: dict[str, Tensor] = {}
        self._unfolded: list[Unfolded] = []

    def _weight(self, product: Product) -> Weight | None:
        name = find(product.weight, self._tensors)
        if name is None:
            return None
        mask = self._masks.get(name)
        values = viewed(self._tensors[name].detach(), product.weight.view).reshape(product.form)
        kept = None
        if mask is not None:
            kept = viewed(mask, product.weight.view).reshape(product.form)
        return Weight(name, values, kept)

    def forward(self) -> None:
        """Find the constants of all values, sources first."""
        for operand in self._flow.operands:
            self._constants[operand.value] = self._stored(operand)
        for step in self._flow.steps:
            if isinstance(step, Opaque):
                continue
            profile = self._flow.profiles[step.output]
            if isinstance(step, Move):
                result = _moved(step, [self._constant(name) for name in step.inputs])
            elif isinstance(step, Pointwise):
                result = constant(step, [self._constant(name) for name in step.inputs])
            elif isinstance(step, Reduce):
                result = settled(_reduced(step, self._constant(step.input)))
            else:
                weight = self._weights[step.output]
                if weight is None:
                    continue
                result = constant_outputs(step, weight, self._constant(step.input))
            self._constants[step.output] = result.reshape(profile)

    def _constant(self, value: str) -> Tensor:
        if value not in self._constants:
            unknown = torch.full((), math.nan, dtype=torch.float64)
            self._constants[value] = unknown.expand(self._flow.profiles[value])
        return self._constants[value]

    def _stored(self, operand: Operand) -> Tensor:
        name = find(operand.stored, self._tensors)
        if name is not None:
            values = self._tensors[name].detach().cpu().double()
        elif operand.fixed is not None:
            values = torch.from_numpy(operand.fixed).double()
        else:
            return self._constant(operand.value)
        values = viewed(values, operand.stored.view)
        return settled(values.reshape(self._flow.profiles[operand.value]))

    def backward(self) -> None:
        """Find what is used and which weights are dead, sinks first."""
        for value in self._flow.outputs:
            self._use(value, torch.ones((), dtype=torch.bool))
        for step in reversed(self._flow.steps):
            if isinstance(step, Opaque):
                if any(bool(self._use_of(name).any()) for name in step.outputs):
                    for name in step.inputs:
                        self._use(name, torch.ones((), dtype=torch.bool))
                continue
            used = self._use_of(step.output)
            if isinstance(step, Move):
                self._use_moved(step, used)
            elif isinstance(step, Pointwise):
                self._use_pointwise(step, used)
            elif isinstance(step, Reduce):
                self._use(step.input, used)
            else:
                self._use_product(step, used)

    def _use_of(self, value: str) -> Tensor:
        """Which elements of a value are used; changed in place by `_use`."""
        if value not in self._used:
            self._used[value] = torch.zeros(self._flow.profiles[value], dtype=torch.bool)
        return self._used[value]

    def _use(self, value: str, used: Tensor) -> None:
        """Mark elements of a value as used; a profile of 1 is used where any element is."""
        own = self._use_of(value)
        extra = used.dim() - own.dim()
        if extra > 0:
            used = used.flatten(0, extra).any(0) if own.dim() else used.any()
        padding = own.dim() - used.dim()
        used = used.reshape((1,) * padding + tuple(used.shape))
        for axis, size in enumerate(own.shape):
            if size == 1:
                used = used.any(axis, keepdim=True)
        own |= used

    def _use_moved(self, step: Move, used: Tensor) -> None:
        sizes = [math.prod(self._flow.profiles[name]) for name in step.inputs]
        source = torch.zeros(sum(sizes), dtype=torch.bool)
        places = torch.from_numpy(step.index)[used.reshape(step.index.shape)]
        source[places[places >= 0]] = True
        for name, part in zip(step.inputs, source.split(sizes), strict=True):
            self._use(name, part.reshape(self._flow.profiles[name]))

    def _use_pointwise(self, step: Pointwise, used: Tensor) -> None:
        inputs = [self._constant(name) for name in step.inputs]
        for index, name in enumerate(step.inputs):
            idle = unused(step, inputs, index)
            self._use(name, used if idle is None else used & ~idle)

    def _use_product(self, product: Product, used: Tensor) -> None:
        weight = self._weights[product.output]
        groups, outs, *_ = product.form
        if weight is None:
            self._use(product.input, used.any())
            return
        device = weight.values.device
        rows = used.reshape(-1).expand(groups * outs).reshape(groups, outs).to(device)
        inputs = channel_constants(product, self._constant(product.input)).to(device)
        reads = weight.reads()
        if weight.kept is not None:
            stays = self._bury(product, weight, inputs, rows)
            reads = stays.any(-1)
        read = (reads & rows[:, :, None]).any(1)
        self._report(product, weight, inputs, read)
        read = read.reshape(-1).cpu()
        profile = self._flow.profiles[product.input]
        self._use(product.input, read.reshape(profile) if math.prod(profile) > 1 else read.any())

    def _bury(self, product: Product, weight: Weight, inputs: Tensor, used: Tensor) -> Tensor:
        """Take dead weights out of the mask; returns those that stay, in the product's form."""
        assert weight.kept is not None
        name = weight.name
        if name in self._flow.held:
            return weight.kept
        tied = self._readers[name] > 1
        idle = idle_weights(product, weight, inputs, used, not tied and self._can_take(product))
        mask = self._masks[name]
        dead = restored(idle.dead, product.weight.view, mask.shape)
        if tied:
            # The other products may need what is dead here, so every input stays used.
            before = self._shared.get(name)
            self._shared[name] = dead if before is None else before & dead
            return weight.kept
        dead = self._remove(name, dead)
        removed = viewed(dead, product.weight.view).reshape(product.form)
        if idle.foldable is not None:
            folded = idle.foldable & removed
            if folded.any():
                self._fold(product, weight.summed(folded, inputs.nan_to_num()))
        return weight.kept & ~removed

    def _remove(self, name: str, dead: Tensor) -> Tensor:
        """Take weights out of a mask as far as the limits permit; returns which."""
        mask = self._masks[name]
        if self._among is not None:
            dead = dead & self._among[name]
        count, kept = int(dead.sum()), int(mask.sum())
        allowed = min(max(kept - self._floors.get(name, 0), 0), self._left)
        if count > allowed:
            order = dead.reshape(-1).cumsum(0).reshape(dead.shape)
            dead, count = dead & (order <= allowed), allowed
        if count:
            self._masks[name] = mask & ~dead
            self._dead[name] = count
            self._left -= count
        return dead

    def _can_take(self, product: Product) -> bool:
        """Whether a stored tensor behind a product, for it alone, can take constants."""
        if product.takes is None:
            return False
        operand = self._operands[product.takes]
        name = find(operand.stored, self._tensors)
        if name is None or self._flow.uses.get(name, 0) != 1 or name in self._changes:
            return False
        return self._tensors[name].numel() == product.form[0] * product.form[1]

    def _fold(self, product: Product, sums: Tensor) -> None:
        assert product.takes is not None
        operand = self._operands[product.takes]
        name = find(operand.stored, self._tensors)
        assert name is not None
        old = self._tensors[name].detach()
        change = restored(sums.reshape(-1), operand.stored.view, old.shape).to(old.device)
        new = old.double() - change if product.subtracted else old.double() + change
        self._changes[name] = new.to(old.dtype)

    def _report(self, product: Product, weight: Weight, inputs: Tensor, read: Tensor) -> None:
        """Note constants that a product still reads for used outputs."""
        channels = int((read & ~inputs.isnan() & (inputs != 0)).sum())
        if not channels:
            return
        if product.padded:
            reason = "the product pads its input, so the constant ends at the borders"
        elif weight.kept is None:
            reason = "the weight is not under a mask"
        elif weight.name in self._flow.held or self._readers[weight.name] > 1:
            reason = "the weight is used elsewhere, too"
        elif not self._can_take(product):
            reason = "no bias or running mean of its own follows to take it"
        else:
            reason = "no more weights may go"
        self._unfolded.append(Unfolded(weight.name, channels, reason))

    def result(self) -> Closure:
        """What both sweeps have found."""
        for name, dead in self._shared.items():
            self._remove(name, dead)
        channels = {}
        for step in self._flow.steps:
            if not isinstance(step, Product):
                continue
            weight = find(step.weight, self._tensors)
            if weight is not None and weight in self._masks:
                kept = viewed(self._masks[weight], step.weight.view).reshape(step.form).any(-1)
                channels[weight] = DeadChannels(
                    inputs=int((~kept.any(1)).sum()), outputs=int((~kept.any(2)).sum())
                )
        return Closure(self._masks, self._dead, self._changes, channels, self._unfolded)


def _moved(step: Move, inputs: list[Tensor]) -> Tensor:
    source = torch.cat([value.reshape(-1) for value in inputs])
    source = torch.cat([source, source.new_tensor([step.fill])])  # at the place -1
    return source[torch.from_numpy(step.index)]


def _reduced(step: Reduce, constants: Tensor) -> Tensor:
    axes = list(step.axes)
    first = constants.amin(axes, keepdim=True) if axes else constants
    if step.kind == "unknown":
        return torch.full_like(first, math.nan)
    if not axes:
        return constants
    if step.kind == "max":
        return constants.amax(axes, keepdim=True)
    if step.kind == "min":
        return first
    if step.kind == "mean":
        return constants.mean(axes, keepdim=True)
    if step.kind == "sum":
        total = constants.sum(axes, keepdim=True)
        return total.where(total == 0, math.nan) if step.count is None else total * step.count
    equal = (constants == first).all(dim=axes, keepdim=True)
    if step.kind == "zero":
        equal &= first == 0
    return first.where(equal, math.nan)
