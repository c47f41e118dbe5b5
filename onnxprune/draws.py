"""Random numbers that code of the user draws, made repeatable."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch, and put them back afterwards.

    PyTorch's is left alone where nothing has imported it.

    Args:
        entropy: Numbers of at least 0 that the seed is made of.
    """
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])
    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()
    state = None if torch is None else torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    if torch is not None:
        # `torch.manual_seed` would seed those of GPUs too, which training draws from.
        torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch is not None:
            torch.set_rng_state(state)
