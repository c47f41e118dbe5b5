"""Read from an ONNX graph how values depend on weights and on each other.

Only the main graph is analysed. What a sub-graph or a function of the model reads is used as a
whole, and so is what goes into an operator, or a form of one, that is not described in this
package: what cannot be analysed stays whole.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import onnx
from onnx import GraphProto, NodeProto

from onnxprune.cascade.flow import (
    Flow,
    Link,
    Move,
    Opaque,
    Pointwise,
    Product,
    Profile,
    Step,
    Stored,
)
from onnxprune.graph_shapes import infer_facts
from onnxprune.payload import inner_graphs
from onnxprune.slots import STATISTICS_ROLES
from onnxprune.stored import constant_value
from onnxprune.structure import elementwise, linear, moving, reducing
from onnxprune.structure.builder import FLOATS, Builder, Whole, view_shape
from onnxprune.structure.sizes import BATCHES, Sizes, fixed, paired
from onnxprune.tensor_views import REARRANGING, attribute_of
from onnxprune.tensors import GraphTensor, find_tensors

_HANDLERS = {
    **elementwise.HANDLERS,
    **linear.HANDLERS,
    **moving.HANDLERS,
    **reducing.HANDLERS,
}
_ONLY_SHAPES = frozenset({"Shape", "Size"})
"""Operators that read no element of their input."""

_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What code that expects a sound node raises on a damaged one."""


def read_flow(proto: onnx.ModelProto) -> Flow:
    """Read what flows where in a model; do it once, the closure needs nothing else of the graph.

    Args:
        proto: The model; it is not changed.

    Raises:
        ModelFileError: A node is damaged, or functions call each other in a circle.
    """
    tensors = find_tensors(proto)
    build = _builder(proto, tensors)
    functions = {(function.domain, function.name) for function in proto.functions}
    ignored: set[str] = set()
    for node in proto.graph.node:
        if all(name in build.stored for name in node.output):
            continue
        if node.domain in ("", "ai.onnx") and node.op_type in _ONLY_SHAPES:
            continue
        before = len(build.steps)
        handler = _HANDLERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if (node.domain, node.op_type) in functions:
            handler = None
        try:
            if handler is None:
                raise Whole
            handler(build, node)
            if any(n and n in build.read and n not in build.profiles for n in node.output):
                raise Whole
        except (Whole, *_DAMAGE):
            build.undo(before)
            captured = [name for name in _captured(node) if name not in node.input]
            build.opaque([*filter(None, node.input), *captured], [*filter(None, node.output)])
        taken = {name for step in build.steps[before:] for name in _inputs(step)}
        ignored.update(n for n in node.input if n and n not in taken and n not in build.stored)
    results = {value.name for value in proto.graph.output}
    for name in results | ignored:
        build.any_profile(name)
    given_out = {
        name for value in results & build.stored.keys() for name in build.stored[value].names
    }
    outputs = frozenset(results | ignored)
    return Flow(
        profiles=build.profiles,
        operands=tuple(build.operands.values()),
        steps=_with_takers(build.steps, outputs, build),
        outputs=outputs,
        uses=_uses(tensors) + Counter(given_out),
        held=_held(build.steps, tensors) | given_out,
    )


def _builder(proto: onnx.ModelProto, tensors: Mapping[str, GraphTensor]) -> Builder:
    """A builder that knows sizes, element types, and what is stored."""
    first, second = (infer_facts(proto, batch) for batch in BATCHES)
    sizes: dict[str, Sizes] = {}
    for name in first.shapes.keys() & second.shapes.keys():
        pair = paired(first.shapes[name], second.shapes[name])
        if pair is not None:
            sizes[name] = pair
    numbers = {n: v for n, v in first.numbers.items() if second.numbers.get(n) == v}
    versions = {opset.domain: int(opset.version) for opset in proto.opset_import}
    return Builder(
        sizes=sizes,
        numbers=numbers,
        stored=_stored(proto.graph, tensors, sizes),
        tensors=tensors,
        fixed=frozenset(
            name
            for name, tensor in tensors.items()
            if not tensor.trainable and tensor.role not in STATISTICS_ROLES
        ),
        version=versions.get("", versions.get("ai.onnx", 1)),
        elem_types=first.elem_types,
        read=frozenset(_read(proto.graph)),
    )


def _stored(
    graph: GraphProto, tensors: Mapping[str, GraphTensor], sizes: Mapping[str, Sizes]
) -> dict[str, Stored]:
    """The stored tensors of the main graph, and values that are rearrangements of them."""
    names = [tensor.name for tensor in graph.initializer]
    names += [tensor.values.name for tensor in graph.sparse_initializer]
    stored = {name: Stored((name,), ()) for name in names if name in tensors}
    for node in graph.node:
        if not node.output:
            continue
        output = node.output[0]
        if constant_value(node) is not None and output in tensors:
            stored[output] = Stored((output,), ())
        elif node.op_type in REARRANGING and node.domain in ("", "ai.onnx") and node.input:
            source = stored.get(node.input[0])
            view = None if source is None else _rearranged(node, source, tensors, sizes)
            if source is not None and view is not None:
                stored[output] = Stored((output, source.names[-1]), view)
    return stored


def _rearranged(
    node: NodeProto,
    source: Stored,
    tensors: Mapping[str, GraphTensor],
    sizes: Mapping[str, Sizes],
) -> tuple[Link, ...] | None:
    """How a tensor is read behind one more node; None if that is not known."""
    tensor = tensors[source.names[-1]]
    shape = view_shape(source, tensor.shape)
    if node.op_type == "Identity":
        return source.view
    if tensor.elem_type not in FLOATS:
        return None
    if node.op_type == "Cast":
        return source.view if attribute_of(node, "to") in FLOATS else None
    if node.op_type == "Transpose":
        axes = attribute_of(node, "perm") or list(range(len(shape)))[::-1]
        return (*source.view, Link(shape, tuple(axes)))
    if node.op_type == "CastLike":
        return None
    target = [fixed(size) for size in sizes.get(node.output[0], (None,))]
    known = [size for size in target if size is not None]
    if len(known) < len(target):
        return None
    return (*source.view, Link(tuple(known), tuple(range(len(known)))))


def _read(graph: GraphProto) -> Iterable[str]:
    """Names that something reads, in this graph or in those inside of it."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        yield from _captured(node)


def _captured(node: NodeProto) -> list[str]:
    """All names that sub-graphs of a node read, wherever they come from."""
    return [name for _, graph in inner_graphs(node) for name in _read(graph)]


def _inputs(step: Step) -> tuple[str, ...]:
    return step.inputs if isinstance(step, Move | Pointwise | Opaque) else (step.input,)


def _uses(tensors: Mapping[str, GraphTensor]) -> Counter[str]:
    """How many operator inputs each tensor feeds, and each alias of one by itself."""
    uses = Counter(use.value for tensor in tensors.values() for use in tensor.uses)
    for tensor in tensors.values():
        uses[tensor.name] = len(tensor.uses)
    return uses


def _held(steps: Iterable[Step], tensors: Mapping[str, GraphTensor]) -> frozenset[str]:
    """Stored tensors that something else than the products among the steps reads."""
    products = Counter(step.weight.names[-1] for step in steps if isinstance(step, Product))
    return frozenset(name for name, t in tensors.items() if len(t.uses) != products[name])


def _with_takers(
    steps: Iterable[Step], outputs: frozenset[str], build: Builder
) -> tuple[Step, ...]:
    """The steps, in which products know the bias or the running mean that follows them alone."""
    steps = list(steps)
    readers: dict[str, list[Step]] = {}
    for step in steps:
        for name in _inputs(step):
            readers.setdefault(name, []).append(step)
    result = []
    for step in steps:
        if isinstance(step, Product) and step.output not in outputs:
            following = readers.get(step.output, [])
            if len(following) == 1 and isinstance(following[0], Pointwise):
                step = _with_taker(step, following[0], build)
        result.append(step)
    return tuple(result)


def _with_taker(product: Product, reader: Pointwise, build: Builder) -> Product:
    if reader.function == "batch_norm" and reader.inputs[0] == product.output:
        return replace(product, takes=reader.inputs[3], subtracted=True)
    if reader.function == "add":
        (other,) = [name for name in reader.inputs if name != product.output] or [""]
        profile = build.profiles[product.output]
        if other in build.operands and _trimmed(build.profiles[other]) == _trimmed(profile):
            return replace(product, takes=other)
    return product


def _trimmed(profile: Profile) -> Profile:
    """A profile without leading axes of size 1, which broadcasting adds."""
    while profile and profile[0] == 1:
        profile = profile[1:]
    return profile
