"""Whether a parsed model is a graph at all: names, order, sub-graphs and functions.

Nothing here looks at tensors or knows operators. What passes can be walked without surprises: every
value has one producer, which comes before its readers, and neither sub-graphs nor calls of
functions go on without end.
"""

from collections.abc import Iterable, Iterator

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from onnxprune.errors import ModelFileError
from onnxprune.payload import inner_graphs

MAX_GRAPH_DEPTH = 32
"""Sub-graphs inside sub-graphs; a file cannot hold more, as Protocol Buffers limit nesting."""

MAX_CALL_DEPTH = 32
"""Functions inside functions."""

MAX_EXPANDED_NODES = 200_000
"""Nodes of a model with functions after all calls are expanded.

Functions that call each other twice at every level double the graph with every level.
"""


def check_graphs(proto: ModelProto, where: str) -> None:
    """Reject what parses as a message, yet is no usable graph.

    Raises:
        ModelFileError: The model is incomplete, damaged or nested without end.
    """
    if not proto.graph.node or not proto.graph.output or not proto.opset_import:
        raise ModelFileError(
            "this is not an ONNX model, or it is truncated",
            where=where,
            got=f"{len(proto.graph.node)} nodes, {len(proto.graph.output)} outputs, "
            f"{len(proto.opset_import)} operator sets",
            expected="a graph with nodes and outputs, and an operator set",
        )
    domains = _domains([], proto, where)
    check_depth(proto, where)
    _check_graph(proto.graph, set(), domains, where)
    for function in proto.functions:
        _check_function(function, domains, where)
    if proto.functions:
        _check_calls(proto, where)


def _domains(known: Iterable[str], holder: ModelProto | FunctionProto, where: str) -> set[str]:
    _check_text([opset.domain for opset in holder.opset_import], where)
    return {*known, *(_domain(opset.domain) for opset in holder.opset_import)}


def check_depth(proto: ModelProto, where: str) -> None:
    """Reject sub-graphs that are nested deeper than anything that walks them can bear.

    Raises:
        ModelFileError: They are.
    """
    level = [proto.graph.node, *(function.node for function in proto.functions)]
    for _ in range(MAX_GRAPH_DEPTH + 1):
        level = [g.node for nodes in level for node in nodes for _, g in inner_graphs(node)]
        if not level:
            return
    raise ModelFileError(
        "sub-graphs are nested without end",
        where=where,
        expected=f"at most {MAX_GRAPH_DEPTH} graphs inside each other",
    )


def _check_function(function: FunctionProto, domains: set[str], where: str) -> None:
    names = [function.domain, function.name, *function.input, *function.output]
    _check_text([*names, *function.attribute], where)
    where = f"{where}, function {function.domain}::{function.name}"
    known: set[str] = set()
    _define(function.input, known, known, where)
    own = set(known)
    _check_nodes(function.node, known, own, _domains(domains, function, where), where, True)
    _check_produced(function.output, known, where)


def _check_graph(
    graph: GraphProto, outer: set[str], domains: set[str], where: str, in_function: bool = False
) -> None:
    """Reject graphs whose nodes read values that nothing produces; `outer` holds known names."""
    inputs = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer]
    stored += [sparse.values.name for sparse in graph.sparse_initializer]
    results = [value.name for value in graph.output]
    _check_text([graph.name, *inputs, *stored, *results], where)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _check_text((dim.dim_param for dim in value.type.tensor_type.shape.dim), where)
    own: set[str] = set()
    _define(inputs, own, own, f"{where}, graph inputs")
    defaults: set[str] = set()
    _define(stored, defaults, defaults, f"{where}, initializers")
    own |= defaults
    known = outer | own
    _check_nodes(graph.node, known, own, domains, where, in_function)
    _check_produced(results, known, where)


def _check_nodes(
    nodes: Iterable[NodeProto],
    known: set[str],
    own: set[str],
    domains: set[str],
    where: str,
    in_function: bool,
) -> None:
    """Check nodes in order, and add their outputs to `known` and to the graph's `own` names."""
    for node in nodes:
        _check_text([node.name, node.op_type, node.domain, *node.input, *node.output], where)
        place = f"{where}, node {node.name or node.op_type!r} ({node.op_type})"
        if _domain(node.domain) not in domains:
            raise ModelFileError(
                "the model is damaged or truncated: it does not say which version of an "
                "operator set it uses",
                where=place,
                got=f"no entry for the domain {node.domain!r}",
            )
        for name in node.input:
            if name and name not in known:
                raise ModelFileError(
                    "the graph is damaged: a node reads a value that nothing before it produces",
                    where=place,
                    got=f"input {name!r}",
                    expected="a graph input, an initializer, or the output of an earlier node",
                )
        _check_attributes(node, place, in_function)
        for _, graph in inner_graphs(node):
            _check_graph(graph, known, domains, where, in_function)
        _define((name for name in node.output if name), own, known, place)


def _check_attributes(node: NodeProto, where: str, in_function: bool) -> None:
    for attribute in node.attribute:
        _check_text([attribute.name, attribute.ref_attr_name], where)
        if attribute.ref_attr_name and not in_function:
            raise ModelFileError(
                "the graph is damaged: an attribute outside of a function refers to one of its "
                "attributes",
                where=where,
                got=f"{attribute.name} = @{attribute.ref_attr_name}",
                expected="a value",
            )


def _define(names: Iterable[str], own: set[str], known: set[str], where: str) -> None:
    """Add names to both sets; each may be defined once in its graph."""
    for name in names:
        if name in own:
            raise ModelFileError(
                "the graph is damaged: a value is defined twice",
                where=where,
                got=f"a second {name!r}",
                expected="one input, initializer or node for every name",
            )
        own.add(name)
        known.add(name)


def _check_produced(names: Iterable[str], known: set[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise ModelFileError(
                "the graph is damaged: nothing produces one of its outputs",
                where=f"{where}, output {name!r}",
            )


def _check_text(names: Iterable[object], where: str) -> None:
    """Reject names that are not UTF-8: protobuf hands out bytes for them, or raises."""
    try:
        wrong = next((name for name in names if not isinstance(name, str)), None)
    except UnicodeDecodeError as error:
        wrong = error
    if wrong is not None:
        raise ModelFileError(
            "the file is damaged: a name is not UTF-8 text", where=where, got=repr(wrong)[:200]
        )


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _check_calls(proto: ModelProto, where: str) -> None:
    """Reject functions that call themselves, or each other so often that nobody could expand it."""
    functions: dict[tuple[str, str], FunctionProto] = {}
    for function in proto.functions:
        key = (_domain(function.domain), function.name)
        if key in functions:
            raise ModelFileError(
                "the model is damaged: it defines a function twice",
                where=where,
                got=f"a second {function.domain}::{function.name}",
            )
        functions[key] = function
    calls: dict[tuple[str, str], list[tuple[str, str]]] = {key: [] for key in functions}
    sizes: dict[tuple[str, str], int] = {}
    for key, function in functions.items():
        for node in _all_nodes(function.node):
            callee = (_domain(node.domain), node.op_type)
            if callee in functions:
                calls[key].append(callee)
    for _ in range(MAX_CALL_DEPTH):
        for key in functions.keys() - sizes.keys():
            if all(callee in sizes for callee in calls[key]):
                own = sum(1 for _ in _all_nodes(functions[key].node))
                sizes[key] = own + sum(sizes[callee] for callee in calls[key])
    endless = sorted("::".join(key) for key in functions.keys() - sizes.keys())
    if endless:
        raise ModelFileError(
            "functions of the model call each other without end",
            where=where,
            got=", ".join(endless[:8]),
            expected=f"at most {MAX_CALL_DEPTH} functions inside each other, and no circle",
        )
    nodes = list(_all_nodes(proto.graph.node))
    total = len(nodes) + sum(sizes.get((_domain(n.domain), n.op_type), 0) for n in nodes)
    if total > MAX_EXPANDED_NODES:
        raise ModelFileError(
            "the model's functions call each other too often",
            where=where,
            got=f"{total} nodes when all calls are expanded",
            expected=f"at most {MAX_EXPANDED_NODES}",
        )


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for _, graph in inner_graphs(node):
            yield from _all_nodes(graph.node)
