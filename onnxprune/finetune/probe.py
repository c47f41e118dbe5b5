"""Whether an imported graph computes batches as it computes single samples."""

import contextlib
import io
from typing import Any

import torch
from torch import nn

from onnxprune.errors import OnnxpruneError, UnsupportedModelError
from onnxprune.finetune.batches import Batch

_TOLERANCE = 1e-4


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


def observed_activations(module: Any, batch: Batch) -> dict[str, str | None]:
    """How each output ends: `softmax`, `log_softmax`, `sigmoid` or None.

    What the graph says is believed. Where it ends otherwise, an output `(batch, classes)` whose
    rows are no negative numbers and sum to 1 on these samples is a softmax that the exporter took
    apart.

    Args:
        module: An imported model; put into evaluation mode.
        batch: Some samples.

    Raises:
        UnsupportedModelError: It does not run on them.
    """
    known: dict[str, str | None] = dict(module.output_activations)
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
    for name, output in zip(module.output_names, outputs, strict=True):
        if known[name] is None and output.ndim == 2 and output.shape[1] > 1:
            rows = output.double()
            if bool((rows >= 0).all()) and bool(((rows.sum(dim=1) - 1).abs() < 1e-3).all()):
                known[name] = "softmax"
    return known


def _as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)
