"""Everything that a run's future depends on, as tensors by name and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from onnxprune.cascade import ShedMonitor
from onnxprune.finetune.ranks import Ranks
from onnxprune.finetune.sharding import full_tensors, load_full_tensors
from onnxprune.sparsity import MaskSet, local_part


@dataclass
class TrainingState:
    """The tensors of a run: weights, buffers, optimizer, masks, averages and random state.

    A checkpoint holds whole tensors, whether the processes hold copies of them or parts, so that a
    run can go on with another number of processes. It is written and read by the first one.

    Attributes:
        module: The bare model.
        parameters: Its parameters by ONNX name.
        optimizer: The bare optimizer.
        masks: Masks of the pruned parameters.
        monitor: What was above the threshold of shedding at the last event.
        average: Moving average of the module; None without one.
        ranks: The processes.
        seed: Of random states that no checkpoint holds.
        sharded: Whether each process holds rows of the parameters only.
        rewind: The parameters and buffers of the rewinding point; empty before it.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    masks: MaskSet
    monitor: ShedMonitor
    average: AveragedModel | None
    ranks: Ranks
    seed: int
    sharded: bool = False
    rewind: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; on all ranks at once, complete on the first."""
        names: dict[Tensor, str] = {p: name for name, p in self.parameters.items()}
        state = optimizer_tensors(self.optimizer, names)
        parts: dict[str, Tensor] = {f"model.{name}": p for name, p in self.parameters.items()}
        parts.update({name: tensor for name, tensor in state.items() if tensor.ndim})
        parts.update({f"mask.{name}": mask for name, mask in self.masks.masks.items()})
        parts.update({f"above.{name}": above for name, above in self.monitor.above.items()})
        final = self.masks.final or {}
        parts.update({f"final_mask.{name}": mask for name, mask in final.items()})
        tensors = full_tensors(parts, self.ranks) if self.sharded else parts
        tensors.update({name: tensor for name, tensor in state.items() if not tensor.ndim})
        tensors.update({f"buffer.{name}": t for name, t in self.module.named_buffers()})
        tensors.update({f"rewind.{name}": tensor for name, tensor in self.rewind.items()})
        if self.average is not None:
            averages = _all_tensors(self.average)
            tensors.update({f"average.{name}": tensor for name, tensor in averages.items()})
        for rank, states in enumerate(self.ranks.gather_objects(_random_states())):
            tensors.update({f"random.{kind}.{rank}": state for kind, state in states.items()})
        return tensors

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Put back what `tensors` gave; changes module, optimizer, masks and random state.

        Args:
            tensors: Of a checkpoint, on the first rank; other ranks pass an empty dictionary.
            step: Of the checkpoint, for random states that it does not hold, as after a start with
                more processes.
        """
        layout = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        layout = self.ranks.broadcast_object(layout)
        places = self._places(layout)
        with torch.no_grad():
            if self.sharded:
                load_full_tensors(places, tensors, self.ranks)
            rest = {
                name: at for name, at in layout.items() if not (self.sharded and name in places)
            }
            tensors = self._from_main(tensors, rest)
            if not self.sharded:
                for name, place in places.items():
                    place.copy_(tensors[name])
            for name, buffer in self.module.named_buffers():
                buffer.copy_(tensors[f"buffer.{name}"])
            for name, tensor in _all_tensors(self.average).items():
                tensor.copy_(tensors[f"average.{name}"])
        restore_scalars(self.optimizer, self.parameters, tensors)
        self.masks.update(_with_prefix(places, "mask."))
        self.monitor.above = _with_prefix(places, "above.")
        self.masks.final = _with_prefix(places, "final_mask.") or None
        self.rewind = _with_prefix(tensors, "rewind.")
        self._restore_random(tensors, step)

    def _places(self, layout: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
        """Where the tensors with a value for each weight go; optimizer state and masks are new."""
        self.optimizer.state.clear()
        places: dict[str, Tensor] = {f"model.{name}": p for name, p in self.parameters.items()}
        for full_name, (shape, dtype) in layout.items():
            if full_name.startswith("optimizer.") and len(shape):
                name, key = full_name.removeprefix("optimizer.").rsplit(".", 1)
                state = torch.zeros_like(self.parameters[name], dtype=dtype)
                self.optimizer.state[self.parameters[name]][key] = state
                places[full_name] = state
        for name, mask in self.masks.masks.items():
            for full_name in (f"mask.{name}", f"above.{name}", f"final_mask.{name}"):
                if full_name in layout:
                    places[full_name] = torch.empty_like(mask)
        return places

    def _from_main(
        self, tensors: dict[str, Tensor], layout: Mapping[str, tuple[torch.Size, torch.dtype]]
    ) -> dict[str, Tensor]:
        """The first rank's tensors on every rank."""
        shared = {
            name: tensors[name] if self.ranks.is_main else torch.empty(shape, dtype=dtype)
            for name, (shape, dtype) in layout.items()
        }
        self.ranks.broadcast(shared)
        return shared

    def keep_rewinding_point(self) -> None:
        """Remember the parameters and buffers as they are now."""
        tensors = _all_tensors(self.module)
        self.rewind = {name: t.detach().cpu().clone() for name, t in tensors.items()}

    def go_back(self) -> None:
        """Put parameters and buffers back to the rewinding point; masks stay in force.

        The average begins anew with them: it would go on with weights that the run has left.
        """
        tensors = _all_tensors(self.module)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(self.rewind[name])
            self.masks.mask_weights()
            if self.average is not None:
                for name, average in _all_tensors(self.average.module).items():
                    average.copy_(tensors[name])
                self.average.n_averaged.zero_()

    def finite(self) -> bool:
        """Whether all parameters are; on a GPU this waits for it."""
        parts = [local_part(parameter.detach()) for parameter in self.parameters.values()]
        norms = torch._foreach_norm([part for part in parts if part.numel()], float("inf"))
        return not self.ranks.any(not all(bool(torch.isfinite(norm)) for norm in norms))

    def _restore_random(self, tensors: dict[str, Tensor], step: int) -> None:
        cpu = tensors.get(f"random.cpu.{self.ranks.rank}")
        if cpu is None:
            torch.manual_seed(rank_seed(self.seed, step, self.ranks.rank))
        else:
            torch.set_rng_state(cpu.cpu())
        cuda = tensors.get(f"random.cuda.{self.ranks.rank}")
        if cuda is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(cuda.cpu())


def rank_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every process and step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _all_tensors(module: nn.Module | None) -> dict[str, Tensor]:
    if module is None:
        return {}
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str]
) -> dict[str, Tensor]:
    """The per-parameter state of an optimizer as tensors named `optimizer.PARAMETER.KEY`."""
    return {
        f"optimizer.{names[parameter]}.{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def restore_scalars(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back the entries of `optimizer_tensors` that hold one value a parameter, as its steps."""
    for full_name, tensor in _with_prefix(tensors, "optimizer.").items():
        name, key = full_name.rsplit(".", 1)
        if not tensor.ndim:
            # PyTorch counts steps on the CPU wherever the weights are.
            device = "cpu" if key == "step" else parameters[name].device
            optimizer.state[parameters[name]][key] = tensor.to(device)
