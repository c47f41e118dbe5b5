"""Training a model whose parameters are spread over the ranks (FSDP).

Each rank holds its rows of every parameter, its gradient and its optimizer state; a stage's
parameters are whole only while that stage computes. Source: Zhao et al., "PyTorch FSDP:
Experiences on Scaling Fully Sharded Data Parallel" (VLDB 2023), in torch's `fully_shard`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from onnxprune.finetune.ranks import Ranks
from onnxprune.finetune.stages import split_into_stages
from onnxprune.sparsity import local_part


def shard_parameters(
    module: fx.GraphModule, ranks: Ranks, *, stages: int = 8
) -> dict[str, nn.Parameter]:
    """Spread a module's parameters over the ranks, for training in place.

    Every rank keeps neighbouring rows of each parameter (along its first axis; some ranks none
    where there are few rows). Forward and backward gather one stage at a time, and gradients come
    out averaged over the ranks, as rows. Call it before the optimizer is made, on the device where
    the module trains; the module must not be converted, exported or copied afterwards.

    Args:
        module: An imported model, equal on all ranks. It is cut into stages in place, see
            `split_into_stages`; it is called as before, by all ranks together.
        ranks: All of them; each makes this call.
        stages: Into how many stages it is cut, at least 1. More stages hold fewer parameters at a
            time and send smaller messages.

    Returns:
        The parameters, as `DTensor`s, under the names that they had before. With one rank nothing
        is changed, and they are those of the module.

    Raises:
        UnsupportedModelError: The graph calls modules with parameters of their own.
    """
    if ranks.world == 1:
        return dict(module.named_parameters())
    names = [name for name, _ in module.named_parameters()]
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    parts = split_into_stages(module, stages)
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    owned = [owner.named_parameters(recurse=False) for owner in (*parts, module)]
    parameters = {name: parameter for group in owned for name, parameter in group}
    return {name: parameters[name] for name in names}


def full_tensors(parts: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Join the rows of all ranks, one tensor after the other, for a checkpoint or an export.

    Args:
        parts: This rank's rows of tensors with one axis or more: of parameters, optimizer state or
            masks, sharded or local. Names and their order are equal on all ranks.
        ranks: All of them; each makes this call.

    Returns:
        On rank 0 the whole tensors, on the CPU; nothing on the others. On the way each rank's
        device holds one whole tensor at a time, rank 0's two copies of it.
    """
    local = {name: local_part(part).detach() for name, part in parts.items()}
    whole = {}
    for (name, part), rows in zip(local.items(), _rows_by_rank(local, ranks), strict=True):
        padded = part.new_zeros((max(rows), *part.shape[1:]))
        padded[: len(part)] = part
        pieces = ranks.gather(padded)
        if ranks.is_main:
            joined = [piece[:count] for piece, count in zip(pieces, rows, strict=True)]
            whole[name] = torch.cat(joined).cpu()
    return whole


def load_full_tensors(
    parts: Mapping[str, Tensor], whole: Mapping[str, Tensor], ranks: Ranks
) -> None:
    """Hand out the rows of whole tensors: the inverse of `full_tensors`.

    Args:
        parts: As there; they are overwritten in place.
        whole: On rank 0 the whole tensors by the same names; not read on the others.
        ranks: All of them; each makes this call.
    """
    local = {name: local_part(part).detach() for name, part in parts.items()}
    with torch.no_grad():
        for (name, part), rows in zip(local.items(), _rows_by_rank(local, ranks), strict=True):
            sent = part.new_empty((sum(rows), *part.shape[1:]))
            if ranks.is_main:
                sent.copy_(whole[name])
            ranks.broadcast({name: sent})
            start = sum(rows[: ranks.rank])
            part.copy_(sent[start : start + len(part)])


def _rows_by_rank(parts: Mapping[str, Tensor], ranks: Ranks) -> list[list[int]]:
    """For each tensor, how many rows each rank holds."""
    own = torch.tensor([len(part) for part in parts.values()], dtype=torch.int64)
    return ranks.gather(own).T.tolist() if parts else []
