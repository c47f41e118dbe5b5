"""One process of a pruning run: `onnxprune` with its arguments, noting each mask it puts in place.

    torchrun --standalone --nproc-per-node 2 ranks_worker.py NOTES prune MODEL -o OUT ...

writes `NOTES/rank0.json`, `NOTES/rank1.json`: a digest of all masks for every pruning event.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onnxprune.cli import main as onnxprune_main
from onnxprune.sparsity import MaskSet


def main() -> None:
    """Run, and write the notes also where the run fails."""
    notes = Path(sys.argv[1]) / f"rank{os.environ.get('RANK', '0')}.json"
    sys.argv[1:] = sys.argv[2:]
    digests: list[str] = []
    put_in_place = MaskSet.update

    def update(
        masks: MaskSet,
        chosen: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        put_in_place(masks, chosen, optimizer)
        digests.append(_digest(masks))

    MaskSet.update = update  # type: ignore[method-assign]
    try:
        onnxprune_main()
    finally:
        notes.write_text(json.dumps(digests))


def _digest(masks: MaskSet) -> str:
    digest = hashlib.sha256()
    for name, mask in sorted(masks.masks.items()):
        digest.update(name.encode())
        digest.update(np.packbits(mask.cpu().numpy()).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
