import numpy as np
import pytest
from PIL import Image

from onnxprune.model import ValueSpec


@pytest.fixture
def image_input():
    return [ValueSpec("x", np.dtype(np.float32), ("N", 3, 8, 8))]


@pytest.fixture
def class_folders(tmp_path):
    """Class folders "0", "180", "270", "90", whose images' red value is the angle / 2."""
    root = tmp_path / "pages"
    for name in ("0", "90", "180", "270"):
        (root / name / "inner").mkdir(parents=True)
        for index, place in enumerate(("a.png", "b.PNG", "inner/c.bmp")):
            image = Image.new("RGB", (10 + index, 12), (int(name) // 2, index, 0))
            image.save(root / name / place)
    return root
