"""The text of an imported module."""

import numpy as np

from onnxprune.importer import load

from .helpers import normal, text_model


def test_reads_like_a_module_written_by_hand() -> None:
    graph = """g (float[N,4,H,W] x) => (float[N,A,B] y) {
        f = LayerNormalization<epsilon = 0.00001>(x, s) c = Slice(f, one, end, axis)
        m = Mul(c, tenth) a = Add(m, c) n = Shape(a) z = Gather(n, first) t = Add(z, z)
        u = Unsqueeze(t, axes) v = Concat<axis = 0>(u, rest) y = Reshape(a, v)
    }"""
    arrays = {
        "s": normal(6), "one": np.array([1]), "end": np.array([3]), "axis": np.array([2]),
        "tenth": np.float32(0.1), "first": np.array(0), "axes": np.array([0]),
        "rest": np.array([2, -1]),
    }  # fmt: skip
    module = load(text_model(graph, arrays))
    assert module.code == (
        "def forward(self, x):\n"
        "    f = F.layer_norm(x, (6,), self.s, None, 1e-05)\n"
        "    c = f[:, :, 1:3]\n"
        "    m = c * 0.1\n"
        "    a = m + c\n"
        "    y = torch.reshape(a, (a.size(0) + a.size(0), 2, -1))\n"
        "    return y\n"
    )


def test_long_statements_are_broken_between_arguments() -> None:
    proto = text_model(
        "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) y = Add(h, b) }",
        {"w": normal(4, 4), "b": normal(4)},
    )
    for old, new in (("w", "encoder." * 6 + "weight"), ("b", "encoder." * 6 + "bias")):
        for node in proto.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
        for tensor in proto.graph.initializer:
            tensor.name = new if tensor.name == old else tensor.name
    lines = load(proto).code.splitlines()
    assert lines[1] == "    y = F.linear("
    assert lines[-2:] == ["    )", "    return y"]
    assert all(len(line) <= 100 for line in lines)
