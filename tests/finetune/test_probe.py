from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxprune.finetune import Batch, Ending, observed_endings, probe_outputs, takes_batches


class Function(nn.Module):
    """A module from a function of `x`, with what an imported model says of its outputs."""

    def __init__(self, function: object, activations: dict[str, str | None] | None = None) -> None:
        super().__init__()
        self.function = function
        self.output_activations = activations or {"y": None}
        self.output_names = list(self.output_activations)

    def forward(self, x: Tensor) -> object:
        return self.function(x)


PAIR = Batch(torch.arange(2), {"x": torch.tensor([[1.0, 2.0], [3.0, -1.0]])}, None)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x * 2, True),
        (lambda x: (x * 2, x.sum(dim=1)), True),
        (lambda x: x.argmax(dim=1), True),
        (lambda x: x - x.mean(dim=0), False),
        (lambda x: x.reshape(1, 2), False),
        (lambda x: x.reshape(1, -1), False),
        (lambda x: x.sum(), False),
        (lambda x: (x, x.sum(dim=0)), False),
    ],
)
def test_takes_batches(
    function: object, expected: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert takes_batches(Function(function), PAIR) is expected
    assert capsys.readouterr() == ("", "")


def test_a_failing_graph_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """torch.fx prints the traceback of a forward that fails; a probe must not show it."""
    graph = torch.fx.symbolic_trace(Function(lambda x: torch.reshape(x, (1, 2))))
    assert takes_batches(graph, PAIR) is False
    assert capsys.readouterr() == ("", "")


def test_probing_draws_no_random_numbers_and_keeps_statistics() -> None:
    module = nn.Sequential(nn.Dropout(0.5))
    module.forward = lambda x: nn.functional.dropout(x, training=module.training)  # type: ignore
    state = torch.get_rng_state()
    assert takes_batches(module, PAIR)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("function", "known", "expected"),
    [
        (lambda x: x.softmax(dim=1), None, "softmax"),
        (lambda x: x.softmax(dim=1), "sigmoid", "sigmoid"),
        (lambda x: x, None, None),
        (lambda x: x.sigmoid(), None, None),
        (lambda x: x.softmax(dim=1)[:, :1] * 0 + 1, None, None),
        (lambda x: x.softmax(dim=1)[:, :, None], None, None),
    ],
)
def test_a_softmax_that_the_exporter_took_apart_is_seen(
    function: object, known: str | None, expected: str | None
) -> None:
    module = Function(function, {"y": known})
    axis = 1 if expected == "softmax" else None
    assert endings(module, PAIR) == {"y": Ending(expected, axis)}


@pytest.mark.parametrize(
    ("function", "axis"),
    [
        (lambda x: x.softmax(dim=1), 1),
        (lambda x: x.softmax(dim=2), 2),
        (lambda x: x.softmax(dim=1).transpose(1, 3), 3),
        (lambda x: x.softmax(dim=2).reshape(2, 3, 20), None),
        (lambda x: x.flatten(1).softmax(dim=1).reshape(2, 3, 4, 5), None),
        (lambda x: x.mean((2, 3)).softmax(dim=1)[:, :, None, None], 1),
    ],
)
@pytest.mark.parametrize("kind", ["softmax", "log_softmax"])
def test_the_axis_of_a_softmax_is_seen_in_its_values(
    function: Callable[[Tensor], Tensor], axis: int | None, kind: str
) -> None:
    """Also where a Reshape or a Transpose follows, or where the softmax is over several axes."""

    def ends(x: Tensor) -> Tensor:
        return function(x).log() if kind == "log_softmax" else function(x)

    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    batch = Batch(torch.arange(2), {"x": x}, None)
    assert endings(Function(ends, {"y": kind}), batch) == {"y": Ending(kind, axis)}


def endings(module: Function, batch: Batch) -> dict[str, Ending]:
    return observed_endings(module.output_activations, probe_outputs(module, batch))


def test_numpy_rows_are_enough() -> None:
    batch = Batch(torch.arange(1), {"x": torch.from_numpy(np.ones((1, 3), np.float32))}, None)
    assert endings(Function(lambda x: x / 3), batch) == {"y": Ending("softmax", 1)}
