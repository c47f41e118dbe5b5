"""What keeping the masks and logging cost on the GPU, as a share of the step."""

import warnings

import torch
from rows import Outcome, Settings
from training_pair import Setting, make_pair, upkeep

LIMIT = 0.01


def measure(item: str, settings: Settings) -> Outcome:
    """The share, with its parts in seconds."""
    name = item.split()[1]
    warnings.simplefilter("ignore")
    torch.backends.cudnn.benchmark = True
    setting = Setting(
        settings.device,
        "fp32",
        batch=2 if settings.tiny else 64,
        size=32 if settings.tiny else 224,
        seed=settings.seed,
    )
    pair = make_pair(name, setting)
    result = upkeep(pair.imported, pair.batch, setting, steps=3 if settings.tiny else 40)
    measured = {"share": result["share_of_step"]}
    details = {**result, "batch": setting.batch, "size": setting.size}
    if not settings.judges_speed:
        return Outcome(None, measured, "speed is judged on a GPU, at full size", details)
    return Outcome(measured["share"] < LIMIT, measured, details=details)
