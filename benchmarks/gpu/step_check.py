"""Our training step on an imported network beside a hand-written native one with the same masks."""

import warnings

import torch
from rows import Outcome, Settings
from training_pair import Setting, compare

LIMIT = 1.03
_BATCH = {"resnet50": 64, "mobilenet_v3_large": 128}


def measure(item: str, settings: Settings) -> Outcome:
    """The ratio of the two, with its interval."""
    _, name, precision = item.split()
    warnings.simplefilter("ignore")
    torch.backends.cudnn.benchmark = True
    setting = Setting(
        settings.device,
        precision,
        batch=2 if settings.tiny else _BATCH[name],
        size=32 if settings.tiny else 224,
        seconds=1.0 if settings.tiny else 20.0,
        rounds=5 if settings.tiny else 300,
        seed=settings.seed,
    )
    result = compare(name, setting)
    measured = {key: result[key] for key in ("ratio", "low", "high")}
    details = {**result, "batch": setting.batch, "size": setting.size}
    if not settings.judges_speed:
        return Outcome(None, measured, "speed is judged on a GPU, at full size", details)
    return Outcome(result["ratio"] <= LIMIT, measured, details=details)
