"""Where and in what arithmetic training runs, by way of accelerate."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from onnxprune.errors import MissingDependencyError, UsageError
from onnxprune.recipe import FinetuneTable

WAIT = timedelta(hours=6)
"""How long processes wait for each other: the first one also exports and validates alone."""

Module = TypeVar("Module", bound=nn.Module)
_TRACKER_MODULES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}


def check_device(settings: FinetuneTable) -> None:
    """Refuse a device, an arithmetic or a tracker that is not there.

    Raises:
        UsageError: CUDA, or fp16 without it, is asked for and absent.
        MissingDependencyError: A tracker is not installed.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "no CUDA device can be used",
            got="device = 'cuda'",
            remedy="use --device cpu, or install a driver and a CUDA build of PyTorch",
        )
    if settings.precision == "fp16" and (settings.device == "cpu" or not torch.cuda.is_available()):
        raise UsageError(
            "fp16 needs a CUDA device",
            got="precision = 'fp16' on the CPU",
            remedy="set [finetune] precision to 'bf16' or 'fp32'",
        )
    if settings.sharding == "fsdp":
        _check_sharded(settings)
    for tracker in settings.track:
        if not any(_installed(module) for module in _TRACKER_MODULES[tracker]):
            raise MissingDependencyError(tracker, "track", f"[finetune] track = ['{tracker}']")


def _check_sharded(settings: FinetuneTable) -> None:
    """What keeps, compiles or lays out the whole model does not go with parts of it."""
    excluded = {"ema": settings.ema > 0, "sam_rho": settings.sam_rho > 0}
    excluded |= {"compile": settings.compile, "precision": settings.precision == "fp16"}
    excluded["channels_last"] = settings.channels_last is True
    for key, is_set in excluded.items():
        if is_set:
            raise UsageError(
                "sharded parameters exclude another setting",
                where=f"[finetune] {key}, with sharding = 'fsdp'",
                got=getattr(settings, key),
                remedy=f"leave {key} out, or set sharding to 'none'",
            )


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def make_accelerator(settings: FinetuneTable, tracking_dir: Path | None = None) -> Accelerator:
    """The accelerator for `[finetune] device`, `precision` and `track`.

    Under `torchrun` or `accelerate launch` it joins the process group.

    Args:
        settings: The recipe's `[finetune]`.
        tracking_dir: Where trackers write.

    Raises:
        UsageError: CUDA is asked for and absent.
    """
    check_device(settings)
    _join_processes(settings)
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision="no" if settings.precision == "fp32" else settings.precision,
        log_with=list(settings.track) or None,
        project_dir=tracking_dir,
    )


def _join_processes(settings: FinetuneTable) -> None:
    """Join the process group that a launcher set up, if there is one.

    A restarted attempt must not meet the addresses of the one before it, which the launcher's
    store may still hold, so each attempt has keys of its own there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    store, rank, world = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    cuda = settings.device != "cpu" and torch.cuda.is_available()
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=PrefixStore(f"onnxprune/{attempt}", store),
        rank=rank,
        world_size=world,
        timeout=WAIT,
    )


def uses_channels_last(module: nn.Module, settings: FinetuneTable) -> bool:
    """Whether image tensors are kept with their channels last in memory.

    FSDP takes no parameters that are not contiguous.
    """
    if settings.channels_last is not None:
        return settings.channels_last
    return settings.sharding == "none" and any(p.ndim == 4 for p in module.parameters())


def placed(module: Module, settings: FinetuneTable, device: torch.device) -> Module:
    """The module on the device and in the memory format in which it trains; changed in place."""
    module = module.to(device)
    if uses_channels_last(module, settings):
        module = module.to(memory_format=torch.channels_last)
    return module


def in_memory_format(
    tensors: Mapping[str, Tensor], device: torch.device, channels_last: bool
) -> dict[str, Tensor]:
    """Tensors on a device, those of images with the channels last if asked."""
    return {
        name: tensor.to(device, non_blocking=True, memory_format=torch.channels_last)
        if channels_last and tensor.ndim == 4
        else tensor.to(device, non_blocking=True)
        for name, tensor in tensors.items()
    }


@contextmanager
def gradients_unchanged(module: nn.Module) -> Iterator[None]:
    """Try something out: gradients, running statistics and random state are put back."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            module.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    buffer.copy_(buffers[name])


def has_partial_gradients(module: nn.Module, backward: Callable[[], Any]) -> bool:
    """Whether `backward`, a pass through a bare module, leaves a parameter without a gradient."""
    with gradients_unchanged(module):
        backward()
        return any(p.grad is None for p in module.parameters() if p.requires_grad)
