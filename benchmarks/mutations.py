"""Damaged models for `fuzz.py` and for the test suite: seeds, and seeded ways to damage them.

A case is decided by its two numbers, the seed of the run and its index, and by the base models.
"""

import random
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
    parser,
)

_HEADER = '<ir_version: 9, opset_import: ["" : 17{extra}]> '
_TEXTS = {
    "convolution": (
        "g (float[N,3,8,8] x) => (float[N,4] y) "
        "{ c = Conv<pads=[1,1,1,1]>(x, w) b = BatchNormalization(c, s, t, m, v) r = Relu(b) "
        "p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, u, t4) }"
    ),
    "attention": (
        "g (float[N,4,8] x) => (float[N,4,8] y) "
        "{ q = MatMul(x, k8) k = Transpose<perm=[0,2,1]>(x) a = MatMul(q, k) p = Softmax(a) "
        "z = MatMul(p, x) y = LayerNormalization<axis=-1>(z, s, t) }"
    ),
    "shapes": (
        "g (float[N,C,H,W] x) => (float[N,R] y, int64[K] k) "
        "{ h = Shape(x) n = Gather(h, i0) o = Unsqueeze(n, a0) d = Concat<axis=0>(o, neg) "
        "y = Reshape(x, d) z = Slice(h, a0, two) e = ConstantOfShape(z) g = Cast<to=7>(e) "
        "q = Range(i0, i2, i1) k = Expand(q, a2) }"
    ),
    "control": (
        "g (float[4] x, bool c) => (float[4] y, float[T,4] all) "
        "{ z = If(c) <then_branch = a () => (float[4] p) { p = Mul(x, w4) }, "
        "else_branch = b () => (float[4] q) { q = Add(x, w4) }> "
        "y, all = Loop(i2, c, z) <body = l (int64 i, bool d, float[4] j) => "
        "(bool e, float[4] o, float[4] r) { e = Identity(d) o = Mul(j, w4) r = Relu(o) }> }"
    ),
    "recurrent": (
        "g (float[S,N,8] x) => (float[S,D,N,8] y) { y = LSTM<hidden_size=8>(x, lw, lr, lb) }"
    ),
    "quantised": (
        "g (float[N,8] x) => (float[N,8] y) "
        "{ q = QuantizeLinear(x, f1, u1) d = DequantizeLinear(q, f1, u1) e = MatMul(d, k8) "
        "p = Pad(e, pads) r = Resize<mode=\"nearest\">(p, , scales) h = Tile(r, a2n) "
        "y = Clip(h, f1, f2) }"
    ),
}  # fmt: skip
_FUNCTION = (
    '<ir_version: 9, opset_import: ["" : 17, "own" : 1]> '
    "g (float[N,8] x) => (float[N,8] y) { h = own.twice(x, k8) y = own.act<alpha = 0.5>(h) } "
    '<domain: "own", opset_import: ["" : 17, "own" : 1]> '
    "twice (a, w) => (b) { c = MatMul(a, w) b = MatMul(c, w) } "
    '<domain: "own", opset_import: ["" : 17]> '
    "act <alpha> (a) => (b) { b = LeakyRelu<alpha: float = @alpha>(a) }"
)


def base_models() -> dict[str, bytes]:
    """Small models that between them use most of what a file can hold."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    arrays: dict[str, np.ndarray] = {
        "w": normal(8, 3, 3, 3), "u": normal(4, 8), "t4": normal(4), "w4": normal(4),
        "s": np.abs(normal(8)), "t": normal(8), "m": normal(8), "v": np.abs(normal(8)),
        "k8": normal(8, 8), "lw": normal(1, 32, 8), "lr": normal(1, 32, 8), "lb": normal(1, 64),
        "i0": np.array(0), "i1": np.array(1), "i2": np.array(2), "a0": np.array([0]),
        "two": np.array([2]), "a2": np.array([2]), "a2n": np.array([1, 2]), "neg": np.array([-1]),
        "pads": np.array([0, 1, 0, 1]), "scales": np.array([1, 2], np.float32),
        "f1": np.array(0.1, np.float32), "f2": np.array(6, np.float32), "u1": np.array(3, np.uint8),
    }  # fmt: skip
    texts = {name: _HEADER.format(extra="") + text for name, text in _TEXTS.items()}
    models = {}
    for name, text in {**texts, "function": _FUNCTION}.items():
        proto = parser.parse_model(text)
        read = {value for node in proto.graph.node for value in _reads(node)}
        for key in sorted(read & arrays.keys()):
            proto.graph.initializer.append(numpy_helper.from_array(arrays[key], key))
        models[name] = proto.SerializeToString()
    half = onnx.ModelProto.FromString(models["attention"])
    for tensor in half.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    models["half"] = half.SerializeToString()
    sparse = onnx.ModelProto.FromString(models["function"])
    indices = numpy_helper.from_array(np.array([0, 9, 18]))
    values = numpy_helper.from_array(normal(3), "k8")
    del sparse.graph.initializer[:]
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8, 8]))
    models["sparse"] = sparse.SerializeToString()
    return models


def _reads(node: NodeProto) -> list[str]:
    names = list(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names += _reads(inner)
    return names


_NOTHING_TO_DAMAGE = (IndexError, TypeError, ValueError, onnx.checker.ValidationError)


def damaged(bases: Mapping[str, bytes], seed: int, index: int) -> tuple[str, bytes]:
    """The case of that number: what was done to which model, and the resulting file."""
    rng = random.Random(f"{seed}:{index}")
    name = rng.choice(sorted(bases))
    data = bases[name]
    if rng.random() < 0.35:
        way = rng.choice(_BYTE_WAYS)
        return f"{name}: {way.__name__.strip('_')}", way(rng, data)
    proto = onnx.ModelProto.FromString(data)
    ways = [rng.choice(_WAYS) for _ in range(rng.choice([1, 1, 2, 4]))]
    done = []
    for way in ways:
        try:
            way(rng, proto)
            done.append(way.__name__.strip("_"))
        except _NOTHING_TO_DAMAGE:
            continue
    return f"{name}: {', '.join(done)}", proto.SerializeToString()


def _place(rng: random.Random, data: bytes) -> int:
    """A position, mostly in the first bytes: nodes come before weights."""
    size = len(data)
    return rng.randrange(min(size, 100_000) if rng.random() < 0.7 else size)


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes) -> bytes:
    place = _place(rng, data)
    filler = rng.choice([b"\0", b"\xff", b"\x80", rng.randbytes(1)])
    length = rng.choice([1, 2, 4, 16, 200])
    return data[:place] + filler * length + data[place + length :]


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: _place(rng, data)]


def _insert(rng: random.Random, data: bytes) -> bytes:
    place = _place(rng, data)
    return data[:place] + rng.randbytes(rng.choice([1, 2, 5, 40])) + data[place:]


def _splice(rng: random.Random, data: bytes) -> bytes:
    start, place = _place(rng, data), _place(rng, data)
    return data[:place] + data[start : start + rng.randrange(1, 2000)] + data[place:]


def _delete(rng: random.Random, data: bytes) -> bytes:
    place = _place(rng, data)
    return data[:place] + data[place + rng.choice([1, 2, 8, 100]) :]


_BYTE_WAYS = (_flip, _overwrite, _truncate, _insert, _splice, _delete)


def _graphs(proto: ModelProto) -> list[GraphProto]:
    found = [proto.graph]
    for graph in found:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    found.append(attribute.g)
    return found


def _graph(rng: random.Random, proto: ModelProto) -> GraphProto:
    return rng.choice(_graphs(proto))


def _node(rng: random.Random, proto: ModelProto) -> NodeProto:
    nodes = [node for graph in _graphs(proto) for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    return rng.choice(nodes)


def _attribute(rng: random.Random, proto: ModelProto) -> AttributeProto:
    for _ in range(50):
        node = _node(rng, proto)
        if node.attribute:
            return rng.choice(node.attribute)
    raise IndexError


def _tensor(rng: random.Random, proto: ModelProto) -> TensorProto:
    return rng.choice(
        [t for graph in _graphs(proto) for t in graph.initializer]
        + [s.values for graph in _graphs(proto) for s in graph.sparse_initializer]
        + [s.indices for graph in _graphs(proto) for s in graph.sparse_initializer]
    )


def _name(rng: random.Random, proto: ModelProto) -> str:
    node = _node(rng, proto)
    return rng.choice([*node.input, *node.output, "", "nowhere"])


_NUMBERS = (0, 1, -1, 2, 3, 7, 16, -2, 255, 1024, 10**6, 10**12, 2**31, 2**63 - 1, -(2**63))


def _swap_nodes(rng: random.Random, proto: ModelProto) -> None:
    nodes = _graph(rng, proto).node
    a, b = rng.randrange(len(nodes)), rng.randrange(len(nodes))
    first, second = (NodeProto.FromString(nodes[i].SerializeToString()) for i in (a, b))
    nodes[a].CopyFrom(second)
    nodes[b].CopyFrom(first)


def _remove_node(rng: random.Random, proto: ModelProto) -> None:
    nodes = _graph(rng, proto).node
    del nodes[rng.randrange(len(nodes))]


def _repeat_node(rng: random.Random, proto: ModelProto) -> None:
    nodes = _graph(rng, proto).node
    nodes.add().CopyFrom(rng.choice(nodes))


def _nest(rng: random.Random, proto: ModelProto) -> None:
    node = _node(rng, proto)
    copy = GraphProto.FromString(proto.graph.SerializeToString())
    node.attribute.add(name="body", type=AttributeProto.GRAPH).g.CopyFrom(copy)


def _rename_value(rng: random.Random, proto: ModelProto) -> None:
    node = _node(rng, proto)
    names = rng.choice([node.input, node.output])
    names[rng.randrange(len(names))] = _name(rng, proto)


def _change_arity(rng: random.Random, proto: ModelProto) -> None:
    names = rng.choice([_node(rng, proto).input, _node(rng, proto).output])
    if rng.random() < 0.5:
        del names[rng.randrange(len(names))]
    else:
        names.append(_name(rng, proto))


def _change_operator(rng: random.Random, proto: ModelProto) -> None:
    node = _node(rng, proto)
    schemas = [s for s in onnx.defs.get_all_schemas() if s.domain == ""]
    choices = sorted(schema.name for schema in schemas)
    node.op_type = rng.choice([*choices, _node(rng, proto).op_type])
    if rng.random() < 0.1:
        node.domain = rng.choice(["com.microsoft", "own", "ai.onnx.ml", "nowhere"])


def _change_number(rng: random.Random, proto: ModelProto) -> None:
    attribute = _attribute(rng, proto)
    attribute.i = rng.choice(_NUMBERS)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_NUMBERS)


def _change_attribute(rng: random.Random, proto: ModelProto) -> None:
    attribute = _attribute(rng, proto)
    what = rng.randrange(6)
    if what == 0:
        attribute.type = rng.randrange(15)
    elif what == 1:
        attribute.CopyFrom(helper.make_attribute(attribute.name or "a", rng.choice(_VALUES)))
    elif what == 2:
        attribute.name = _attribute(rng, proto).name
    elif what == 3:
        attribute.ref_attr_name = rng.choice(["alpha", "nothing"])
    elif what == 4:
        attribute.Clear()
    else:
        attribute.ints.extend([rng.choice(_NUMBERS)] * rng.choice([1, 2, 40]))


_VALUES = (1, -1, 2.5, float("nan"), "text", b"\xff\xfe", [1, 2], [0.5], ["a"], 10**12)


def _drop_attribute(rng: random.Random, proto: ModelProto) -> None:
    attributes = _node(rng, proto).attribute
    del attributes[rng.randrange(len(attributes))]


def _copy_attribute(rng: random.Random, proto: ModelProto) -> None:
    copy = AttributeProto.FromString(_attribute(rng, proto).SerializeToString())
    _node(rng, proto).attribute.append(copy)


def _change_dims(rng: random.Random, proto: ModelProto) -> None:
    dims = _tensor(rng, proto).dims
    if rng.random() < 0.3:
        dims.append(rng.choice(_NUMBERS))
    elif rng.random() < 0.5:
        rng.shuffle(order := list(dims))
        dims[:] = order
    else:
        dims[rng.randrange(len(dims))] = rng.choice(_NUMBERS)


def _change_type(rng: random.Random, proto: ModelProto) -> None:
    _tensor(rng, proto).data_type = rng.randrange(30)


def _change_values(rng: random.Random, proto: ModelProto) -> None:
    tensor = _tensor(rng, proto)
    array = np.array(numpy_helper.to_array(tensor))
    if array.size > 100_000:
        return
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):
        filler = np.array([rng.choice(_NUMBERS)], np.float64).astype(array.dtype)
    flat[rng.randrange(flat.size)] = filler[0]
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _retype_values(rng: random.Random, proto: ModelProto) -> None:
    tensor = _tensor(rng, proto)
    array = numpy_helper.to_array(tensor)
    if array.size > 100_000:
        return
    kinds = (np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_, np.complex64)
    with np.errstate(all="ignore"):
        tensor.CopyFrom(numpy_helper.from_array(array.astype(rng.choice(kinds)), tensor.name))


def _swap_tensors(rng: random.Random, proto: ModelProto) -> None:
    first, second = _tensor(rng, proto), _tensor(rng, proto)
    first.name, second.name = second.name, first.name


def _rename_tensor(rng: random.Random, proto: ModelProto) -> None:
    _tensor(rng, proto).name = _name(rng, proto)


def _other_storage(rng: random.Random, proto: ModelProto) -> None:
    tensor = _tensor(rng, proto)
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * rng.choice([1, 3, 100]))
    tensor.int32_data.extend([70_000] * rng.choice([0, 1, 100]))


def _go_outside(rng: random.Random, proto: ModelProto) -> None:
    tensor = _tensor(rng, proto)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=rng.choice(["../x", "/dev/zero", "x", ""]))


def _change_border(rng: random.Random, proto: ModelProto) -> None:
    graph = _graph(rng, proto)
    value = rng.choice([*graph.input, *graph.output])
    what = rng.randrange(5)
    if what == 0:
        value.type.tensor_type.elem_type = rng.randrange(30)
    elif what == 1:
        value.name = _name(rng, proto)
    elif what == 2:
        value.type.Clear()
    elif what == 3:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    else:
        dims = value.type.tensor_type.shape.dim
        dims[rng.randrange(len(dims))].dim_value = rng.choice(_NUMBERS)


def _repeat_border(rng: random.Random, proto: ModelProto) -> None:
    graph = _graph(rng, proto)
    values = rng.choice([graph.input, graph.output])
    if rng.random() < 0.5:
        values.add().CopyFrom(rng.choice([*graph.input, *graph.output]))
    else:
        del values[rng.randrange(len(values))]


def _change_opset(rng: random.Random, proto: ModelProto) -> None:
    if rng.random() < 0.3:
        del proto.opset_import[:]
    else:
        version = rng.choice([*range(1, 30), 0, -1, 10**9, 2**63 - 1])
        rng.choice(proto.opset_import).version = version


def _change_function(rng: random.Random, proto: ModelProto) -> None:
    function = rng.choice(proto.functions)
    what = rng.randrange(4)
    if what == 0:
        function.node.add(op_type=function.name, domain=function.domain)
        function.node[-1].input.extend(function.input)
        function.node[-1].output.extend(function.output)
    elif what == 1:
        function.input.append(_name(rng, proto))
    elif what == 2:
        function.name = rng.choice(["Relu", "MatMul", "act", "twice"])
        function.domain = rng.choice(["", "own", "ai.onnx"])
    else:
        proto.functions.add().CopyFrom(function)


_WAYS: tuple[Callable[[random.Random, ModelProto], None], ...] = (
    *(_swap_nodes, _remove_node, _repeat_node, _nest, _rename_value, _change_arity),
    *(_change_operator, _change_number, _change_attribute, _drop_attribute, _copy_attribute),
    *(_change_dims, _change_type, _change_values, _retype_values, _swap_tensors, _rename_tensor),
    *(_other_storage, _go_outside, _change_border, _repeat_border, _change_opset),
    *(_change_function, _change_operator, _change_operator, _change_number, _rename_value),
)
