"""How big the experiments are, and the command-line options that all of them have."""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

from data import CLASSES, FASHION, Sizes
from networks import NETWORKS

RESULTS = Path(__file__).parents[1] / "results" / "cascade"


@dataclass(frozen=True)
class Scale:
    """How big an experiment is.

    Attributes:
        sizes: How much data, and how large its images.
        networks: Names in `networks.NETWORKS`; experiments on one network take the first.
        data: Names of data sets; experiments on one take the first.
        batch: Samples a step.
        dense_epochs: Epochs in which a dense model is trained.
        epochs: Epochs of pruning and fine-tuning.
        precision: Arithmetic of training.
        device: `cpu` or `cuda`.
        workers: Runs at a time.
        seeds: Seeds of weights, order and random scores.
    """

    sizes: Sizes
    networks: tuple[str, ...]
    data: tuple[str, ...]
    batch: int
    dense_epochs: float
    epochs: float
    precision: str
    device: str
    workers: int
    seeds: tuple[int, ...]


SCALES = {
    "cpu": Scale(
        sizes=Sizes(8_000, 4_000, 10_000, 14),
        networks=("resnet8", "mobilenet-tiny"),
        data=("fashion", "glyphs"),
        batch=64,
        dense_epochs=12,
        epochs=8,
        precision="fp32",
        device="cpu",
        workers=2,
        seeds=(0, 1, 2),
    ),
    "gpu": Scale(
        sizes=Sizes(50_000, 10_000, 10_000, 28),
        networks=("resnet20", "resnet50", "mobilenet-v3-small"),
        data=("fashion", "glyphs"),
        batch=128,
        dense_epochs=30,
        epochs=30,
        precision="bf16",
        device="cuda",
        workers=8,
        seeds=(0, 1, 2, 3, 4),
    ),
    "quick": Scale(
        sizes=Sizes(480, 240, 240, 14),
        networks=("resnet8",),
        data=("glyphs",),
        batch=32,
        dense_epochs=1,
        epochs=1,
        precision="fp32",
        device="cpu",
        workers=1,
        seeds=(0, 1),
    ),
}


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        scale: With what the command line puts in its place.
        scale_name: Key in `SCALES`.
        work: Folder of data, dense models, unfinished runs and the journal.
        fashion: Folder of the idx files of Fashion-MNIST.
        deadline: When to stop, in seconds since the epoch; None for no limit.
        partial: Whether to write results although runs are missing.
        results: Folder of results files and plots.
        name: Of the results file.
    """

    scale: Scale
    scale_name: str
    work: Path
    fashion: Path
    deadline: float | None
    partial: bool
    results: Path
    name: str


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all experiments have."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="about a minute, to try the script")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS))
    parser.add_argument("--data", nargs="+", choices=sorted(CLASSES))
    parser.add_argument("--epochs", type=float, help="epochs of pruning and fine-tuning")
    parser.add_argument("--dense-epochs", type=float, help="epochs of the dense models")
    parser.add_argument("--train", type=int, metavar="SAMPLES", help="how many to train on")
    parser.add_argument("--batch", type=int, help="samples a step")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, help="runs at a time; 0: in this process")
    parser.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    parser.add_argument("--partial", action="store_true", help="write results of what is there")
    parser.add_argument("--work", type=Path, default=Path("build/cascade"))
    parser.add_argument("--fashion", type=Path, default=FASHION, help="folder of its idx files")
    parser.add_argument("--results", type=Path, help="folder of results files and plots")
    parser.add_argument("--name", help="of the results file")
    return parser


def options_of(arguments: argparse.Namespace, name: str) -> Options:
    """What parsed arguments mean for the experiment `name`."""
    scale_name = "quick" if arguments.quick else arguments.scale
    scale = SCALES[scale_name]
    changed = replace(
        scale,
        sizes=replace(scale.sizes, train=arguments.train or scale.sizes.train),
        batch=arguments.batch or scale.batch,
        dense_epochs=arguments.dense_epochs or scale.dense_epochs,
        networks=tuple(arguments.networks or scale.networks),
        data=tuple(arguments.data or scale.data),
        epochs=scale.epochs if arguments.epochs is None else arguments.epochs,
        device=arguments.device or scale.device,
        workers=scale.workers if arguments.workers is None else arguments.workers,
        seeds=tuple(arguments.seeds or scale.seeds),
    )
    suffix = "" if scale_name == "cpu" else f"_{scale_name}"
    return Options(
        scale=changed,
        scale_name=scale_name,
        work=arguments.work / scale_name,
        fashion=arguments.fashion,
        deadline=None if arguments.minutes is None else time.time() + 60 * arguments.minutes,
        partial=arguments.partial,
        results=arguments.results or (arguments.work / "results" if arguments.quick else RESULTS),
        name=arguments.name or f"{name}{suffix}",
    )
