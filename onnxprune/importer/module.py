"""The imported model as a PyTorch module."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from onnxprune.errors import UnsupportedModelError
from onnxprune.importer.listing import listing, nested_listings
from onnxprune.model import OnnxModel
from onnxprune.tensors import GraphTensor


@dataclass(frozen=True)
class ImportInfo:
    """What an imported module knows of the file that it comes from."""

    source: OnnxModel
    tensors: dict[str, GraphTensor]
    tensor_names: dict[str, str]
    buffer_names: dict[str, str]
    input_names: list[str]
    output_names: list[str]
    argument_names: dict[str, str]
    output_activations: dict[str, str | None]
    inference_only: list[str]


class ImportedModel(fx.GraphModule):
    """An ONNX model as a trainable PyTorch module.

    It is called with tensors in the order of `input_names`, or by these names, and returns one
    tensor or a tuple in the order of `output_names`. Half-precision models take and return half
    precision, and compute in float32: inputs are cast to float32 and outputs are cast back.

    `train()` trains: BatchNorm uses batch statistics and updates the running ones, and Dropout
    drops. `eval()` follows the file and so equals ONNX Runtime.

    `print(model.code)` shows the model in plain PyTorch, with the names of the ONNX graph.
    """

    _info: ImportInfo

    def __init__(self, root: nn.Module, graph: fx.Graph, info: ImportInfo) -> None:
        super().__init__(root, graph, class_name="ImportedModel")
        self._info = info

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Run the model.

        Args:
            args: Input tensors in graph order.
            inputs: Input tensors by ONNX name.

        Raises:
            UnsupportedModelError: A quantised model is to be trained.
            TypeError: An input is missing, given twice or unknown.
        """
        if self._info.inference_only and self.training and torch.is_grad_enabled():
            self.check_trainable()
        names = self._info.argument_names
        named = {names.get(key, key): value for key, value in inputs.items()}
        arguments = list(names.values())
        if len(args) + len(inputs) != len(arguments) or {*arguments[len(args) :]} != named.keys():
            raise TypeError(_wrong_inputs(names, len(args), list(inputs)))
        return super().__call__(*args, **named)

    @property
    def code(self) -> str:
        """The model in plain PyTorch, with the names of the ONNX graph.

        What runs are the same calls, with each value freed after its last use. The graphs inside
        If, Loop and Scan follow as functions of their own.
        """
        return listing(self.graph) + nested_listings(self)

    @property
    def source(self) -> OnnxModel:
        """The model as it was read."""
        return self._info.source

    @property
    def tensors(self) -> dict[str, GraphTensor]:
        """All stored tensors of the ONNX graph by name.

        Those that no output depends on, as in a branch that never runs, do not train.
        """
        return self._info.tensors

    @property
    def tensor_names(self) -> dict[str, str]:
        """ONNX tensor name of each parameter, one to one."""
        return self._info.tensor_names

    @property
    def buffer_names(self) -> dict[str, str]:
        """ONNX name of each buffer that training changes.

        It is the name of the stored tensor. Where the file lets several users share that tensor
        through `Identity` aliases, each has a buffer of its own under the name of its alias.
        """
        return self._info.buffer_names

    @property
    def input_names(self) -> list[str]:
        """ONNX names of the inputs, in calling order."""
        return self._info.input_names

    @property
    def output_names(self) -> list[str]:
        """ONNX names of the outputs, in the order in which they are returned."""
        return self._info.output_names

    @property
    def output_activations(self) -> dict[str, str | None]:
        """For each output, whether it ends in `softmax`, `log_softmax` or `sigmoid`."""
        return self._info.output_activations

    @property
    def inference_only(self) -> list[str]:
        """Quantised nodes, through which no gradients pass; empty for a model that can train."""
        return self._info.inference_only

    def check_trainable(self) -> None:
        """Refuse to train a quantised model, whose gradients would silently be zero.

        Raises:
            UnsupportedModelError: It has quantised nodes.
        """
        nodes = self.inference_only
        if nodes:
            more = f" and {len(nodes) - 5} more" if len(nodes) > 5 else ""
            raise UnsupportedModelError(
                "the model is quantised: no gradients pass through its integers, so it cannot be "
                "trained",
                where=self.source.label,
                got=", ".join(nodes[:5]) + more,
                expected="a float model",
                remedy="prune the float model first, then quantise the pruned one; to run this one "
                "as it is, call eval()",
            )

    def export_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and running statistics by ONNX name, detached, in the file's shapes."""
        parameters = dict(self.named_parameters())
        buffers = dict(self.named_buffers(remove_duplicate=False))
        result = {name: parameters[key].detach() for key, name in self.tensor_names.items()}
        result.update({name: buffers[key].detach() for key, name in self.buffer_names.items()})
        return result

    def __reduce__(self) -> Any:
        """Pickle the file's model and the state; the graph is imported again from them."""
        return _restored, (self._info.source, self.state_dict(), self.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ImportedModel":
        """Copy parameters, buffers and graph; what describes the file is shared."""
        info: Any = self._info
        memo[id(info)] = info
        result: Any = super().__deepcopy__(memo)
        result._info = info
        return cast(ImportedModel, result)


def _restored(source: OnnxModel, state: dict[str, Any], training: bool) -> "ImportedModel":
    from onnxprune.importer import load

    module = load(source)
    module.load_state_dict(state, assign=True)
    first = next(iter(state.values()), None)
    if first is not None:
        module.to(first.device)
    return module.train(training)


def _wrong_inputs(names: dict[str, str], count: int, keys: list[str]) -> str:
    """What is wrong with the inputs of a call, in the names of the ONNX graph.

    Args:
        names: Argument of each input.
        count: How many inputs are given by position.
        keys: Those that are given by name.
    """
    given = [names.get(key, key) for key in keys]
    first, rest = list(names)[:count], list(names)[count:]
    kinds = {
        "unknown": [key for key in keys if names.get(key, key) not in names.values()],
        "missing": [name for name in rest if names[name] not in given],
        "given twice": [name for name in names if given.count(names[name]) + (name in first) > 1],
    }
    found = [f"{kind}: {', '.join(map(repr, which))}" for kind, which in kinds.items() if which]
    if count > len(names):
        found.append(f"{count} given by position")
    return f"{'; '.join(found)}; the model's inputs are {', '.join(map(repr, names)) or 'none'}"
