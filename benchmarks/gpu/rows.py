"""What the GPU check consists of, and what it says of each item. It needs no package."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True)
class Settings:
    """How the checks run.

    Attributes:
        device: `cuda`, or `cpu` to try the code without a GPU.
        tiny: Small sizes, which show that the code works and say nothing of speed.
        seed: Seed of weights, data and order.
    """

    device: str
    tiny: bool
    seed: int

    @property
    def judges_speed(self) -> bool:
        """Whether the bars on time apply."""
        return self.device == "cuda" and not self.tiny


@dataclass(frozen=True)
class Outcome:
    """What was found of one item.

    Attributes:
        passed: Whether it meets what is required; None where that cannot be said.
        measured: Figures by name.
        message: Why, where it did not pass.
        details: Whatever else helps to judge the figures.
    """

    passed: bool | None
    measured: dict[str, float]
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the result; `to_json` has its fields as keys."""

    check: str
    status: Status
    measured: dict[str, float]
    required: str
    seconds: float
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """Items that one process measures, one after another.

    Attributes:
        module: Module beside this one with `measure(item, settings) -> Outcome`.
        items: Item -> what is required of it.
    """

    module: str
    items: dict[str, str]


_PARITY = "output and losses within 1e-4, parameters within 1e-2 of their way"
_PARITY_BF16 = "output and losses within 3e-2, parameters within 2e-1 of their way"

CHECKS = (
    Check(
        "parity_check",
        {
            f"parity {model} {form}": _PARITY_BF16 if form == "bf16" else _PARITY
            for model in ("resnet18", "mobilenet_v3_small", "vit_tiny")
            for form in ("fp32", "bf16", "channels_last")
        },
    ),
    Check(
        "step_check",
        {
            f"step {model} {precision}": "ours / native <= 1.03"
            for model in ("resnet50", "mobilenet_v3_large")
            for precision in ("fp32", "bf16")
        },
    ),
    Check(
        "upkeep_check",
        {
            f"upkeep {model}": "masks and logging < 1 % of the step"
            for model in ("resnet50", "mobilenet_v3_large")
        },
    ),
    Check(
        "event_check",
        {
            "event 1e8 weights": "exact, < 50 ms",
            "event 1e9 weights": "exact, < 1000 ms",
        },
    ),
    Check(
        "ranks_check",
        {
            "torchrun 1 rank": "masks as without torchrun, file within 1e-3",
            "torchrun every GPU": "same masks on all ranks, 99.9 % as alone, file within 1e-3",
        },
    ),
    Check("memory_check", {"out of memory": "the run ends, with a smaller micro-batch"}),
    Check(
        "runtime_check",
        {
            "evaluate on CUDA": "classes as on the CPU for >= 99 %",
            "bench on CUDA": "paired latency from the CUDA provider",
            "bench with inputs and outputs on the GPU": "less time than with copies, above 0",
            "bench on TensorRT with fp16 and 2:4": "paired latency from the TensorRT provider",
        },
    ),
)
