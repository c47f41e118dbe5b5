"""The tables of a recipe. Units stand in each field's text."""

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    field_validator,
    model_validator,
)

from onnxprune.pattern_text import PATTERN_TEXT, block_of, nm_of, pattern_sparsity

LOSS_TEXT = r"^(auto|cross-entropy|bce|mse|ctc|python:[A-Za-z_][\w.]*:[A-Za-z_]\w*)$"
LOSS_FORMS = "auto, cross-entropy, bce, mse, ctc or python:package.module:function"


_Pair = Annotated[tuple[int, int], Strict(False)]
"""Two sizes, which TOML and JSON write as a list."""


class Table(BaseModel):
    """A table in which unknown keys and loose types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelTable(Table):
    """`[model]`: how the source model is read."""

    to_inference: bool = Field(
        False,
        description="Clear training flags of Dropout and BatchNormalization in the written file.",
    )


class DataTable(Table):
    """`[data]`: which samples are used."""

    train: str | None = Field(None, description="Data SPEC to fine-tune on.")
    eval: str | None = Field(None, description="Data SPEC to measure accuracy on.")
    classes: list[str] | None = Field(
        None, description="Class folders in the order of the model's outputs."
    )
    holdout: float = Field(
        0.1, gt=0, lt=1, description="Share of `train` held out where `eval` is not given."
    )
    limit: int | None = Field(None, ge=1, description="Use at most this many samples of `train`.")
    max_corrupt: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of samples that may be unreadable, in [0, 1]; each is left out and "
        "named. 0: the first one is an error.",
    )
    padding: dict[str, float] = Field(
        {},
        description="Input name = value that fills samples up to the longest of a batch, along "
        "the axes that the model leaves open.",
    )
    masks: dict[str, str] = Field(
        {},
        description="Mask input = the padded input that it describes: 1 where there are data, 0 "
        "where they are filled up. Made where the data do not bring it.",
    )
    lengths: dict[str, str] = Field(
        {},
        description="Length input = the padded input whose lengths before padding it holds. Made "
        "where the data do not bring it.",
    )


class Preprocess(Table):
    """`[preprocess]`: from an image file to the model's input.

    A pixel of 0 to 255 becomes `(pixel * scale - mean) / std`.
    """

    input: str | None = Field(None, description="Name of the image input, if there are several.")
    resize: int | _Pair | None = Field(
        None, description="Short side in pixels (ratio kept), or [height, width]."
    )
    crop: int | _Pair | None = Field(
        None, description="Centre crop in pixels: a side, or [height, width]."
    )
    scale: float = Field(1 / 255, gt=0, description="Factor that pixels are multiplied with.")
    mean: list[float] = Field([0.0], min_length=1, description="Per channel, after scaling.")
    std: list[float] = Field([1.0], min_length=1, description="Per channel, after scaling.")
    layout: Literal["NCHW", "NHWC"] = Field("NCHW", description="Axis order of the input.")
    color: Literal["RGB", "BGR", "L"] = Field("RGB", description="Channel order; L is grey.")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box"] = Field(
        "bilinear", description="How images are resized."
    )

    @field_validator("std")
    @classmethod
    def _std_positive(cls, value: list[float]) -> list[float]:
        if any(item <= 0 for item in value):
            raise ValueError("every std must be above 0")
        return value

    @field_validator("resize", "crop")
    @classmethod
    def _sizes_positive(cls, value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        sizes = value if isinstance(value, tuple) else (value,)
        if any(size is not None and not 1 <= size <= 16384 for size in sizes):
            raise ValueError("sizes must lie in 1 to 16384 pixels")
        return value

    @model_validator(mode="after")
    def _channels_match(self) -> Self:
        channels = 1 if self.color == "L" else 3
        for key in ("mean", "std"):
            if len(getattr(self, key)) not in (1, channels):
                allowed = "1 value" if channels == 1 else f"1 or {channels} values"
                raise ValueError(f"{key} must have {allowed} for color {self.color!r}")
        return self


class AugmentTable(Table):
    """`[augment]`: random changes of training images, before `[preprocess]`.

    Each transform names a class of `torchvision.transforms.v2` beside its arguments, as in
    `{ name = "RandomResizedCrop", size = [224, 224], scale = [0.7, 1.0] }`.
    """

    transforms: list[dict[str, Any]] = Field(
        [],
        description='Transforms in order, such as { name = "RandomHorizontalFlip", p = 0.5 }. With '
        "any, the dense model runs in each step, since its outputs cannot be kept.",
    )

    @field_validator("transforms")
    @classmethod
    def _named(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for number, entry in enumerate(value):
            if not isinstance(entry.get("name"), str):
                raise ValueError(f"transform {number} has no `name`")
        return value


class SparsityTable(Table):
    """`[sparsity]`: what is removed."""

    target: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Zeros / prunable weights at the end, in [0, 1); by default 0.8, or what an "
        "N:M pattern means.",
    )
    method: Literal["cascade-gmp", "gmp", "random", "one-shot", "iterative"] = Field(
        "cascade-gmp",
        description="gmp: gradual magnitude pruning; cascade-gmp: the same with structural closure "
        "and harvest of shed weights, see `[cascade]`; random: gradual, random scores (a "
        "baseline); one-shot: magnitude, all at once before fine-tuning; iterative: magnitude, in "
        "rounds that each end in a full course of training, see `[schedule] rewind`.",
    )
    scope: Literal["global", "layerwise"] = Field(
        "global", description="Rank all weights together, or each tensor on its own."
    )
    pattern: str = Field(
        "unstructured",
        pattern=PATTERN_TEXT,
        description="unstructured; N:M: at most N non-zeros in each group of M along the "
        "reduction axis; block:RxC: zeros in whole blocks of R output channels by C entries of "
        "the reduction axis.",
    )
    pattern_choice: Literal["before", "during", "after"] = Field(
        "during",
        description="When the pattern's zeros are chosen. during: at each pruning event, from the "
        "values then; before: all at the first event; after: all at the last event, up to which "
        "pruning is unstructured.",
    )
    include: list[str] = Field(
        ["*"], description="Globs over tensor names, or `op:TYPE`; only these are pruned."
    )
    exclude: list[str] = Field(
        [], description="Globs over tensor names, or `op:TYPE`; these stay dense."
    )
    min_density: float = Field(
        0.01, ge=0, le=1, description="Share of weights that every tensor keeps, in [0, 1]."
    )
    min_density_per_tensor: dict[str, float] = Field(
        {}, description="Glob over tensor names = minimum density in [0, 1]; the last match holds."
    )

    @field_validator("pattern")
    @classmethod
    def _pattern_exists(cls, value: str) -> str:
        nm = nm_of(value)
        if value == "unstructured" or block_of(value) or (nm and nm[1] <= 64):
            return value
        if value.startswith("block:"):
            raise ValueError("block:RxC needs 1 <= R, C <= 64, and more than one weight")
        raise ValueError("N:M needs 1 <= N < M <= 64")

    @field_validator("min_density_per_tensor")
    @classmethod
    def _densities(cls, value: dict[str, float]) -> dict[str, float]:
        for glob, density in value.items():
            if not 0 <= density <= 1:
                raise ValueError(f"{glob!r}: a density lies in [0, 1], got {density}")
        return value

    @model_validator(mode="after")
    def _target_allows_pattern(self) -> Self:
        least = pattern_sparsity(self.pattern)
        if self.target is not None and least and self.target < least:
            raise ValueError(
                f"target {self.target} is below the {least:g} that pattern {self.pattern} means; "
                "leave the target out, or raise it"
            )
        return self

    @model_validator(mode="after")
    def _choice_needs_pattern(self) -> Self:
        if self.pattern == "unstructured" and self.pattern_choice != "during":
            raise ValueError(
                f"pattern_choice {self.pattern_choice!r} needs a pattern; got {self.pattern}"
            )
        return self

    @property
    def resolved_target(self) -> float:
        """The target sparsity in [0, 1)."""
        if self.target is not None:
            return self.target
        return pattern_sparsity(self.pattern) or 0.8

    def min_density_of(self, name: str) -> float:
        """Share of weights that a tensor keeps at least, in [0, 1]."""
        density = self.min_density
        for glob, value in self.min_density_per_tensor.items():
            if name == glob or fnmatchcase(name, glob):
                density = value
        return density


class ScheduleTable(Table):
    """`[schedule]`: when weights are removed, in progress through training from 0 to 1."""

    kind: Literal["cubic", "linear", "one-shot"] = Field(
        "cubic", description="How sparsity rises between `begin` and `end`."
    )
    begin: float = Field(0.0, ge=0, lt=1, description="Progress at the first pruning event.")
    end: float = Field(0.5, gt=0, le=1, description="Progress at which the target is reached.")
    events: int = Field(20, ge=1, description="Number of pruning events from `begin` to `end`.")
    rounds: int = Field(
        5,
        ge=1,
        le=100,
        description="Rounds of method `iterative`, all of one length.",
    )
    rewind: Literal["none", "learning-rate", "weights"] = Field(
        "learning-rate",
        description="What each round of method `iterative` begins with: none: the course of the "
        "learning rate goes on over all rounds; learning-rate: it starts again; weights: the kept "
        "weights go back to their values at `rewind_epoch`, too.",
    )
    rewind_epoch: float = Field(
        0.0,
        ge=0,
        description="Epoch to which rounds are rewound. Above 0, a round without pruning comes "
        "first, in which that epoch is reached; at 0, rounds are rewound to the dense model.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begin ({self.begin}) must be below end ({self.end})")
        return self


class CascadeTable(Table):
    """`[cascade]`: shed weights, and what method `cascade-gmp` does about them."""

    tau: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="A kept weight is shed when its magnitude has fallen to this share of the "
        "root mean square that its tensor's kept weights had at the last pruning event.",
    )
    closure: bool = Field(
        True,
        description="Remove weights on no path from an input to an output first (cascade-gmp).",
    )
    harvest: bool = Field(
        True, description="Remove shed weights before other small ones (cascade-gmp)."
    )
    harvest_cost: float = Field(
        0.01,
        ge=0,
        description="A harvest that would raise the loss by more than this share is left out, and "
        "what `pressure` adds is halved.",
    )
    wait: int = Field(
        1,
        ge=0,
        description="Pruning events, one after another, in which magnitude pruning may be put off "
        "while the shed rate rises, after the first (cascade-gmp).",
    )
    pressure: float = Field(
        1.0,
        ge=0,
        description="Factor on weight decay until the target is reached (cascade-gmp).",
    )
    hold_lr: bool = Field(
        False,
        description="Keep the learning rate at its peak until the target is reached; the rest of "
        "its course takes what is left of the run (cascade-gmp).",
    )
    prune: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of the prunable weights that the treated arms of `onnxprune cascade` "
        "lose.",
    )
    scores: list[Literal["magnitude", "random"]] = Field(
        ["magnitude", "random"],
        min_length=1,
        description="What ranks them, an arm each; the verdict is that of the first.",
    )

    @field_validator("scores")
    @classmethod
    def _scores_differ(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("each score may be named once")
        return value


class FinetuneTable(Table):
    """`[finetune]`: how the kept weights are trained."""

    epochs: float = Field(4.0, ge=0, le=1e6, description="Passes over the training samples.")
    batch_size: int = Field(32, ge=1, description="Samples a step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="Which optimizer.")
    lr: float | None = Field(
        None, gt=0, description="Peak learning rate; by default 0.01 for sgd, 0.0003 for adamw."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(
        1e-4, ge=0, description="L2 (sgd) or decoupled (adamw) decay; not on norms and biases."
    )
    weight_decay_per_tensor: dict[str, float] = Field(
        {}, description="Glob over tensor names = weight decay; the last match holds."
    )
    lr_schedule: Literal["cosine", "constant", "linear", "step", "one-cycle"] = Field(
        "cosine",
        description="Course of the learning rate after warm-up. cosine and linear fall to 0; step "
        "is multiplied by `lr_gamma` at each of `lr_milestones`; one-cycle rises by a cosine from "
        "1/25 of the peak during warm-up, and falls to 1/10,000 of it.",
    )
    lr_milestones: list[float] = Field(
        [0.5, 0.75], description="Progress after warm-up, in (0, 1), at which `step` falls."
    )
    lr_gamma: float = Field(0.1, gt=0, le=1, description="Factor of `step` at each milestone.")
    warmup: float = Field(
        0.05, ge=0, lt=1, description="Progress over which the learning rate rises from 0."
    )
    clip_norm: float = Field(
        1.0, ge=0, description="Largest norm of the whole gradient; 0 for no limit."
    )
    loss: str = Field(
        "auto",
        pattern=LOSS_TEXT,
        description="Loss on the targets: auto, cross-entropy, bce (multi-hot labels), mse, ctc, "
        "or python:package.module:function; auto is cross-entropy.",
    )
    loss_output: str | None = Field(
        None, description="Output that the loss reads, by default the first."
    )
    ctc_blank: int = Field(0, ge=0, description="Index of the blank among the classes of ctc.")
    ctc_input: str | None = Field(
        None,
        description="Padded input whose length tells how many time steps a sample has in ctc, "
        "where several are padded.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Smoothing of the labels of cross-entropy and bce."
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, which is then what is "
        "measured and written; 0 for none.",
    )
    sam_rho: float = Field(
        0.0,
        ge=0,
        description="Radius of sharpness-aware minimisation, which takes two passes a step; 0 for "
        "none.",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Samples a forward pass on each device; gradients are accumulated over the "
        "batch. It is halved by itself where a device runs out of memory. BatchNorm takes the "
        "statistics of what passes at a time.",
    )
    max_rollbacks: int = Field(
        3, ge=0, description="How often a run that diverges goes back to its last good checkpoint."
    )
    rollback_lr: float = Field(
        0.5, gt=0, lt=1, description="Factor on the learning rate after each of these."
    )
    explosion: float = Field(
        10.0,
        gt=1,
        description="A loss above this multiple of that of a model that knows nothing counts as "
        "diverged. The latter is measured: the dense model's outputs, each for another sample.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Arithmetic of training; fp16 needs CUDA."
    )
    compile: bool = Field(False, description="Compile the model with `torch.compile`.")
    channels_last: bool | None = Field(
        None,
        description="Keep image tensors with the channels last in memory; by default for models "
        "with convolutions of images, unless `sharding` spreads them.",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="With several processes, none: each holds the whole model (DDP); fsdp: each "
        "holds a part of the parameters and of what belongs to them, for models that do not fit.",
    )
    sync_batchnorm: bool = Field(
        True,
        description="With several processes, BatchNorm uses the statistics of the batch over all.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train.")
    threads: int | None = Field(None, ge=1, description="CPU threads for training.")
    workers: int = Field(0, ge=0, description="Processes that read data; 0 reads in-process.")
    track: list[Literal["tensorboard", "mlflow"]] = Field(
        [], description="Experiment trackers that are told of losses and metrics."
    )
    cache_mb: int = Field(
        2048,
        ge=0,
        description="Preprocessed samples are kept in memory up to this size, in MiB. So are the "
        "dense model's outputs; if they are larger, the dense model runs in each step.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything random.")
    checkpoint_seconds: float = Field(
        60.0, ge=0, description="Least time between two checkpoints, in seconds; 0: every step."
    )
    evaluations: int = Field(
        5, ge=0, description="How often accuracy is measured on the way, on `progress_samples`."
    )
    progress_samples: int = Field(256, ge=1, description="Evaluation samples used on the way.")
    recalibrate_batches: int = Field(
        32,
        ge=0,
        description="Training batches over which BatchNorm statistics are measured again at the "
        "end; 0 keeps the running averages.",
    )

    @field_validator("lr_milestones")
    @classmethod
    def _inside(cls, value: list[float]) -> list[float]:
        if any(not 0 < item < 1 for item in value) or sorted(value) != value:
            raise ValueError("milestones rise and lie in (0, 1)")
        return value

    @field_validator("weight_decay_per_tensor")
    @classmethod
    def _decays(cls, value: dict[str, float]) -> dict[str, float]:
        for glob, decay in value.items():
            if decay < 0:
                raise ValueError(f"{glob!r}: a weight decay is at least 0, got {decay}")
        return value

    @model_validator(mode="after")
    def _one_pass(self) -> Self:
        if self.sam_rho and self.precision == "fp16":
            raise ValueError("sam_rho and precision 'fp16' exclude each other; use bf16")
        return self

    @model_validator(mode="after")
    def _smoothing_has_classes(self) -> Self:
        if self.label_smoothing and self.loss not in ("auto", "cross-entropy", "bce"):
            raise ValueError(f"label_smoothing does nothing with loss {self.loss!r}; leave it out")
        return self


class DistillTable(Table):
    """`[distill]`: learning from the dense model."""

    weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the distillation loss, in [0, 1]; by default 0.5 with labels and 1 "
        "without.",
    )
    temperature: float = Field(1.0, gt=0, description="Softmax temperature.")
    loss: Literal["auto", "kl", "mse", "kl+mse", "cosine"] = Field(
        "auto",
        description="auto: kl for softmax outputs and labelled class scores, kl+mse for what looks "
        "like class scores without labels, mse for the rest.",
    )
    outputs: list[str] = Field(
        ["*"], description="Globs over the graph's outputs; these are compared."
    )
    features: dict[str, float] = Field(
        {},
        description="Name of a tensor inside the graph = weight of its distance, above 0, which is "
        "added to that of the outputs.",
    )
    feature_loss: Literal["mse", "mae", "cosine"] = Field(
        "mse",
        description="Distance of such tensors: mse over the variance, mae over the standard "
        "deviation, or cosine for embeddings.",
    )
    teacher: Literal["auto", "cached", "torch", "runtime"] = Field(
        "auto",
        description="Where the dense model runs: cached, once under ONNX Runtime before training; "
        "torch or runtime, in each step in PyTorch or under ONNX Runtime; auto: cached where that "
        "is possible, else torch.",
    )
    mask_input: str | None = Field(
        None, description="Input whose zeros mark padded positions, which are not compared."
    )

    @field_validator("features")
    @classmethod
    def _weights_positive(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if weight <= 0:
                raise ValueError(f"{name!r}: a weight must be above 0, got {weight}")
        return value

    @model_validator(mode="after")
    def _something_compared(self) -> Self:
        if not self.outputs and not self.features and self.weight != 0:
            raise ValueError("outputs and features are both empty; set weight = 0 to not distil")
        return self


class ExportTable(Table):
    """`[export]`: the written file."""

    storage: Literal["dense", "sparse"] = Field(
        "dense", description="sparse: `sparse_initializer` where that is smaller."
    )


class ValidateTable(Table):
    """`[validate]`: measurements under ONNX Runtime at the end."""

    batch_size: int = Field(32, ge=1, description="Samples a call while measuring accuracy.")
    provider: str = Field("CPUExecutionProvider", description="Execution provider.")
    threads: int | None = Field(None, ge=1, description="Threads of ONNX Runtime.")
    latency: bool = Field(True, description="Measure latency.")
    latency_batch: int = Field(1, ge=1, description="Samples a call while measuring latency.")
    latency_seconds: float = Field(20.0, gt=0, description="Longest time for it, in seconds.")
    shapes: dict[str, list[int]] = Field(
        {}, description="Input name = shape, for dynamic axes while measuring latency."
    )
