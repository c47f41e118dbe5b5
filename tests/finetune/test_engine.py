"""Device, precision and memory format of training."""

from typing import Any

import pytest
import torch
from torch import nn

from onnxprune.errors import UsageError
from onnxprune.finetune.engine import check_device, placed, uses_channels_last
from onnxprune.recipe import FinetuneTable


@pytest.mark.parametrize(
    ("network", "settings", "expected"),
    [
        (nn.Conv2d(3, 4, 3), {}, True),
        (nn.Conv2d(3, 4, 3), {"channels_last": False}, False),
        (nn.Conv2d(3, 4, 3), {"sharding": "fsdp"}, False),
        (nn.Conv1d(3, 4, 3), {}, False),
        (nn.Linear(3, 4), {}, False),
    ],
    ids=["images", "not wanted", "sharded", "sound", "no convolution"],
)
def test_channels_are_last_where_images_are_convolved(
    network: nn.Module, settings: dict[str, Any], expected: bool
) -> None:
    table = FinetuneTable.model_validate(settings)
    assert uses_channels_last(network, table) is expected
    weight = placed(network, table, torch.device("cpu")).weight
    assert isinstance(weight, nn.Parameter)
    assert (weight.stride()[1] == 1) is (expected or weight.ndim == 2)


@pytest.mark.parametrize(
    "settings", [{"channels_last": True}, {"compile": True}, {"ema": 0.9}, {"sam_rho": 0.1}]
)
def test_sharding_excludes_what_needs_the_whole_model(settings: dict[str, Any]) -> None:
    sharded = FinetuneTable.model_validate({"device": "cpu", "sharding": "fsdp"} | settings)
    with pytest.raises(UsageError, match=f"{next(iter(settings))}, with sharding = 'fsdp'"):
        check_device(sharded)
    check_device(sharded.model_copy(update={"sharding": "none"}))
