"""Samples and preprocessing, and the statistics that are measured with them.

`open_data` turns a data spec into `Samples` that fit a model. Only `recalibrate` and the
`torchvision:` reader need torch, which they import when called.
"""

from onnxprune.calibration.augment import Augmentation
from onnxprune.calibration.batchnorm import recalibrate
from onnxprune.calibration.preprocess import preprocess_image, resize_and_crop, to_array
from onnxprune.calibration.readers import open_data
from onnxprune.calibration.samples import (
    Sample,
    Samples,
    class_order_note,
    shuffled_order,
    split_holdout,
    subset,
)

__all__ = [
    "Augmentation",
    "Sample",
    "Samples",
    "class_order_note",
    "open_data",
    "preprocess_image",
    "recalibrate",
    "resize_and_crop",
    "shuffled_order",
    "split_holdout",
    "subset",
    "to_array",
]
