import shutil

import numpy as np
import pytest
from PIL import Image

from onnxprune.calibration import images, open_data
from onnxprune.calibration.images import resolve_preprocess
from onnxprune.errors import DataError
from onnxprune.model import ValueSpec
from onnxprune.recipe import Preprocess


def spec(*shape, dtype=np.float32, name="x"):
    return ValueSpec(name, np.dtype(dtype), shape)


def test_class_folders_sorted_by_name(class_folders, image_input):
    samples = open_data(str(class_folders), inputs=image_input, num_classes=4)
    assert samples.classes == ["0", "180", "270", "90"]
    assert len(samples) == 12
    assert samples.labelled
    red = [round(float(sample.inputs["x"][0, 0, 0]) * 255) for sample in samples]
    assert red == [0] * 3 + [90] * 3 + [135] * 3 + [45] * 3
    assert [sample.label for sample in samples] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert samples[0].inputs["x"].shape == (3, 8, 8)
    assert samples[0].inputs["x"].dtype == np.float32


def test_class_order_from_the_recipe(class_folders, image_input):
    samples = open_data(
        str(class_folders), inputs=image_input, classes=["0", "90", "180", "270"], num_classes=4
    )
    assert [samples.label(i) for i in range(12)] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert round(float(samples[3].inputs["x"][0, 0, 0]) * 255) == 45


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["0", "90", "180"], "'270'"),
        (["0", "90", "180", "270", "45"], "'45'"),
        (["0", "90", "180", "270", "0"], "twice"),
    ],
)
def test_classes_must_be_the_folders(class_folders, image_input, classes, message):
    with pytest.raises(DataError, match=message):
        open_data(str(class_folders), inputs=image_input, classes=classes)


@pytest.mark.parametrize("num_classes", [3, 5])
def test_number_of_folders_must_be_the_models(class_folders, image_input, num_classes):
    with pytest.raises(DataError, match=f"4 folders.*\n.*{num_classes} classes"):
        open_data(str(class_folders), inputs=image_input, num_classes=num_classes)


def test_fewer_classes_than_outputs_only_with_names(class_folders, image_input):
    names = ["0", "90", "180", "270"]
    samples = open_data(str(class_folders), inputs=image_input, classes=names, num_classes=9)
    assert samples.label(11) == 3
    with pytest.raises(DataError, match="out of range"):
        open_data(str(class_folders), inputs=image_input, classes=names, num_classes=3)


def test_a_named_class_may_be_empty(class_folders, image_input):
    (class_folders / "45").mkdir()
    names = ["45", "0", "90", "180", "270"]
    samples = open_data(str(class_folders), inputs=image_input, classes=names, num_classes=5)
    assert {samples.label(i) for i in range(12)} == {1, 2, 3, 4}


def test_a_binary_model_has_one_score_and_two_folders(class_folders, image_input):
    for name in ("180", "270"):
        shutil.rmtree(class_folders / name)
    samples = open_data(str(class_folders), inputs=image_input, num_classes=1)
    assert {sample.label for sample in samples} == {0, 1}


def test_flat_folder_is_unlabelled(class_folders, image_input):
    flat = class_folders / "0" / "inner"
    Image.new("RGB", (9, 9)).save(flat / "d.jpg")
    samples = open_data(str(flat), inputs=image_input, num_classes=4)
    assert not samples.labelled
    assert [sample.label for sample in samples] == [None, None]
    named = open_data(str(flat), inputs=image_input, classes=["a"])
    assert not named.labelled


def test_mixed_and_empty_folders(class_folders, image_input, tmp_path):
    Image.new("RGB", (9, 9)).save(class_folders / "loose.png")
    with pytest.raises(DataError, match="both images and class folders"):
        open_data(str(class_folders), inputs=image_input)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no images"):
        open_data(str(tmp_path / "empty"), inputs=image_input)
    with pytest.raises(DataError, match="no such data"):
        open_data(str(tmp_path / "nowhere"), inputs=image_input)


def test_a_damaged_image_names_its_file(class_folders, image_input):
    target = class_folders / "0" / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(target)
    for content in (b"not an image", target.read_bytes()[:600]):
        target.write_bytes(content)
        samples = open_data(str(class_folders), inputs=image_input)
        with pytest.raises(DataError, match=r"a\.png"):
            samples[0]


def test_a_renamed_file_of_another_format_is_refused(tmp_path, image_input):
    Image.new("RGB", (9, 9)).save(tmp_path / "x.ppm")
    (tmp_path / "x.ppm").rename(tmp_path / "x.png")
    samples = open_data(str(tmp_path), inputs=image_input)
    with pytest.raises(DataError, match="cannot be read"):
        samples[0]


def test_huge_images_are_refused_before_decoding(class_folders, image_input, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    samples = open_data(str(class_folders), inputs=image_input)
    with pytest.raises(DataError, match=r"too large(.|\n)*a\.png"):
        samples[0]


def test_exif_orientation_is_ignored(tmp_path, image_input):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    value = open_data(str(tmp_path), inputs=image_input)[0].inputs["x"]
    assert value[:, 0].mean() == 1
    assert value[:, -1].mean() == 0


def test_digest_ignores_paths_and_times(class_folders, image_input, tmp_path):
    digest = open_data(str(class_folders), inputs=image_input).digest()
    copy = tmp_path / "copy"
    shutil.copytree(class_folders, copy, copy_function=shutil.copy)
    (copy / "0" / "a.png").touch()
    assert open_data(str(copy), inputs=image_input).digest() == digest
    shutil.copy(copy / "90" / "a.png", copy / "0" / "a.png")
    assert open_data(str(copy), inputs=image_input).digest() != digest


def test_raw_image_is_neither_resized_nor_cropped(class_folders, image_input):
    samples = open_data(str(class_folders), inputs=image_input)
    raw = samples.raw_image(2)
    assert raw.size == (12, 12)
    assert raw.mode == "RGB"


def test_limit_is_stratified_and_seeded(class_folders, image_input):
    def pick(seed):
        samples = open_data(str(class_folders), inputs=image_input, limit=4, seed=seed)
        assert [sample.label for sample in samples] == [0, 1, 2, 3]
        return tuple(samples.indices)

    assert pick(0) == pick(0)
    assert len({pick(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize(
    ("given", "shape", "expected"),
    [
        (None, ("N", 3, 224, 224), {"resize": 224, "crop": (224, 224), "layout": "NCHW"}),
        (None, ("N", 3, 48, 192), {"resize": (48, 192), "crop": None}),
        (None, ("N", 32, 32, 1), {"layout": "NHWC", "color": "L", "resize": 32}),
        (Preprocess(resize=256), ("N", 3, 224, 224), {"resize": 256, "crop": (224, 224)}),
        (Preprocess(resize=(8, 9)), (None, None, None, None), {"resize": (8, 9), "crop": None}),
        (Preprocess(resize=8), ("N", 3, "H", "W"), {"resize": 8, "crop": None}),
        (Preprocess(mean=[1, 2, 3]), ("N", 3, 8, 8), {"mean": [1, 2, 3], "scale": 1 / 255}),
    ],
)
def test_what_is_left_open_follows_the_model(given, shape, expected):
    _, complete = resolve_preprocess(given, [spec(*shape)], "data")
    assert {key: getattr(complete, key) for key in expected} == expected


def test_integer_inputs_get_raw_pixels(tmp_path):
    Image.new("RGB", (9, 9), (7, 8, 9)).save(tmp_path / "a.png")
    inputs = [spec("N", 8, 8, 3, dtype=np.uint8)]
    value = open_data(str(tmp_path), inputs=inputs)[0].inputs["x"]
    assert value.dtype == np.uint8
    assert value[0, 0].tolist() == [7, 8, 9]
    with pytest.raises(DataError, match="integer pixels"):
        open_data(str(tmp_path), inputs=inputs, preprocess=Preprocess(scale=0.5))


def test_half_precision_inputs(tmp_path):
    Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / "a.png")
    value = open_data(str(tmp_path), inputs=[spec("N", 3, 8, 8, dtype=np.float16)])[0]
    assert value.inputs["x"].dtype == np.float16


@pytest.mark.parametrize(
    ("given", "inputs", "message"),
    [
        (None, [spec("N", 3, "H", "W")], r"set \[preprocess\] resize"),
        (None, [spec("N", 3)], "takes no images"),
        (None, [spec("N", 3, 8, 8), spec("N", 2, name="y")], "several"),
        (Preprocess(input="z"), [spec("N", 3, 8, 8)], "names no input"),
        (Preprocess(resize=(8, 9)), [spec("N", 3, 8, 8)], r"float32\[3, 8, 9\]"),
        (Preprocess(color="L"), [spec("N", 3, 8, 8)], r"float32\[1, 8, 8\]"),
        (Preprocess(mean=[1, 2, 3]), [spec("N", 1, 8, 8)], "mean must have 1"),
    ],
)
def test_preprocessing_that_does_not_fit(given, inputs, message):
    with pytest.raises(DataError, match=message):
        resolve_preprocess(given, inputs, "data")
