"""LSTM, GRU and RNN.

The usual forms call PyTorch's fused implementations, with the gates brought into its order.
Peepholes, other activations, clipping and sequence lengths run step by step.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.contrib_types import CONTRIB_DOMAIN
from onnxprune.importer.op import Op
from onnxprune.importer.ops.quantize import dequantize, dynamic_quantize
from onnxprune.importer.registry import Result, UnsupportedNode, register

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_TORCH_ORDER = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}
"""Position in ONNX's order (iofc, zrh) of each of PyTorch's gates (ifgo, rzn)."""

_DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


def _affine(x: Tensor, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    return alpha * x + beta


def _scaled_tanh(x: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    return alpha * torch.tanh(beta * x)


def _hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def _thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, 0.0)


def _elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "sigmoid": (torch.sigmoid, 0),
    "tanh": (torch.tanh, 0),
    "relu": (F.relu, 0),
    "softsign": (F.softsign, 0),
    "softplus": (F.softplus, 0),
    "leakyrelu": (_leaky_relu, 1),
    "thresholdedrelu": (_thresholded_relu, 1),
    "elu": (_elu, 1),
    "affine": (_affine, 2),
    "scaledtanh": (_scaled_tanh, 2),
    "hardsigmoid": (_hard_sigmoid, 2),
}


@dataclass(frozen=True)
class RecurrentSettings:
    """Attributes of a recurrent node.

    Attributes:
        kind: LSTM, GRU or RNN.
        direction: forward, reverse or bidirectional.
        hidden: Size of the hidden state.
        activations: Names in lower case, those of all directions.
        alphas: Their first parameters, in order, as far as given.
        betas: Their second parameters.
        clip: Limit of the activations' inputs, or None.
        linear_before_reset: GRU: whether the reset gate comes after the matrix product.
        input_forget: LSTM: whether the forget gate is 1 minus the input gate.
        batch_first: Whether the batch is the first axis.
        rounds_state: LSTM: whether the hidden state is rounded to 256 levels before each product.
    """

    kind: str
    direction: str
    hidden: int
    activations: tuple[str, ...]
    alphas: tuple[float, ...] = ()
    betas: tuple[float, ...] = ()
    clip: float | None = None
    linear_before_reset: bool = False
    input_forget: bool = False
    batch_first: bool = False
    rounds_state: bool = False

    @property
    def directions(self) -> int:
        """Number of directions."""
        return 2 if self.direction == "bidirectional" else 1

    def functions(self) -> list[list[Callable[[Tensor], Tensor]]]:
        """Activation functions with their parameters, for each direction."""
        alphas, betas, result = list(self.alphas), list(self.betas), []
        for name in self.activations:
            function, parameters = _ACTIVATIONS[name]
            keywords = {}
            if parameters >= 1 and alphas:
                keywords["alpha"] = alphas.pop(0)
            if parameters >= 2 and betas:
                keywords["beta"] = betas.pop(0)
            result.append(partial(function, **keywords) if keywords else function)
        each = len(result) // self.directions
        return [result[start : start + each] for start in range(0, len(result), each)]


def recurrent(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    peephole: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a recurrent layer.

    Args:
        x: (steps, batch, features), or (batch, steps, features) with `batch_first`.
        w: (directions, gates * hidden, features)
        r: (directions, gates * hidden, hidden)
        b: (directions, 2 * gates * hidden), input biases first.
        lengths: (batch,) number of valid steps.
        h0: (directions, batch, hidden), or with the first axes exchanged.
        c0: The same for an LSTM's cell.
        peephole: (directions, 3 * hidden)
        settings: The fields of `RecurrentSettings`, in order.

    Returns:
        All hidden states (steps, directions, batch, hidden), the last ones (directions, batch,
        hidden), and an LSTM's last cells; with `batch_first` the batch is the first axis.
    """
    given = RecurrentSettings(*settings)
    if given.batch_first:
        x = x.transpose(0, 1)
        h0, c0 = (None if s is None else s.transpose(0, 1) for s in (h0, c0))
    shape = (given.directions, x.shape[1], given.hidden)
    h0 = x.new_zeros(shape) if h0 is None else h0
    c0 = x.new_zeros(shape) if c0 is None else c0
    b = x.new_zeros(given.directions, 2 * w.shape[1]) if b is None else b
    plain = lengths is None and peephole is None and _is_fused(given)
    run = _fused if plain else _stepwise
    parts = []
    for index in range(given.directions):
        backward = given.direction == "reverse" or index == 1
        weights = (w[index], r[index], b[index])
        steps = _reversed(x, lengths) if backward else x
        extra = () if plain else (lengths, None if peephole is None else peephole[index], index)
        y, h, c = run(given, steps, *weights, h0[index], c0[index], *extra)
        parts.append((_reversed(y, lengths) if backward else y, h, c))
    y = torch.stack([part[0] for part in parts], dim=1)
    h, c = (torch.stack([part[i] for part in parts]) for i in (1, 2))
    if given.batch_first:
        y, h, c = y.permute(2, 0, 1, 3), h.transpose(0, 1), c.transpose(0, 1)
    return y, h, c


def _is_fused(given: RecurrentSettings) -> bool:
    """Whether PyTorch has a fused implementation."""
    usual = list(given.activations) == _DEFAULTS[given.kind] * given.directions
    if given.kind == "RNN":
        usual = usual or set(given.activations) == {"relu"}
    before = given.kind != "GRU" or given.linear_before_reset
    plain = given.clip is None and not given.input_forget and not given.rounds_state
    return usual and before and plain


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Steps in reverse order, those after a sequence's end left in place."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    ends = lengths.to(torch.long).unsqueeze(0)
    order = torch.where(steps < ends, ends - 1 - steps, steps)
    return x.gather(0, order.unsqueeze(-1).expand_as(x))


def _torch_gates(parameter: Tensor, kind: str) -> Tensor:
    gates = parameter.chunk(_GATES[kind], dim=0)
    return torch.cat([gates[index] for index in _TORCH_ORDER[kind]], dim=0)


def _fused(
    given: RecurrentSettings, x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    weights = [_torch_gates(part, given.kind) for part in (w, r, *b.chunk(2))]
    flags = (True, 1, 0.0, True, False, False)
    if given.kind == "LSTM":
        y, h, c = torch.lstm(x, (h.unsqueeze(0), c.unsqueeze(0)), weights, *flags)
        return y, h[0], c[0]
    name = "gru" if given.kind == "GRU" else f"rnn_{given.activations[0]}"
    y, h = getattr(torch, name)(x, h.unsqueeze(0), weights, *flags)
    return y, h[0], c


def _stepwise(
    given: RecurrentSettings,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor,
    h: Tensor,
    c: Tensor,
    lengths: Tensor | None,
    peephole: Tensor | None,
    index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    functions = given.functions()[index]
    cell = {"LSTM": _lstm_cell, "GRU": _gru_cell, "RNN": _rnn_cell}[given.kind]
    states = []
    for step in range(x.shape[0]):
        new_h, new_c = cell(given, functions, x[step], w, r, b, h, c, peephole)
        if lengths is not None:
            valid = (lengths > step).unsqueeze(-1)
            states.append(torch.where(valid, new_h, 0.0))
            h, c = torch.where(valid, new_h, h), torch.where(valid, new_c, c)
        else:
            h, c = new_h, new_c
            states.append(h)
    return torch.stack(states), h, c


def _clipped(value: Tensor, given: RecurrentSettings) -> Tensor:
    return value if given.clip is None else value.clamp(-given.clip, given.clip)


def _lstm_cell(
    given: RecurrentSettings,
    functions: list[Callable[[Tensor], Tensor]],
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor,
    h: Tensor,
    c: Tensor,
    peephole: Tensor | None,
) -> tuple[Tensor, Tensor]:
    f, g, out = functions
    wb, rb = b.chunk(2)
    h = _rounded(h) if given.rounds_state else h
    i_in, o_in, f_in, c_in = (F.linear(x, w, wb) + F.linear(h, r, rb)).chunk(4, dim=-1)
    p_i, p_o, p_f = (0.0, 0.0, 0.0) if peephole is None else peephole.chunk(3)
    i = f(_clipped(i_in + p_i * c, given))
    forget = 1 - i if given.input_forget else f(_clipped(f_in + p_f * c, given))
    c = forget * c + i * g(_clipped(c_in, given))
    o = f(_clipped(o_in + p_o * c, given))
    return o * out(c), c


def _gru_cell(
    given: RecurrentSettings,
    functions: list[Callable[[Tensor], Tensor]],
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor,
    h: Tensor,
    c: Tensor,
    peephole: Tensor | None,
) -> tuple[Tensor, Tensor]:
    f, g = functions
    wb, rb = b.chunk(2)
    z_in, r_in, n_in = F.linear(x, w, wb).chunk(3, dim=-1)
    r_z, r_r, r_n = r.chunk(3)
    b_z, b_r, b_n = rb.chunk(3)
    z = f(_clipped(z_in + F.linear(h, r_z, b_z), given))
    reset = f(_clipped(r_in + F.linear(h, r_r, b_r), given))
    if given.linear_before_reset:
        hidden = reset * F.linear(h, r_n, b_n)
    else:
        hidden = F.linear(reset * h, r_n, b_n)
    n = g(_clipped(n_in + hidden, given))
    return (1 - z) * n + z * h, c


def _rnn_cell(
    given: RecurrentSettings,
    functions: list[Callable[[Tensor], Tensor]],
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor,
    h: Tensor,
    c: Tensor,
    peephole: Tensor | None,
) -> tuple[Tensor, Tensor]:
    wb, rb = b.chunk(2)
    return functions[0](_clipped(F.linear(x, w, wb) + F.linear(h, r, rb), given)), c


def _settings(op: Op) -> list[Any]:
    quantized = op.node.op_type == "DynamicQuantizeLSTM"
    kind = "LSTM" if quantized else op.node.op_type
    direction = op.attr("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    names = [name.lower() for name in op.attr("activations") or []] or _DEFAULTS[kind] * count
    unknown = sorted(set(names) - _ACTIVATIONS.keys())
    if unknown:
        raise UnsupportedNode(f"activation {unknown[0]!r}")
    hidden = op.attr("hidden_size") or (op.shape(2) or (None,) * 3)[1 if quantized else 2]
    if hidden is None:
        raise UnsupportedNode("its hidden size is not known")
    fields = [kind, direction, hidden, tuple(names)]
    fields += [tuple(op.attr("activation_alpha") or ()), tuple(op.attr("activation_beta") or ())]
    fields += [op.attr("clip"), bool(op.attr("linear_before_reset", 0))]
    fields += [bool(op.attr("input_forget", 0)), bool(op.attr("layout", 0))]
    while fields[-1] in ((), None, False):
        fields.pop()
    return fields


@register("LSTM", "GRU", "RNN")
def _recurrent(op: Op) -> Result:
    operands = [op.tensor(0), op.tensor(1), op.tensor(2)]
    operands += [op.optional(index) for index in range(3, 8)]  # type: ignore[misc]
    return op.unpack(op.call(recurrent, *operands, *_settings(op)), 3)


def _rounded(x: Tensor) -> Tensor:
    """`x` on 256 evenly spaced levels over its range and 0."""
    return dequantize(*dynamic_quantize(x))


def _dequantized(weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """A weight (directions, inner, gates * hidden) in real numbers, as `recurrent` takes it."""
    directions = weight.shape[0]
    scale, zero_point = (p.reshape(directions, 1, -1) for p in (scale, zero_point))
    return ((weight.to(scale.dtype) - zero_point.to(scale.dtype)) * scale).transpose(1, 2)


def dynamically_quantized_lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    peephole: Tensor | None,
    w_scale: Tensor,
    w_zero: Tensor,
    r_scale: Tensor,
    r_zero: Tensor,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run an LSTM whose weights are 8-bit, and whose inputs and states are rounded to 8 bits.

    ONNX Runtime rounds the states of a batch together, or those of each of its threads.

    Args:
        x: (steps, batch, features)
        w: (directions, features, gates * hidden) in 8 bits.
        r: (directions, hidden, gates * hidden) in 8 bits.
        b: As in `recurrent`, like the next four.
        lengths: (batch,)
        h0: (directions, batch, hidden)
        c0: (directions, batch, hidden)
        peephole: (directions, 3 * hidden)
        w_scale: Scale of `w`: (directions,) or (directions, gates * hidden).
        w_zero: Its zero points, in the same shape.
        r_scale: The same of `r`.
        r_zero: The same of `r`.
        settings: As in `recurrent`.

    Returns:
        As `recurrent`.
    """
    weights = _dequantized(w, w_scale, w_zero), _dequantized(r, r_scale, r_zero)
    steps = len(x) if lengths is None else int(lengths.max())
    x = torch.cat([_rounded(x[:steps]), x[steps:]])  # what no sequence reaches sets no range
    return recurrent(x, *weights, b, lengths, h0, c0, peephole, *settings)


@register("DynamicQuantizeLSTM", domain=CONTRIB_DOMAIN, trains=False)
def _dynamically_quantized(op: Op) -> Result:
    operands = [op.tensor(0), op.tensor(1), op.tensor(2)]
    operands += [op.optional(index) for index in range(3, 8)]  # type: ignore[misc]
    operands += [op.tensor(index) for index in range(8, 12)]
    settings = replace(RecurrentSettings(*_settings(op)), rounds_state=True)
    return op.unpack(op.call(dynamically_quantized_lstm, *operands, *astuple(settings)), 3)
