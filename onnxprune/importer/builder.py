"""The fx graph under construction, with the parameters and buffers that it reads."""

import keyword
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from onnxprune.importer.module import ImportedModel
from onnxprune.importer.registry import UnsupportedNode
from onnxprune.importer.values import (
    QUANTIZED_DTYPES,
    TORCH_DTYPES,
    Host,
    Value,
)
from onnxprune.tensors import GraphTensor

_RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))) | set(dir(ImportedModel))
"""Names of attributes that an imported module has of its own."""


def host_tensor(
    values: list[Any], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Make a tensor of numbers that the host has computed from shapes."""
    return torch.tensor(values, dtype=dtype, device=device).reshape(shape)


def to_ints(tensor: torch.Tensor) -> list[int]:
    """Read the numbers of a shape-like tensor that is computed while the module runs."""
    return [int(item) for item in tensor.reshape(-1).tolist()]


def identifier(name: str) -> str:
    """Turn an ONNX name into a Python identifier that still reads like it."""
    text = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    if not text or text[0].isdigit():
        text = f"t_{text}" if text else "unnamed"
    return f"{text}_" if keyword.iskeyword(text) or text == "self" else text


def _free(base: str, taken: set[str]) -> str:
    candidate, number = base, 1
    while candidate in taken:
        candidate = f"{base}_{number}"
        number += 1
    return candidate


class GraphBuilder:
    """Emits fx nodes, and owns what they read.

    Args:
        root: Module that takes parameters, buffers and sub-modules.
        outer: Builder of the graph around a sub-graph, None for the main graph.

    Attributes:
        graph: The fx graph.
        captures: For a sub-graph, the outer nodes that it reads, with their placeholders in it.
        tensor_names: ONNX name of each parameter.
        buffer_names: ONNX name of each buffer that training changes.
        stored: The stored tensor behind a host value, by the identity of its array.
    """

    def __init__(self, root: nn.Module, outer: "GraphBuilder | None" = None) -> None:
        self.root = root
        self.outer = outer
        self.graph = fx.Graph()
        self.captures: dict[fx.Node, fx.Node] = {}
        self.tensor_names: dict[str, str] = outer.tensor_names if outer else {}
        self.buffer_names: dict[str, str] = outer.buffer_names if outer else {}
        self.stored: dict[int, GraphTensor] = outer.stored if outer else {}
        self._arrays: dict[str, np.ndarray] = {}
        self._normalisations: dict[tuple[int, int, str, str], str] = (
            outer._normalisations if outer else {}
        )
        self._taken: set[str] = outer._taken if outer else set(_RESERVED)
        self._parameters: dict[str, fx.Node] = {}
        self._origins: dict[fx.Node, GraphTensor] = outer._origins if outer else {}
        self._constants: dict[int, tuple[fx.Node, np.ndarray]] = {}
        self._sizes: dict[tuple[fx.Node, int], fx.Node] = {}
        self._device: fx.Node | None = None
        self._device_source: fx.Node | None = None

    def placeholder(self, name: str) -> fx.Node:
        """Add a graph input."""
        node = self.graph.placeholder(identifier(name))
        node.target = node.name  # which is unique, and hides no module that the code refers to
        if self._device_source is None:
            self._device_source = node
        return node

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Emit a function call; host values among the arguments must be numbers or nodes."""
        return self.graph.call_function(function, self._local(args), self._local(kwargs))

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Emit a method call on the first argument."""
        return self.graph.call_method(name, self._local(args), self._local(kwargs))

    def module(self, name: str, module: nn.Module, *args: Any) -> fx.Node:
        """Add a sub-module and emit a call of it; `name` is adapted to be unique."""
        target = self.unique(name)
        self.root.add_module(target, module)
        return self.graph.call_module(target, self._local(args))

    def normalisation(
        self, name: str, make: Callable[[], nn.Module], mean: Host, var: Host, *args: Any
    ) -> fx.Node:
        """Emit a call of a module with running statistics.

        Nodes that read the same statistics under the same names call the same module, as they did
        in the model that was exported. Where stored statistics are shared through `Identity`
        aliases, which exporters make of equal tensors, each alias has a module of its own.
        """
        key = (id(mean.array), id(var.array), mean.name, var.name)
        target = self._normalisations.get(key)
        if target is None:
            target = self._normalisations[key] = self.unique(name)
            self.root.add_module(target, make())
            for field, host in (("running_mean", mean), ("running_var", var)):
                self.buffer_names[f"{target}.{field}"] = self._statistics_name(host)
        return self.graph.call_module(target, self._local(args))

    def statistics(self, value: Value, name: str) -> Host | None:
        """Stored running statistics, None where the model computes them.

        Exporters may alias them to an equal parameter; they are a tensor of their own all the same.
        """
        if isinstance(value, Host):
            return value if value.literal else None
        tensor = self._origins.get(value)
        if tensor is None:
            return None
        if name == tensor.name:
            raise UnsupportedNode(f"{name!r} is a parameter and a running statistic at once")
        array = self._arrays.setdefault(tensor.name, tensor.array())
        return Host(array, tensor.elem_type, name)

    def stored_shape(self, value: Value) -> tuple[int, ...] | None:
        """Shape of a parameter, which is certain; None for anything else."""
        tensor = self._origins.get(value) if isinstance(value, fx.Node) else None
        return None if tensor is None else tensor.shape

    def _statistics_name(self, host: Host) -> str:
        tensor = self.stored.get(id(host.array))
        only = tensor is not None and len(tensor.uses) == 1
        return tensor.name if only and tensor is not None else host.name

    def parameter(self, tensor: GraphTensor) -> fx.Node:
        """Read a parameter, which is created on first use, in the file's shape."""
        if self.outer is not None:
            return self.capture(self.outer.parameter(tensor))
        node = self._parameters.get(tensor.name)
        if node is None:
            values = to_torch(tensor.array(), tensor.elem_type)
            target = self.unique(tensor.name)
            self.root.register_parameter(target, nn.Parameter(values))
            self.tensor_names[target] = tensor.name
            node = self._parameters[tensor.name] = self.graph.get_attr(target)
            self._origins[node] = tensor
        return node

    def constant(self, host: Host) -> fx.Node:
        """Read a constant as a buffer, which follows the module to its device."""
        if self.outer is not None:
            return self.capture(self.outer.constant(host))
        known = self._constants.get(id(host.array))
        if known is None:
            target = self.unique(host.name or "constant")
            values = to_torch(host.array, host.elem_type)
            self.root.register_buffer(target, values, persistent=False)
            known = self._constants[id(host.array)] = (self.graph.get_attr(target), host.array)
        return known[0]

    def materialise(self, value: Value) -> fx.Node:
        """The value as a tensor node."""
        if isinstance(value, fx.Node):
            return self.capture(value)
        if value.literal:
            return self.constant(value)
        dtype = TORCH_DTYPES[value.elem_type]
        return self.call(host_tensor, value.items(), value.array.shape, dtype, self.device())

    def size(self, tensor: fx.Node, axis: int) -> fx.Node:
        """The host integer `tensor.size(axis)`."""
        tensor = self.capture(tensor)
        node = self._sizes.get((tensor, axis))
        if node is None:
            node = self._sizes[tensor, axis] = self.method("size", tensor, axis)
            node.meta["non_negative"] = True
        return node

    def device(self) -> fx.Node:
        """The device on which the module computes."""
        if self._device is None:
            if self._device_source is None:
                if self.outer is None:
                    return torch.device("cpu")  # type: ignore[return-value]
                self._device = self.capture(self.outer.device())
            else:
                with self.graph.inserting_after(self._device_source):
                    self._device = self.graph.call_function(
                        getattr, (self._device_source, "device")
                    )
        return self._device

    def capture(self, node: fx.Node) -> fx.Node:
        """The node itself, or the placeholder by which a sub-graph reads an outer one."""
        if node.graph is self.graph or self.outer is None:
            return node
        if node not in self.captures:
            outer = self.outer.capture(node)
            if outer is not node and outer in self.captures:
                return self.captures[outer]
            known = self.graph.find_nodes(op="placeholder")
            place = (
                self.graph.inserting_after(known[-1])
                if known
                else self.graph.inserting_before(next(iter(self.graph.nodes), None))
            )
            with place:
                inner = self.graph.placeholder(f"outer_{outer.name}")
            inner.meta["non_negative"] = node.meta.get("non_negative", False)
            inner.meta["type"] = outer.meta.get("type")
            is_stored = outer.op == "get_attr"
            inner.meta["stored"] = outer.target if is_stored else outer.meta.get("stored")
            self.captures[outer] = inner
            node = outer
        return self.captures[node]

    def unique(self, name: str) -> str:
        """Reserve an attribute name that reads like `name`."""
        candidate = _free(identifier(name), self._taken)
        self._taken.add(candidate)
        return candidate

    def _local(self, args: Any) -> Any:
        if self.outer is None:
            return args
        return fx.node.map_arg(args, self.capture)


def to_torch(array: np.ndarray, elem_type: int) -> torch.Tensor:
    """Copy an array into a tensor of the type it is computed in.

    Half precision becomes float32. Training never writes into the memory of the model file.
    """
    narrow = QUANTIZED_DTYPES.get(elem_type)
    if narrow is not None and narrow.is_floating_point:
        return torch.from_numpy(np.array(array, order="C").view(np.uint8)).view(narrow)
    if narrow is not None:
        return torch.from_numpy(array.astype(np.int8)).to(narrow)
    if elem_type not in TORCH_DTYPES:
        raise UnsupportedNode(f"a constant of ONNX element type {elem_type}")
    # Memory that torch allocates is filled three times as fast as memory that numpy does.
    values = torch.empty(array.shape, dtype=TORCH_DTYPES[elem_type])
    np.copyto(values.numpy(), array, casting="unsafe")
    return values
