"""Whether an imported graph computes batches as it computes single samples."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onnxprune.errors import OnnxpruneError, UnsupportedModelError
from onnxprune.finetune.batch import Batch
from onnxprune.finetune.losses import Ending

_TOLERANCE = 1e-4
_SUM_TOLERANCE = 1e-3


def takes_batches(module: nn.Module, pair: Batch) -> bool:
    """Whether a model computes two samples at once as it computes each alone.

    A graph with a batch size baked into a Reshape fails here, or mixes samples.
    """
    module.eval()
    # torch.fx prints the traceback of a forward that fails, which here is an answer.
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        try:
            together = _as_tuple(module(**pair.inputs))
            alone = [_as_tuple(module(**part.inputs)) for part in pair.split(1)]
        except (RuntimeError, ValueError, IndexError, OnnxpruneError):
            return False
    for index, output in enumerate(together):
        parts = [values[index] for values in alone]
        if not output.is_floating_point():
            continue
        if output.ndim == 0 or any(part.ndim == 0 for part in parts):
            return False
        expected = torch.cat(parts)
        if expected.shape != output.shape:
            return False
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        if float((output - expected).abs().max()) > _TOLERANCE * scale:
            return False
    return True


def probe_outputs(module: Any, batch: Batch) -> dict[str, Tensor]:
    """What an imported model gives for some samples, by output name, without gradients.

    Args:
        module: An imported model; put into evaluation mode.
        batch: Some samples.

    Raises:
        UnsupportedModelError: It does not run on them.
    """
    module.eval()
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        try:
            outputs = _as_tuple(module(**batch.inputs))
        except (RuntimeError, ValueError, IndexError) as error:
            raise UnsupportedModelError(
                "the imported model does not run on the data",
                got=", ".join(f"{n} {t.dtype} {tuple(t.shape)}" for n, t in batch.inputs.items())
                + f": {str(error).strip().splitlines()[0]}",
                remedy="check the graph's shapes; `onnxprune evaluate` runs it in ONNX Runtime",
            ) from error
    return dict(zip(module.output_names, outputs, strict=True))


def observed_endings(
    activations: Mapping[str, str | None], outputs: Mapping[str, Tensor]
) -> dict[str, Ending]:
    """How each output ends, as the graph says and as it looks on some samples.

    What the graph says is believed. Where it ends otherwise, an output `(batch, classes)` whose
    rows are no negative numbers and sum to 1 is a softmax that the exporter took apart. The axis of
    a softmax is the one along which the values sum to 1, whatever the graph does to the shape
    afterwards; of several such axes, the last.

    Args:
        activations: Output name -> `softmax`, `log_softmax`, `sigmoid` or None, as the graph says.
        outputs: Output name -> values, `(batch, ...)`.
    """
    return {name: _ending(activations[name], output) for name, output in outputs.items()}


def _ending(activation: str | None, output: Tensor) -> Ending:
    if not output.is_floating_point():
        return Ending(activation)
    if activation is None and output.ndim == 2 and output.shape[1] > 1:
        looks = bool((output >= 0).all()) and _sums_to_one(output, 1)
        return Ending("softmax", 1) if looks else Ending()
    if activation not in ("softmax", "log_softmax"):
        return Ending(activation)
    values = output.exp() if activation == "log_softmax" else output
    axes = [axis for axis in range(1, output.ndim) if _sums_to_one(values, axis)]
    long = [axis for axis in axes if output.shape[axis] > 1] or axes
    return Ending(activation, long[-1] if long else None)


def _sums_to_one(output: Tensor, axis: int) -> bool:
    return bool(((output.double().sum(dim=axis) - 1).abs() < _SUM_TOLERANCE).all())


def _as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)
