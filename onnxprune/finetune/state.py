"""Everything that a run's future depends on, as tensors by name and back."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxprune.finetune.ranks import Ranks
from onnxprune.sparsity import MaskSet


@dataclass
class TrainingState:
    """The tensors of a run: weights, buffers, optimizer, masks, averages and random state.

    With several processes all of them hold the same, except for the random state: only the first
    one's is read when a checkpoint is written, and only its file is read when one is restored.

    Attributes:
        module: The bare model.
        optimizer: The bare optimizer.
        masks: Masks of the pruned parameters.
        average: Moving average of the module; None without one.
        ranks: The processes.
        seed: Of random states that no checkpoint holds.
        rewind: The parameters and buffers of the rewinding point; empty before it.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    masks: MaskSet
    average: nn.Module | None
    ranks: Ranks
    seed: int
    rewind: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; on all ranks at once, since it gathers random states."""
        names: dict[Tensor, str] = {
            parameter: name for name, parameter in self.module.named_parameters()
        }
        tensors = {f"model.{name}": tensor for name, tensor in _all_tensors(self.module).items()}
        tensors.update(optimizer_tensors(self.optimizer, names))
        tensors.update({f"mask.{name}": mask for name, mask in self.masks.masks.items()})
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
        tensors = self._from_main(tensors)
        with torch.no_grad():
            for name, tensor in _all_tensors(self.module).items():
                tensor.copy_(tensors[f"model.{name}"])
            for name, tensor in _all_tensors(self.average).items():
                tensor.copy_(tensors[f"average.{name}"])
        self.optimizer.state.clear()
        restore_optimizer(self.optimizer, dict(self.module.named_parameters()), tensors)
        self.masks.update({name: tensors[f"mask.{name}"] for name in self.masks.masks})
        self.rewind = _with_prefix(tensors, "rewind.")
        self._restore_random(tensors, step)

    def _from_main(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first rank's tensors on every rank."""
        layout = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        for name, (shape, dtype) in self.ranks.broadcast_object(layout).items():
            if not self.ranks.is_main:
                tensors[name] = torch.empty(shape, dtype=dtype)
        self.ranks.broadcast(tensors)
        return tensors

    def keep_rewinding_point(self) -> None:
        """Remember the parameters and buffers as they are now."""
        tensors = _all_tensors(self.module)
        self.rewind = {name: t.detach().cpu().clone() for name, t in tensors.items()}

    def go_back(self) -> None:
        """Put parameters and buffers back to the rewinding point; masks stay in force."""
        with torch.no_grad():
            for name, tensor in _all_tensors(self.module).items():
                tensor.copy_(self.rewind[name])
        self.masks.mask_weights()

    def finite(self) -> bool:
        """Whether all parameters are; on a GPU this waits for it."""
        parameters = [p.detach() for p in self.module.parameters()]
        norms = torch._foreach_norm(parameters, float("inf")) if parameters else []
        return all(bool(torch.isfinite(norm)) for norm in norms)

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


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
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


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    tensors: dict[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` took; changes the optimizer."""
    for full_name, tensor in _with_prefix(tensors, "optimizer.").items():
        name, key = full_name.rsplit(".", 1)
        parameter: Any = parameters[name]
        per_weight = tensor.shape == parameter.shape and tensor.ndim > 0
        optimizer.state[parameter][key] = (
            torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            if per_weight
            else tensor.cpu()
        )
