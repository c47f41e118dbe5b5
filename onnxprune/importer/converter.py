"""Walk an ONNX graph and build the fx graph."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    NodeProto,
    TensorProto,
    TypeProto,
    numpy_helper,
)
from torch import fx, nn

from onnxprune.contrib_types import infer_contrib
from onnxprune.errors import ModelFileError, UnsupportedModelError
from onnxprune.importer import hosts
from onnxprune.importer.axes import check_axes
from onnxprune.importer.builder import GraphBuilder, identifier
from onnxprune.importer.functions import bound_attributes, copied_values, instantiate, standard_body
from onnxprune.importer.fusion import fuse
from onnxprune.importer.module import ImportInfo
from onnxprune.importer.op import Op
from onnxprune.importer.registry import (
    Entry,
    LeftToBody,
    UnsupportedInside,
    UnsupportedNode,
    find_entry,
)
from onnxprune.importer.scopes import Scope, needed_nodes, visible_types, without_inputs
from onnxprune.importer.values import HALF_DTYPES, Host, Value, check_size, numpy_dtype
from onnxprune.model import OnnxModel
from onnxprune.shapes import Schema, find_schema, infer_node, tensor_type, type_shape
from onnxprune.stored import Stored, constant_value, stored_array, stored_type
from onnxprune.tensors import GraphTensor, find_tensors

OLDEST_OPSET = 1
_MAX_DEPTH = 32
DAMAGE = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError),
    *(ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError),
)
"""What code that expects a sound node raises on a damaged one, PyTorch and ONNX included."""
_ACTIVATIONS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
_TRANSPARENT = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze"})


class Converter:
    """Turns one model into an fx graph, and collects whatever cannot be converted."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.tensors = find_tensors(model.proto)
        self.root = nn.Module()
        self.builder = GraphBuilder(self.root)
        self._stored = {id(tensor.proto): tensor for tensor in self.tensors.values()}
        self._twins: list[Stored] = []  # kept, so that no other object has their identity
        self._functions = {(f.domain, f.name): f for f in model.proto.functions}
        self._hosts: dict[int, Host] = {}
        self._problems: dict[str, list[str]] = {}
        self._inference_only: list[str] = []
        self._stated_types = {value.name: value.type for value in model.proto.graph.value_info}

    def run(self) -> tuple[nn.Module, fx.Graph, ImportInfo]:
        """Convert the main graph.

        Raises:
            UnsupportedModelError: An operator set version or operators are not supported; the
                error lists all of them.
        """
        graph = self.model.proto.graph
        scope = Scope(self._checked_versions())
        argument_names = self._add_inputs(scope)
        self._add_initializers(scope, graph)
        outputs = [value.name for value in graph.output]
        self.convert_nodes(scope, graph.node, outputs, self.builder)
        known = len(argument_names) == len(self.model.inputs)
        if not known or any(scope.find(name)[0] is None for name in outputs):
            self._raise_problems()
        self._add_outputs(scope, graph)
        self.builder.graph.eliminate_dead_code(_is_border)
        fuse(self.root, self.builder.graph)
        _read_late(self.builder.graph)
        self.builder.graph.lint()
        return self.root, self.builder.graph, self._info(argument_names)

    def _checked_versions(self) -> dict[str, int]:
        versions: dict[str, int] = {}
        for opset in self.model.proto.opset_import:
            versions["" if opset.domain == "ai.onnx" else opset.domain] = int(opset.version)
        newest = onnx.defs.onnx_opset_version()
        version = versions.setdefault("", newest if self._functions else 0)
        if not OLDEST_OPSET <= version <= newest:
            raise UnsupportedModelError(
                "the model's operator set version is not supported",
                where=self.model.label,
                got=f"ai.onnx {version}",
                expected=f"{OLDEST_OPSET} to {newest}",
                remedy="convert it with onnx.version_converter"
                if version < OLDEST_OPSET
                else "install a newer `onnx` package",
            )
        return versions

    def _add_inputs(self, scope: Scope) -> dict[str, str]:
        graph = self.model.proto.graph
        types = {value.name: value.type for value in graph.input}
        argument_names = {}
        for spec in self.model.inputs:
            if not types[spec.name].HasField("tensor_type"):
                self._problem("input of a non-tensor type", spec.name)
                continue
            node = self.builder.placeholder(spec.name)
            argument_names[spec.name] = str(node.target)
            scope.types[spec.name] = node.meta["type"] = types[spec.name]
            elem_type = types[spec.name].tensor_type.elem_type
            scope.values[spec.name] = node
            if elem_type in HALF_DTYPES:
                node = scope.values[spec.name] = self.builder.method("float", node)
                node.meta["type"] = types[spec.name]
        return argument_names

    def _add_initializers(self, scope: Scope, graph: GraphProto) -> None:
        for tensor in graph.initializer:
            self._store(scope, tensor.name, self._stored[id(tensor)])
        for sparse in graph.sparse_initializer:
            self._store(scope, sparse.values.name, self._stored[id(sparse)])

    def _store(self, scope: Scope, name: str, tensor: GraphTensor) -> None:
        scope.types[name] = tensor_type(tensor.elem_type, tensor.shape)
        scope.values[name] = None
        if tensor.trainable:
            scope.values[name] = self.builder.parameter(tensor)
        elif tensor.elem_type != TensorProto.STRING:
            scope.values[name] = self._host(name, tensor)

    def _host(self, name: str, tensor: GraphTensor) -> Host:
        host = self._hosts.get(id(tensor.proto))
        if host is None:
            array = tensor.array()
            if tensor.elem_type in HALF_DTYPES:
                array = array.astype(np.float32)
            host = self._hosts[id(tensor.proto)] = Host(array, tensor.elem_type, name)
            self.builder.stored[id(array)] = tensor
        return host

    def convert_nodes(
        self,
        scope: Scope,
        nodes: Iterable[NodeProto],
        outputs: Iterable[str],
        builder: GraphBuilder,
    ) -> None:
        """Convert those nodes of a graph or function body that its outputs depend on."""
        needed = needed_nodes(list(nodes), outputs, scope.readers)
        for node in needed:
            try:
                self._convert_node(scope, node, builder)
            except DAMAGE as error:
                raise ModelFileError(
                    f"a {node.op_type} node does not make sense",
                    where=f"{self.model.label}, node {node.name or list(node.output)!r}",
                    got=f"{type(error).__name__}: {error}",
                ) from error

    def _convert_node(self, scope: Scope, node: NodeProto, builder: GraphBuilder) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not node.output:
            raise ValueError("it has no outputs")
        if domain == "" and node.op_type == "Constant":
            self._convert_constant(scope, node)
            return
        version = scope.versions.get(domain, 1)
        schema = find_schema(domain, node.op_type, version)
        found = [scope.find(name) if name else (None, None) for name in node.input]
        for name in node.output:
            scope.values[name] = None
        blocked = any(
            value is None and name for (value, _), name in zip(found, node.input, strict=True)
        )
        types = self._infer(scope, schema, node, found)
        for value_type in types.values():
            check_size(value_type.tensor_type.elem_type, type_shape(value_type) or ())
        check_axes(node, domain, [value_type for _, value_type in found])
        op = Op(
            node,
            version,
            [value for value, _ in found],
            [value_type for _, value_type in found],
            [types.get(name) for name in node.output],
            [bool(name) and scope.readers[name] > 0 for name in node.output],
            builder,
            lambda graph, inputs: self.convert_graph(scope, graph, inputs, builder),
            lambda graph: self.inline_graph(scope, graph, builder),
        )
        self._bind(scope, op, None if blocked else hosts.evaluate(op))
        if not blocked and node.output and scope.values[node.output[0]] is not None:
            return
        entry = find_entry(domain, node.op_type, version)
        if entry is not None and (blocked or self._build(scope, op, entry)):
            return
        self._expand(scope, op, schema, domain)

    def _build(self, scope: Scope, op: Op, entry: Entry) -> bool:
        """Convert a node by its builder; False if that leaves it to the function body."""
        try:
            result = entry.builder(op)
        except LeftToBody:
            return False
        except UnsupportedInside:
            return True
        except UnsupportedNode as reason:
            self._problem(f"{op.node.op_type}: {reason}", op.label)
            return True
        if not entry.trains:
            self._inference_only.append(f"{op.node.op_type} {op.label!r}")
        outputs = [result] if isinstance(result, fx.Node | Host) else list(result)
        self._bind(scope, op, outputs)
        return True

    def _bind(self, scope: Scope, op: Op, outputs: Sequence[Value | None] | None) -> None:
        """Give a node's results their ONNX names and types."""
        for index, (name, value) in enumerate(zip(op.node.output, outputs or [], strict=False)):
            if not name or value is None:
                continue
            scope.values[name] = value
            value_type = op.output_types[index]
            if isinstance(value, Host):
                value_type = tensor_type(value.elem_type, value.array.shape)
            elif value_type is None or _lacks_rank(value_type):
                value_type = value.meta.get("type", value_type)
            if value_type is not None:
                scope.types[name] = value_type
            if isinstance(value, fx.Node):
                if value_type is not None and value_type.HasField("tensor_type"):
                    value.meta["type"] = value_type
                _rename(value, name)

    def _convert_constant(self, scope: Scope, node: NodeProto) -> None:
        name = node.output[0]
        stored = constant_value(node)
        if stored is None:
            self._problem("Constant of strings", name)
            scope.values[name] = None
        elif id(stored) in self._stored:
            self._store(scope, name, self._stored[id(stored)])
        else:
            array, elem_type = stored_array(stored), stored_type(stored)
            if elem_type in HALF_DTYPES:
                array = array.astype(np.float32)
            scope.values[name] = Host(array, elem_type, name)
            scope.types[name] = tensor_type(elem_type, array.shape)

    def _expand(self, scope: Scope, op: Op, schema: Schema | None, domain: str) -> None:
        """Convert a node through its function body."""
        node = op.node
        function = self._functions.get((node.domain, node.op_type))
        if function is None and schema is not None:
            function = standard_body(schema, node, op.version, op.input_types)
        if function is None or scope.depth >= _MAX_DEPTH:
            kind = f"{domain}.{node.op_type}" if domain else node.op_type
            self._problem(f"{kind} (version {op.version})", op.label)
            return
        versions = {**scope.versions, **{o.domain: int(o.version) for o in function.opset_import}}
        inner = Scope(versions, depth=scope.depth + 1)
        for index, formal in enumerate(function.input):
            given = index < len(node.input) and node.input[index]
            inner.values[formal], value_type = (
                scope.find(node.input[index]) if given else (None, None)
            )
            if value_type is not None:
                inner.types[formal] = value_type
        absent = {f for i, f in enumerate(function.input) if not op.has(i)}
        body = self._body(function, bound_attributes(node, function, schema))
        body = [without_inputs(inner_node, absent) for inner_node in body]
        self.convert_nodes(inner, body, function.output, op.builder)
        outputs = [inner.values.get(name) for name in function.output]
        for index, name in enumerate(function.output):
            if index < len(op.output_types) and op.output_types[index] is None:
                op.output_types[index] = inner.types.get(name)
        self._bind(scope, op, outputs)

    def _body(
        self, function: FunctionProto, attributes: dict[str, AttributeProto]
    ) -> list[NodeProto]:
        """The nodes of a function, whose copies hold the same stored tensors."""
        body = instantiate(function.node, attributes)
        for node, copy in zip(function.node, body, strict=True):
            if copy is not node:
                for stored, twin in copied_values(node, copy):
                    if id(stored) in self._stored:
                        self._stored[id(twin)] = self._stored[id(stored)]
                        self._twins.append(twin)
        return body

    def convert_graph(
        self, scope: Scope, graph: GraphProto, inputs: list[TypeProto | None], outer: GraphBuilder
    ) -> tuple[GraphBuilder, list[Value | None]]:
        """Convert a sub-graph with a builder of its own; returns it and the sub-graph's outputs."""
        builder = GraphBuilder(self.root, outer)
        inner = Scope(scope.versions, outer=scope, depth=scope.depth + 1)
        for value, value_type in zip(graph.input, inputs, strict=False):
            placeholder = inner.values[value.name] = builder.placeholder(value.name)
            known = value_type is not None and value_type.HasField("tensor_type")
            inner.types[value.name] = value_type if known and value_type else value.type
            placeholder.meta["type"] = inner.types[value.name]
        return builder, [value for value, _ in self._convert_inside(inner, graph, builder)]

    def inline_graph(
        self, scope: Scope, graph: GraphProto, builder: GraphBuilder
    ) -> list[tuple[Value | None, TypeProto | None]]:
        """Convert a sub-graph without inputs in place; returns its outputs and their types."""
        inner = Scope(scope.versions, outer=scope, depth=scope.depth + 1)
        return self._convert_inside(inner, graph, builder)

    def _convert_inside(
        self, inner: Scope, graph: GraphProto, builder: GraphBuilder
    ) -> list[tuple[Value | None, TypeProto | None]]:
        self._add_initializers(inner, graph)
        names = [value.name for value in graph.output]
        self.convert_nodes(inner, graph.node, names, builder)
        return [inner.find(name) for name in names]

    def _infer(
        self,
        scope: Scope,
        schema: Schema | None,
        node: NodeProto,
        found: list[tuple[Value | None, TypeProto | None]],
    ) -> dict[str, TypeProto]:
        """Types of a node's outputs as far as ONNX can tell."""
        if schema is None:
            if (node.domain, node.op_type) in self._functions:
                return {}
            return self._infer_without_schema(node, [value_type for _, value_type in found])
        types: dict[str, TypeProto] = {}
        data: dict[str, TensorProto] = {}
        for name, (value, value_type) in zip(node.input, found, strict=True):
            if not name:
                continue
            types[name] = value_type or TypeProto()
            if isinstance(value, Host) and value.literal and value.array.size <= 64:
                array = value.array.astype(numpy_dtype(value.elem_type), copy=False)
                data[name] = numpy_helper.from_array(array, name)
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            types = {**visible_types(scope), **types}
        try:
            return infer_node(schema, node, types, data, scope.versions)
        except onnx.checker.ValidationError as error:
            raise ModelFileError(
                f"a {node.op_type} node does not fit its operator",
                where=f"{self.model.label}, node {node.name or list(node.output)!r}",
                got=str(error).strip(),
            ) from None

    def _infer_without_schema(
        self, node: NodeProto, input_types: list[TypeProto | None]
    ) -> dict[str, TypeProto]:
        """Types of the outputs of a com.microsoft node.

        What is not known of the operator is taken from the file, but not its sizes: those may be
        left over from before somebody made an axis dynamic.
        """
        types = infer_contrib(node, input_types)
        for name in node.output:
            stated = self._stated_types.get(name)
            if name not in types and stated is not None and stated.HasField("tensor_type"):
                shape = type_shape(stated)
                rank_only = None if shape is None else (None,) * len(shape)
                types[name] = tensor_type(stated.tensor_type.elem_type, rank_only)
        return types

    def _add_outputs(self, scope: Scope, graph: GraphProto) -> None:
        results = []
        for value in graph.output:
            result, value_type = scope.find(value.name)
            if result is None:
                raise UnsupportedModelError(
                    "an output of the model is not a tensor", where=value.name
                )
            node = self.builder.materialise(result)
            elem_type = value_type.tensor_type.elem_type if value_type is not None else 0
            elem_type = elem_type or value.type.tensor_type.elem_type
            if elem_type in HALF_DTYPES:
                node = self.builder.method("to", node, HALF_DTYPES[elem_type])
            results.append(node)
        self.builder.graph.output(results[0] if len(results) == 1 else tuple(results))

    def _problem(self, what: str, node: str) -> None:
        self._problems.setdefault(what, []).append(node)

    def _raise_problems(self) -> None:
        if not self._problems:
            return
        lines = []
        for what, nodes in sorted(self._problems.items()):
            shown = ", ".join(repr(name) for name in nodes[:8])
            more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
            lines.append(f"{what} at {shown}{more}")
        raise UnsupportedModelError(
            "the model uses operators that cannot be imported",
            where=self.model.label,
            got="\n    " + "\n    ".join(lines),
            remedy=_remedy(" ".join(self._problems)),
        )

    def _info(self, argument_names: dict[str, str]) -> ImportInfo:
        nodes = self.builder.graph.nodes
        attributes = {str(n.target) for n in nodes if n.op == "get_attr"}
        modules = {str(n.target) for n in nodes if n.op == "call_module"}
        graph = self.model.proto.graph
        producers = {name: node for node in graph.node for name in node.output}
        names = {k: v for k, v in self.builder.tensor_names.items() if k in attributes}
        return ImportInfo(
            source=self.model,
            tensors=_with_what_is_read(self.tensors, set(names.values())),
            tensor_names=names,
            buffer_names=self._buffer_names(modules),
            input_names=[spec.name for spec in self.model.inputs],
            output_names=[value.name for value in graph.output],
            argument_names=argument_names,
            output_activations={
                value.name: _final_activation(producers, value.name) for value in graph.output
            },
            inference_only=self._inference_only,
        )

    def _buffer_names(self, modules: set[str]) -> dict[str, str]:
        """ONNX names of buffers by their paths, which lead into sub-graphs for some of them."""
        names: dict[str, str] = {}
        for path, _ in self.root.named_buffers(remove_duplicate=False):
            key = ".".join(path.split(".")[-2:])
            known = self.builder.buffer_names.get(key)
            if known is not None and path.split(".")[0] in modules and known not in names.values():
                names[path] = known
        return names


def _with_what_is_read(
    tensors: dict[str, GraphTensor], parameters: set[str]
) -> dict[str, GraphTensor]:
    """The stored tensors, of which none trains that no output depends on."""
    return {
        name: replace(tensor, trainable=False, prunable=False)
        if tensor.trainable and name not in parameters
        else tensor
        for name, tensor in tensors.items()
    }


def _lacks_rank(value_type: TypeProto) -> bool:
    return value_type.HasField("tensor_type") and type_shape(value_type) is None


def _remedy(problems: str) -> str:
    """What to do about operators that cannot be imported."""
    if "com.microsoft.nchwc." in problems:
        return (
            "ONNX Runtime has laid the model out for one kind of machine: take the model from "
            "before, or optimise it with ORT_ENABLE_EXTENDED instead of ORT_ENABLE_ALL"
        )
    if "ai.onnx.ml." in problems:
        return (
            "operators of ai.onnx.ml belong to trees and other classical models, which have no "
            "weights to train; take a neural network"
        )
    if "running statistic at once" in problems:
        return (
            "exporters store equal tensors once, and those of an untrained network are equal: "
            "export it after training, or after one pass in training mode"
        )
    return "export the model without these operators, or simplify it before the import"


def _is_border(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output")


def _read_late(graph: fx.Graph) -> None:
    """Move reads of parameters and buffers to where they are used first."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        min(node.users, key=order.__getitem__).prepend(node)


def _rename(node: fx.Node, name: str) -> None:
    """Give an fx node the name of the ONNX value that it computes, unless it has one already."""
    if node.op in ("placeholder", "get_attr") or node.meta.get("named"):
        return
    node._rename(identifier(name.removesuffix("_output_0")))
    node.meta["named"] = True
    node.meta["onnx_name"] = name


def _final_activation(producers: dict[str, NodeProto], name: str) -> str | None:
    """The activation that an output ends in, looking through nodes that only rearrange it."""
    seen = 0
    while name in producers and seen <= len(producers):
        node = producers[name]
        if node.op_type not in _TRANSPARENT or node.domain not in ("", "ai.onnx"):
            return _ACTIVATIONS.get(node.op_type)
        name = node.input[0]
        seen += 1
    return None
