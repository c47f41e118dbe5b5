"""Gradients of operators against differences of their results."""

import numpy as np
import pytest
import torch
from torch import Tensor

from onnxprune.importer import load

from .operator_forms import FORMS, form_model

WITHOUT_GRADIENTS = frozenset(
    {"ArgMax", "ArgMin", "BitShift", "Cast", "CastLike", "ConstantOfShape", "EyeLike", "Equal"}
    | {
        "Greater",
        "GreaterOrEqual",
        "Hardmax",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "NonMaxSuppression",
    }
    | {"NonZero", "OneHot", "Range", "Shape", "Size", "Unique", "And", "Or", "Xor", "Not"}
)
"""Operators whose results are integers, or do not depend on the values of their inputs."""

FLAT = frozenset({"Ceil", "Floor", "Round", "Sign"})
"""Operators whose gradients are zero."""


FLOAT_VERSIONS = {"Mod": 10, "Pow": 7}
"""Versions whose form computes with floats, where the newest form does not."""

NOT_LEARNED = frozenset({"xr"})
"""Inputs that no gradient goes to: regions."""


def _leaves(feed: dict[str, np.ndarray]) -> dict[str, Tensor]:
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    return {
        name: tensor.clone().requires_grad_(tensor.is_floating_point() and name not in NOT_LEARNED)
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("op_type", sorted(FORMS.keys() - WITHOUT_GRADIENTS))
def test_gradients_of_inputs_and_parameters(op_type: str) -> None:
    version = FLOAT_VERSIONS.get(op_type, max(FORMS[op_type]))
    model, feed = form_model(op_type, version, double=True)
    module = load(model).eval()
    leaves = _leaves(feed)
    trainable = [tensor for tensor in leaves.values() if tensor.requires_grad]
    assert trainable

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        result = module(**leaves)
        results = result if isinstance(result, tuple) else (result,)
        return tuple(tensor for tensor in results if tensor.is_floating_point())

    wanted = [*trainable, *module.parameters()]
    assert torch.autograd.gradcheck(run, wanted, fast_mode=True, atol=1e-4)
    gradients = torch.autograd.grad(run()[0].sum(), wanted, allow_unused=True)
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert op_type in FLAT or all(bool(g.any()) for g in gradients if g is not None)
