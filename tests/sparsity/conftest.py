"""Ranks that are threads of one process, for selection over parts of tensors."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch


class ThreadRank:
    """One of several ranks; a `Replicas` that counts the bytes it sends."""

    def __init__(self, rank: int, slots: list[torch.Tensor | None], gate: threading.Barrier):
        self.rank = rank
        self.world = len(slots)
        self.sent_bytes = 0
        self._slots = slots
        self._gate = gate

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._exchange(tensor)).sum(0).to(tensor.dtype)

    def before(self, tensor: torch.Tensor) -> torch.Tensor:
        earlier = self._exchange(tensor)[: self.rank]
        return torch.stack([torch.zeros_like(tensor), *earlier]).sum(0).to(tensor.dtype)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._exchange(tensor))

    def _exchange(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.sent_bytes += tensor.nbytes
        self._slots[self.rank] = tensor.clone()
        self._gate.wait(20)
        everyone = [slot for slot in self._slots if slot is not None]
        self._gate.wait(20)
        return everyone


def run_in_threads(world: int, work: Callable[[ThreadRank], Any]) -> list[Any]:
    """What `work` returns, or the exception that it raises, on each rank."""
    slots: list[torch.Tensor | None] = [None] * world
    gate = threading.Barrier(world)
    results: list[Any] = [None] * world

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRank(rank, slots, gate))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture(scope="session")
def run_ranks() -> Callable[[int, Callable[[ThreadRank], Any]], list[Any]]:
    """Runs a function on several ranks in threads; an exception stands for its result."""
    return run_in_threads
