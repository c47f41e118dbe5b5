"""torchvision's architectures with random weights, and inputs on which to compare them.

Weights are random, for none can be downloaded; statistics are those of one random batch, so that
activations keep their size and detectors find boxes with scores that differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection, optical_flow, segmentation, video

_DETECTION = {
    "rcnn": {
        **{"min_size": 128, "max_size": 192, "box_score_thresh": 0.001},
        **{"box_detections_per_img": 20, "rpn_pre_nms_top_n_test": 100},
        "rpn_post_nms_top_n_test": 60,
    },
    "fcos": {"min_size": 128, "max_size": 192, "score_thresh": 0.001, "detections_per_img": 20},
    "retinanet": {
        "min_size": 128,
        "max_size": 192,
        "score_thresh": 0.001,
        "topk_candidates": 60,
        "detections_per_img": 20,
    },
    "ssd": {"score_thresh": 0.001, "topk_candidates": 60, "detections_per_img": 20},
}
_SIZES = {
    **{"vit_": (224,), "maxvit_": (224,), "inception_v3": (299, 331), "mvit": (224,)},
    **{"swin3d": (112, 128), "swin": (224, 256), "s3d": (224, 256)},
}
_GROUP_SIZES = {"video": (112, 128), "detection": (128, 160), "optical_flow": (128, 160)}
LAST = ("vgg", "regnet_y_128gf", "vit_l", "vit_h_14")
"""Architectures that need gigabytes."""


@dataclass(frozen=True)
class Architecture:
    """One architecture, and how it is called.

    Attributes:
        name: Name in torchvision.
        group: classification, segmentation, detection, optical_flow or video.
        sizes: Heights of the inputs to compare with; the width is the height of the other one.
        batch_in_list: Whether the model takes a list of images rather than a batch.
    """

    name: str
    group: str
    sizes: tuple[int, ...]

    @property
    def batch_in_list(self) -> bool:
        return self.group == "detection"

    def build(self) -> nn.Module:
        """The network in evaluation mode, with outputs as a tuple of tensors."""
        torch.manual_seed(0)
        keywords: dict[str, Any] = {"weights": None}
        if self.group in ("segmentation", "detection"):
            keywords["weights_backbone"] = None
        if self.name in ("googlenet", "inception_v3"):
            keywords["init_weights"] = True
        for family, settings in _DETECTION.items():
            if self.group == "detection" and family in self.name:
                keywords.update(settings)
        net = models.get_model(self.name, **keywords)
        _randomise(net)
        tamed = "rcnn" in self.name or self.name == "retinanet_resnet50_fpn"
        if self.group == "detection" and not tamed:
            _spread_scores(net)
        batches = [self.inputs(4, size) for size in range(len(self.sizes))]
        _calibrate(net.backbone if self.group == "detection" else net, batches)
        if tamed:
            _tame_heads(net.eval(), batches[0])
        return Flat(net, self.group).eval()

    def inputs(self, batch: int, size: int) -> tuple[Tensor, ...]:
        """Random inputs of one of the sizes."""
        generator = torch.Generator().manual_seed(batch + size)
        height, width = self.sizes[size], self.sizes[-1 - size]
        if self.group == "video":
            return (torch.randn(batch, 3, 16, height, width, generator=generator),)
        if self.group == "optical_flow":
            pair = torch.rand(2, batch, 3, height, width, generator=generator) * 2 - 1
            return pair[0], pair[1]
        if self.batch_in_list:
            images = torch.rand(batch, 3, height, width, generator=generator)
            return tuple(images.unbind(0))
        return (torch.randn(batch, 3, height, width, generator=generator),)


class Flat(nn.Module):
    """A network that takes and returns plain tensors."""

    def __init__(self, net: nn.Module, group: str) -> None:
        super().__init__()
        self.net = net
        self.group = group

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        result = self.net(list(inputs)) if self.group == "detection" else self.net(*inputs)
        return tuple(_tensors(result))


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    parts = result.values() if isinstance(result, dict) else result
    return [tensor for part in parts for tensor in _tensors(part)]


def _randomise(net: nn.Module) -> None:
    """Make flat tensors vary: exporters merge equal ones, and a head of zeros hides all else."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.numel() > 1:
                flat = bool((parameter == parameter.flatten()[0]).all())
                if flat:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _spread_scores(net: nn.Module) -> None:
    """Let a detector's scores differ by more than rounding, which would reorder its boxes."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "cls_logits" in name and parameter.ndim > 1:
                parameter.mul_(10)


_HEADS = {
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.2,
    "box_predictor.cls_score": 2.0,
    "box_predictor.bbox_pred": 1.0,
    "classification_head.cls_logits": 2.0,
    "regression_head.bbox_reg": 0.5,
}
"""Standard deviation of what each last layer of a detector predicts, after scaling."""


def _tame_heads(net: nn.Module, images: Sequence[Tensor]) -> None:
    """Scale the last layers of a detector to scores and boxes of a usual size.

    With random weights they are hundreds: scores saturate, and hardly a box is left to compare.
    """
    hooks = []
    for name, module in net.named_modules():
        wanted = next((std for end, std in _HEADS.items() if name.endswith(end)), None)
        if wanted is not None:
            hooks.append(module.register_forward_hook(_scaling(wanted)))
    with torch.no_grad():
        net(list(images))
    for hook in hooks:
        hook.remove()


def _scaling(wanted: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that scales a linear layer once, by the first output that it sees."""
    done: list[nn.Module] = []

    def scale(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if module in done:
            return None
        done.append(module)
        factor = wanted / output.std()
        for parameter in module.parameters():
            parameter.mul_(factor)
        return output * factor

    return scale


def _calibrate(net: nn.Module, batches: Sequence[Sequence[Tensor]]) -> None:
    """Set running statistics to those of random batches.

    Channels that hardly vary would be blown up, and with them rounding: their variance is raised.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    for inputs in batches:
        with torch.no_grad():
            net.train()(*(inputs if inputs[0].ndim > 3 else [torch.stack(list(inputs))]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_var.clamp_(min=float(norm.running_var.median()))


def architectures() -> list[Architecture]:
    """All architectures, the largest last."""
    groups: dict[str, Any] = {
        "classification": models,
        "segmentation": segmentation,
        "detection": detection,
        "optical_flow": optical_flow,
        "video": video,
    }
    found = [
        Architecture(name, group, _sizes(name, group))
        for group, module in groups.items()
        for name in models.list_models(module=module)
    ]
    return sorted(
        found, key=lambda a: next((i for i, p in enumerate(LAST) if a.name.startswith(p)), -1)
    )


def _sizes(name: str, group: str) -> tuple[int, ...]:
    given = (sizes for start, sizes in _SIZES.items() if name.startswith(start))
    return next(given, _GROUP_SIZES.get(group, (96, 128)))
