"""Stored tensors as steps read them, and back."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from onnxprune.cascade.flow import Link, Stored


def find(stored: Stored, tensors: Mapping[str, Tensor]) -> str | None:
    """The first name of a stored tensor that has values; None if none has."""
    return next((name for name in stored.names if name in tensors), None)


def viewed(tensor: Tensor, view: Sequence[Link]) -> Tensor:
    """A tensor as it is read; a view of its memory where that is possible."""
    for link in view:
        tensor = tensor.reshape(link.shape).permute(link.axes)
    return tensor


def restored(tensor: Tensor, view: Sequence[Link], shape: Sequence[int]) -> Tensor:
    """What `viewed` made of a tensor, in the tensor's own layout.

    Args:
        tensor: What is read, of any shape with the same elements.
        view: How it is read.
        shape: The stored shape.
    """
    for link in reversed(view):
        order = sorted(range(len(link.axes)), key=link.axes.__getitem__)
        tensor = tensor.reshape([link.shape[axis] for axis in link.axes]).permute(order)
    return tensor.reshape(tuple(shape))
