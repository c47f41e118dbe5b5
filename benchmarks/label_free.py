"""Without labels against with labels: how near the pruned model stays to the dense one.

Three arms prune a model to 80 % on the same images, steps and seeds:

- `cross-entropy`: labels alone, as plain fine-tuning does it;
- `labels and distillation`: both, half and half;
- `label-free`: the dense model's outputs alone.

For EfficientNet-lite0 there are no true labels for the images, so the first two arms take the dense
model's own class of each image as its label, which is what one would do without labels and without
distillation. All arms of a model have the same learning rate; it was not tuned for any.

Distillation has the recipe's default loss: `kl` with labels, and where the graph ends in a softmax
(orientation); `mse` on the logits of lite0 without labels.

Finished arms are kept in `WORK/arms.jsonl`, and an arm that was cut off goes on from its last
checkpoint, so the script can be started again with the same options.

    apt-get install openclipart-png
    python benchmarks/label_free.py --work build/label_free
    python benchmarks/label_free.py --work build/label_free_gpu --device cuda --train 6000 \
        --evaluation 2000 --size 224 --epochs 10 --seeds 0 1 2 --name label_free_gpu
"""

import argparse
import hashlib
import json
import time
import warnings
from pathlib import Path
from typing import Any

from label_free_data import EXAMPLE, Task, lite0, orientation
from record import write_results

import onnxprune

ARMS: dict[str, dict[str, Any]] = {
    "cross-entropy": {"weight": 0.0},
    "labels and distillation": {"weight": 0.5},
    "label-free": {},
}
"""Arm -> the recipe's `[distill]`; the last has data without labels."""

FINETUNE: dict[str, dict[str, Any]] = {
    "orientation": {},
    "lite0": {"batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
}
"""Task -> what differs from the example's recipe: a thousand classes need more steps."""

_METRICS = ("agreement", "top1", "cosine", "loss")


def main() -> None:
    """Run every arm that is not in the journal, and write the results when all are."""
    arguments = _arguments()
    warnings.simplefilter("ignore")
    settings = {k: v for k, v in vars(arguments).items() if k not in ("work", "clipart")}
    journal = Journal(arguments.work / "arms.jsonl", settings)
    tasks = {name: _task(name, arguments) for name in arguments.tasks}
    entries = []
    for seed in arguments.seeds:
        for name, task in tasks.items():
            for arm in ARMS:
                key = {"task": name, "arm": arm, "seed": seed, "finetune": FINETUNE[name]}
                entry = journal.find(key)
                if entry is None:
                    entry = key | _run(task, key, arguments)
                    journal.add(entry)
                entries.append(entry)
    write_results(arguments.name, settings, {"summary": summary(entries), "runs": entries})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for data, runs, journal")
    parser.add_argument("--tasks", nargs="+", default=["orientation", "lite0"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--train", type=int, default=1600, help="training images")
    parser.add_argument("--evaluation", type=int, default=800, help="evaluation images")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--size", type=int, default=128, help="side of lite0's input in pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clipart", type=Path, default=Path("/usr/share/openclipart/png"))
    parser.add_argument("--name", default="label_free", help="of the results file")
    return parser.parse_args()


def _task(name: str, arguments: argparse.Namespace) -> Task:
    train, evaluation = arguments.train, arguments.evaluation
    work = arguments.work / f"{name}-{train}-{evaluation}-{arguments.size}"
    if name == "orientation":
        return orientation(work, train, evaluation)
    return lite0(work, arguments.clipart, train, evaluation, arguments.size)


def _run(task: Task, key: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Prune by one arm; what was measured under ONNX Runtime."""
    arm, seed = key["arm"], key["seed"]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    folder = task.model.parent / "runs" / f"{arm.replace(' ', '-')}-{seed}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    labelled = arm != "label-free"
    overrides: dict[str, dict[str, Any]] = {
        "data": {
            "train": str(task.labelled if labelled else task.unlabelled),
            "eval": str(task.evaluation),
            "classes": task.classes,
        },
        "sparsity": {"target": arguments.sparsity},
        "finetune": {
            "epochs": arguments.epochs,
            "seed": seed,
            "device": arguments.device,
            "threads": arguments.threads,
            "evaluations": 0,
            **key["finetune"],
        },
        "distill": ARMS[arm],
        "validate": {"latency": False, "threads": arguments.threads},
    }
    if task.preprocess is not None:
        # The example's colour order is the orientation model's own.
        overrides["preprocess"] = task.preprocess.model_dump(mode="json", exclude_none=True)
    recipe = onnxprune.Recipe.from_toml(EXAMPLE / "recipe.toml", overrides)
    started = time.perf_counter()
    results = onnxprune.prune(
        task.model, folder / "pruned.onnx", recipe, run_dir=folder / "run", resume=True
    )
    pruned = results["validation"]["pruned"]
    return {
        "supervision": _supervision(task, arm),
        "sparsity": results["sparsity"],
        "samples": results["validation"]["samples"],
        "dense": {key: v for key, v in results["validation"]["dense"].items() if key in _METRICS},
        "pruned": {key: value for key, value in pruned.items() if key in _METRICS},
        "seconds": round(time.perf_counter() - started, 1),
    }


def _supervision(task: Task, arm: str) -> str:
    if arm == "label-free":
        return "the dense model's outputs"
    labels = "true labels" if task.true_labels else "the dense model's classes as labels"
    return labels if arm == "cross-entropy" else f"{labels}, and the dense model's outputs"


class Journal:
    """Finished arms, a line each; lines of other settings are left alone.

    Attributes:
        entries: Those of these settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        facts = {k: v for k, v in settings.items() if k not in ("name", "tasks", "seeds")}
        self.settings = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        found = [json.loads(line) for line in lines]
        self.entries = [entry["entry"] for entry in found if entry["settings"] == self.settings]

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The entry that holds these values."""
        return next((entry for entry in self.entries if key.items() <= entry.items()), None)

    def add(self, entry: dict[str, Any]) -> None:
        """Keep an entry, and print it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"settings": self.settings, "entry": entry}) + "\n")
        self.entries.append(entry)
        print(json.dumps(entry), flush=True)


def summary(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean agreement (and accuracy) of every arm, and its mean gain over cross-entropy by seed."""
    rows = []
    for task in dict.fromkeys(entry["task"] for entry in entries):
        values = {
            (entry["arm"], entry["seed"]): entry["pruned"]
            for entry in entries
            if entry["task"] == task
        }
        seeds = sorted({seed for _, seed in values})
        for arm in ARMS:
            row: dict[str, Any] = {"task": task, "arm": arm, "seeds": len(seeds)}
            for metric in ("agreement", "top1"):
                if metric in values[arm, seeds[0]]:
                    ours = [values[arm, seed][metric] for seed in seeds]
                    base = [values["cross-entropy", seed][metric] for seed in seeds]
                    gains = [a - b for a, b in zip(ours, base, strict=True)]
                    row[metric] = round(sum(ours) / len(ours), 4)
                    row[f"{metric}_gain"] = round(sum(gains) / len(gains), 4)
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
