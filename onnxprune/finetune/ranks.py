"""The processes that train one model together, one for each device."""

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from onnxprune.errors import OnnxpruneError

Result = TypeVar("Result")


class Ranks:
    """One process among those of a run, and what they tell each other.

    It uses torch's default process group, which `torchrun` or `accelerate launch` set up, with
    NCCL on GPUs and gloo on CPUs. Without one there is one rank, and every call is local. All ranks
    make the same calls in the same order; each of them waits for the others.

    What it exchanges beyond tensors is pickled, so the ranks trust each other, as torch's own
    process groups do.

    Args:
        device: The device on which this rank trains; tensors travel through it.

    Attributes:
        device: As given.
        rank: This one's number, in [0, world).
        world: How many there are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world = dist.get_world_size() if together else 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and speaks to the user."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on the device of `tensor`, which is not changed.

        Sums of integers are exact; sums of floats are the same on all ranks, too, but depend on
        their number.
        """
        if self.world == 1 or not tensor.numel():
            return tensor
        everywhere = tensor.detach().to(self.device, copy=True).contiguous()
        dist.all_reduce(everywhere)
        return everywhere.to(tensor.device)

    def before(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks before this one, on the device of `tensor`; zeros on rank 0."""
        if self.world == 1 or not tensor.numel():
            return torch.zeros_like(tensor)
        return self.gather(tensor)[: self.rank].sum(0).to(tensor.dtype)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, `(world, *shape)`, on the device of `tensor`."""
        if self.world == 1:
            return tensor.detach().unsqueeze(0)
        own = tensor.detach().to(self.device).contiguous()
        everywhere = own.new_empty((self.world, *own.shape))
        dist.all_gather(list(everywhere.unbind()), own)
        return everywhere.to(tensor.device)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. On a GPU this waits for the work so far."""
        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def all_same(self, digest: str) -> bool:
        """Whether all ranks pass the same text."""
        return len(set(self.gather_objects(digest))) == 1

    def broadcast(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite tensors with those of rank 0, in place; names and shapes are equal on all."""
        if self.world == 1:
            return
        with torch.no_grad():
            for tensor in tensors.values():
                sent = tensor.detach().to(self.device).contiguous()
                dist.broadcast(sent, src=0)
                if not self.is_main:
                    tensor.copy_(sent)

    def broadcast_object(self, value: Result) -> Result:
        """The value of rank 0, on every rank; that of the others is ignored."""
        if self.world == 1:
            return value
        box = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return cast(Result, box[0])

    def gather_objects(self, value: Result) -> list[Result]:
        """The values of all ranks in their order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Result | None] = [None] * self.world
        dist.all_gather_object(values, value)
        return cast(list[Result], values)

    def barrier(self) -> None:
        """Wait until all ranks are here and, on a GPU, have done their work so far."""
        self.any(False)

    def close(self) -> None:
        """Leave the process group, at the end of a run or after an error.

        A process that ends without this may abort in its last moment, and a launcher would take a
        run that is complete for a failed one.
        """
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    def run_on_main(self, work: Callable[[], Result]) -> Result:
        """Do something on rank 0 alone, while the others wait for its result or its error.

        Args:
            work: Called on rank 0; it must not talk to the other ranks. What it returns is sent
                to them.

        Raises:
            OnnxpruneError: What `work` raised, on all ranks. Any other exception is raised on
                rank 0 as it is, and on the others as an OnnxpruneError that quotes it.
        """
        if self.world == 1:
            return work()
        result, error = _attempt(work) if self.is_main else (None, None)
        result, failure = self.broadcast_object((result, self._portable(error)))
        _raise_first([error, failure])
        return cast(Result, result)

    def run_on_all(self, work: Callable[[], Result]) -> Result:
        """Do something on every rank; where it fails on one, all of them raise an error.

        So no rank waits for one that has stopped.

        Args:
            work: Called on every rank; it must not talk to the other ranks.

        Returns:
            What `work` returned here.

        Raises:
            OnnxpruneError: What `work` raised here or, where it succeeded here, on the first rank
                where it failed. Other exceptions are treated as in `run_on_main`.
        """
        if self.world == 1:
            return work()
        result, error = _attempt(work)
        _raise_first([error, *self.gather_objects(self._portable(error))])
        return cast(Result, result)

    def _portable(self, error: BaseException | None) -> OnnxpruneError | None:
        """An error that another rank can raise."""
        if error is None or isinstance(error, OnnxpruneError):
            return error
        return OnnxpruneError(f"rank {self.rank} failed", got=f"{type(error).__name__}: {error}")


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, BaseException | None]:
    """Run `work`; whatever it raises, an interrupt too, has to be told before it is raised."""
    try:
        return work(), None
    except BaseException as error:
        return None, error


def _raise_first(errors: list[BaseException | None]) -> None:
    for error in errors:
        if error is not None:
            raise error
