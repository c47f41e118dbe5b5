"""One run of an experiment: a dense model, a recipe made of a few settings, and what came out.

Everything goes through `onnxprune.prune`, as a user's run does. It trains the dense models, too,
with a target of 0; these are kept.
"""

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from data import CLASSES, FASHION, Parts, prepare
from journal import digest
from networks import write_untrained
from scales import Scale

import onnxprune
from onnxprune.errors import CheckpointError, RecipeError, TrainingError
from onnxprune.model import read
from onnxprune.tensors import find_tensors
from onnxprune.toml import merged
from onnxprune.validate import available_providers
from onnxprune.version import __version__

Tables = Mapping[str, Mapping[str, Any]]
"""Recipe: table -> key -> value."""

METHODS: dict[str, Tables] = {
    "cascade-gmp pressure": {"sparsity": {"method": "cascade-gmp"}},
    "gmp, held learning rate": {
        "sparsity": {"method": "cascade-gmp"},
        "cascade": {"closure": False, "harvest": False, "wait": 0, "hold_lr": True},
    },
    "cascade-gmp, held learning rate": {
        "sparsity": {"method": "cascade-gmp"},
        "cascade": {"hold_lr": True},
    },
    "closure alone": {
        "sparsity": {"method": "cascade-gmp"},
        "cascade": {"harvest": False, "wait": 0},
    },
    "harvest alone": {
        "sparsity": {"method": "cascade-gmp"},
        "cascade": {"closure": False, "wait": 0},
    },
    "layerwise-gmp": {"sparsity": {"method": "gmp", "scope": "layerwise"}},
    "one-shot random": {"sparsity": {"method": "random"}, "schedule": {"kind": "one-shot"}},
    "iterative": {"sparsity": {"method": "iterative"}, "schedule": {"rewind": "none"}},
    "iterative learning-rate": {
        "sparsity": {"method": "iterative"},
        "schedule": {"rewind": "learning-rate"},
    },
    "iterative weights": {"sparsity": {"method": "iterative"}, "schedule": {"rewind": "weights"}},
}
"""What the experiments call by a name of their own; any other name is the recipe's.

- `cascade-gmp pressure` has more weight decay while weights go than afterwards.
- Where the learning rate is held, it stays at its peak until the target is reached; `gmp, held
  learning rate` has nothing else of cascade-gmp.
- `closure alone` and `harvest alone` are gmp with one part of cascade-gmp.
"""

DENSE_LR, DENSE_WEIGHT_DECAY = 0.1, 5e-4
"""How dense models are trained: SGD with momentum 0.9, cosine, 5 % warm-up."""

_SHED = ("step", "since", "kept", "shed", "shed_relative")
"""What is kept of the log's entries on shed weights."""


@dataclass(frozen=True)
class Run:
    """The settings of a run.

    Attributes:
        network: Name in `networks.NETWORKS`.
        data: Name of the data set.
        method: A key of `METHODS`, or a `[sparsity] method`.
        sparsity: Target, in [0, 1).
        epochs: Of pruning and fine-tuning.
        seed: Of everything; dense models of other seeds are other models.
        lr: Peak learning rate.
        weight_decay: L2.
        pruning_end: Progress at which the target is reached; methods without a gradual schedule
            ignore it.
        judged_on: Part of the data whose accuracy is reported.
        start: Whether the dense model, or the network with random weights is pruned.
        tables: Further keys of the recipe, which win over all others.
    """

    network: str
    data: str
    method: str
    sparsity: float
    epochs: float
    seed: int
    lr: float = 0.05
    weight_decay: float = 5e-4
    pruning_end: float = 0.65
    judged_on: Literal["valid", "test"] = "test"
    start: Literal["dense", "untrained"] = "dense"
    tables: Tables = field(default_factory=dict)

    def key(self, scale: Scale) -> dict[str, Any]:
        """All that decides the outcome, as JSON values."""
        facts = ("sizes", "batch", "dense_epochs", "precision", "device")
        return asdict(self) | {name: asdict(scale)[name] for name in facts}


def dense_run(network: str, data: str, seed: int, scale: Scale) -> Run:
    """The run that trains a dense model."""
    return Run(
        network,
        data,
        "gmp",
        0.0,
        scale.dense_epochs,
        seed,
        DENSE_LR,
        DENSE_WEIGHT_DECAY,
        start="untrained",
    )


def supported(method: str, tables: Tables | None = None) -> bool:
    """Whether this version of the product knows a method, and further keys of the recipe."""
    try:
        onnxprune.Recipe.from_dict(
            _merged({"sparsity": {"method": method}}, METHODS.get(method, {}), tables or {})
        )
    except RecipeError:
        return False
    return True


@dataclass(frozen=True)
class Workplace:
    """Where the files of runs lie.

    Attributes:
        scale: How big the runs are.
        folder: Holds data, models, masks and unfinished runs.
        fashion: Folder of the idx files of Fashion-MNIST.
    """

    scale: Scale
    folder: Path
    fashion: Path = FASHION

    def parts(self, data: str) -> Parts:
        """The files of a data set, which are made if they are missing."""
        return prepare(data, self.scale.sizes, self.folder / "data", self.fashion)

    def untrained(self, network: str, data: str, seed: int) -> Path:
        """The `.onnx` file with random weights, made if it is missing."""
        path = self.folder / "models" / f"{network}-{data}-{self.scale.sizes.side}-{seed}.onnx"
        if not path.is_file():
            write_untrained(network, CLASSES[data], self.scale.sizes.side, seed, path)
        return path

    def dense(self, network: str, data: str, seed: int) -> Path:
        """The file of the dense model, which its own run writes."""
        run = dense_run(network, data, seed, self.scale)
        return self.output(run)

    def output(self, run: Run) -> Path:
        """The pruned model of a run; only those of dense models stay."""
        return self.folder / "runs" / f"{digest(run.key(self.scale))}.onnx"

    def masks(self, run: Run) -> Path:
        """The kept sets of a finished run."""
        return self.folder / "masks" / f"{digest(run.key(self.scale))}.npz"


def recipe_of(run: Run, place: Workplace) -> onnxprune.Recipe:
    """The recipe that the settings of a run mean."""
    parts, scale = place.parts(run.data), place.scale
    cpu = scale.device == "cpu"
    base: Tables = {
        "model": {"to_inference": True},
        "data": {"train": str(parts.train), "eval": str(getattr(parts, run.judged_on))},
        "sparsity": {"target": run.sparsity, "method": run.method},
        "schedule": {"end": run.pruning_end},
        "finetune": {
            "epochs": run.epochs,
            "batch_size": scale.batch,
            "lr": run.lr,
            "weight_decay": run.weight_decay,
            "device": scale.device,
            "precision": scale.precision,
            "threads": 1 if cpu else None,
            "seed": run.seed,
            "evaluations": 0,
        },
        "distill": {"weight": 0.0},
        "validate": {**validation_of(scale.device), "batch_size": 500},
    }
    return onnxprune.Recipe.from_dict(_merged(base, METHODS.get(run.method, {}), run.tables))


def validation_of(device: str) -> dict[str, Any]:
    """The recipe's `[validate]`: accuracy on the device where ONNX Runtime can, and no latency."""
    cuda = device == "cuda" and "CUDAExecutionProvider" in available_providers()
    return {"latency": False, "threads": 1, "provider": "cuda" if cuda else "cpu"}


def execute(run: Run, place: Workplace, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Do a run, or go on with it; what came out, as JSON values.

    A run that diverges for good gives `{"failed": why}`: that is a result of its settings, too.

    Raises:
        Interrupted: `stop` said so; another call goes on.
    """
    network, data, seed = run.network, run.data, run.seed
    recipe = recipe_of(run, place)
    source = (place.untrained if run.start == "untrained" else place.dense)(network, data, seed)
    output = place.output(run)
    run_dir = output.with_suffix(".run")
    output.parent.mkdir(parents=True, exist_ok=True)
    started, busy = time.perf_counter(), time.process_time()
    try:
        results = _prune(source, output, recipe, run_dir, stop)
    except TrainingError as error:
        shutil.rmtree(run_dir, ignore_errors=True)
        return {"failed": str(error)}
    log = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    _save_masks(kept_sets(output, run.sparsity), place.masks(run))
    validation = results["validation"]
    entry = {
        "accuracy": validation["pruned"]["top1"],
        "accuracy_before": validation["dense"]["top1"],
        "samples": validation["samples"],
        "sparsity": results["sparsity"],
        "budget": results["budget"],
        "shed": [{key: line[key] for key in _SHED} for line in log if line["kind"] == "shed"],
        "closed": sum(line["closed"] for line in log if line["kind"] == "event"),
        "harvested": sum(line["harvested"] for line in log if line["kind"] == "event"),
        "rollbacks": sum(line["kind"] == "rollback" for line in log),
        "overlap_with_start": (results["overlap_with_one_shot"] or {}).get("jaccard"),
        "overlap_by_chance": (results["overlap_with_one_shot"] or {}).get("expected"),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
        "tool_version": __version__,
    }
    shutil.rmtree(run_dir)
    if output != place.dense(network, data, seed):
        output.unlink()
    return entry


def _prune(
    source: Path,
    output: Path,
    recipe: onnxprune.Recipe,
    run_dir: Path,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Prune, or go on; what another version of model or recipe left is cleared away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return onnxprune.prune(source, output, recipe, run_dir=run_dir, resume=True, stop=stop)
        except CheckpointError:
            shutil.rmtree(run_dir)
            return onnxprune.prune(source, output, recipe, run_dir=run_dir, resume=True, stop=stop)


def kept_sets(model: Path, sparsity: float) -> dict[str, np.ndarray]:
    """Masks of the prunable tensors of a file, True where a weight is kept."""
    if not sparsity:
        return {}
    tensors = find_tensors(read(model).proto)
    return {name: t.array() != 0 for name, t in tensors.items() if t.prunable}


def _save_masks(kept: Mapping[str, np.ndarray], path: Path) -> None:
    if kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **kept)


def load_masks(path: Path) -> dict[str, torch.Tensor]:
    """The kept sets that a finished run left."""
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _merged(*tables: Tables) -> dict[str, Any]:
    """Later tables win, key by key; keys that are None are left out."""
    return reduce(merged, tables, dict[str, Any]())
