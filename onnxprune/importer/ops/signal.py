"""Fourier transforms, windows and mel filters."""

import math

import torch
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, UnsupportedNode, register
from onnxprune.importer.values import TORCH_DTYPES


def dft(x: Tensor, length: int | None, axis: int, inverse: bool, onesided: bool) -> Tensor:
    """Discrete Fourier transform along an axis.

    Args:
        x: (..., 1) of real numbers or (..., 2) of real and imaginary parts.
        length: Length of the signal, which is cut or padded to it; None to take it as it is.
        axis: Any axis but the last one, counted with it.
        inverse: Whether to transform back.
        onesided: Whether frequencies that are the conjugates of others are left out.
    """
    dim = axis % x.ndim
    signal = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    if inverse and onesided:
        return torch.fft.irfft(signal, length, dim).unsqueeze(-1)
    if inverse:
        spectrum = torch.fft.ifft(signal, length, dim)
    elif onesided and not signal.is_complex():
        spectrum = torch.fft.rfft(signal, length, dim)
    else:
        spectrum = torch.fft.fft(signal, length, dim)
        if onesided:
            spectrum = spectrum.narrow(dim, 0, spectrum.shape[dim] // 2 + 1)
    return torch.view_as_real(spectrum)


@register("DFT", since=17)
def _dft(op: Op) -> Result:
    axis = op.attr("axis", 1) if op.version < 20 else op.integer(2, -2)
    flags = bool(op.attr("inverse", 0)), bool(op.attr("onesided", 0))
    return op.call(dft, op.tensor(0), op.integer(1), axis, *flags)


def stft(
    signal: Tensor, step: int, length: int | None, window: Tensor | None, onesided: bool
) -> Tensor:
    """Short-time Fourier transform.

    Args:
        signal: (batch, steps, 1) of real numbers or (batch, steps, 2) of complex ones. ONNX Runtime
            also takes (batch, steps), which PyTorch's exporter writes.
        step: Distance of frames.
        length: Length of a frame; None for that of the window, or of the whole signal.
        window: (length,), or None.
        onesided: Whether the upper half of the frequencies is left out.

    Returns:
        (batch, frames, frequencies, 2)
    """
    if length is None:
        length = signal.shape[1] if window is None else window.shape[0]
    if signal.dim() == 2:
        signal = signal.unsqueeze(2)
    frames = signal.unfold(1, length, step).transpose(2, 3)
    if window is not None:
        frames = frames * window.unsqueeze(1)
    return dft(frames, None, 2, inverse=False, onesided=onesided)


@register("STFT", since=17)
def _stft(op: Op) -> Result:
    settings = op.integer(1), op.integer(3), op.optional(2), bool(op.attr("onesided", 1))
    return op.call(stft, op.tensor(0), *settings)


def mel_weight_matrix(
    bins: int,
    length: int,
    sample_rate: int,
    low_hertz: float,
    high_hertz: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Triangular filters from linear frequencies to mel ones, (length // 2 + 1, bins)."""
    low, high = (2595 * math.log10(1 + float(edge) / 700) for edge in (low_hertz, high_hertz))
    mels = torch.arange(int(bins) + 2, dtype=torch.float64) * (high - low) / (int(bins) + 2) + low
    hertz = 700 * (10 ** (mels / 2595) - 1)
    points = torch.floor((int(length) + 1) * hertz / int(sample_rate))
    left, center, right = points[:-2], points[1:-1], points[2:]
    rows = torch.arange(int(length) // 2 + 1, dtype=torch.float64).unsqueeze(1)
    rising = (rows - left) / (center - left).clamp(min=1)
    falling = (right - rows) / (right - center).clamp(min=1)
    filters = torch.where(rows < center, rising, falling).clamp(min=0)
    return torch.where(rows == center, 1.0, filters).to(dtype).to(device)


@register("MelWeightMatrix", since=17)
def _mel_weight_matrix(op: Op) -> Result:
    integers = [op.integer(index) for index in range(3)]
    edges = [op.scalar(index) for index in (3, 4)]
    dtype = _dtype(op.attr("output_datatype", 1))
    return op.call(mel_weight_matrix, *integers, *edges, dtype, op.builder.device())


def cosine_window(
    size: int,
    periodic: bool,
    weights: tuple[float, float, float],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """A window `a - b cos(t) + c cos(2 t)`."""
    angle = torch.arange(size, dtype=torch.float64, device=device)
    angle = angle * (2 * torch.pi / (size if periodic else size - 1))
    a, b, c = weights
    return (a - b * torch.cos(angle) + c * torch.cos(2 * angle)).to(dtype)


_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@register(*_WINDOWS, since=17)
def _window(op: Op) -> Result:
    dtype = _dtype(op.attr("output_datatype", 1))
    periodic, weights = bool(op.attr("periodic", 1)), _WINDOWS[op.node.op_type]
    return op.call(cosine_window, op.integer(0), periodic, weights, dtype, op.builder.device())


def _dtype(elem_type: int) -> torch.dtype:
    dtype = TORCH_DTYPES.get(elem_type)
    if dtype is None:
        raise UnsupportedNode(f"ONNX element type {elem_type}")
    return dtype
