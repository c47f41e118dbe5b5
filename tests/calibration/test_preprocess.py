import warnings

import numpy as np
import pytest
from PIL import Image

from onnxprune.calibration import preprocess_image, to_array
from onnxprune.calibration.preprocess import output_shape, resize_and_crop, to_mode
from onnxprune.errors import DataError
from onnxprune.recipe import Preprocess


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[:, :, 0])


def test_values_follow_the_formula_in_nchw():
    image = noise(5, 7)
    p = Preprocess(scale=1 / 255, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    result = preprocess_image(image, p)
    pixels = np.asarray(image).astype(np.float64)
    expected = ((pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).transpose(2, 0, 1)
    assert result.dtype == np.float32
    assert result.shape == (3, 5, 7)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_layout_and_channel_order():
    image = noise(4, 6)
    rgb = preprocess_image(image, Preprocess(scale=1))
    nhwc = preprocess_image(image, Preprocess(scale=1, layout="NHWC"))
    bgr = preprocess_image(image, Preprocess(scale=1, color="BGR"))
    np.testing.assert_array_equal(nhwc, rgb.transpose(1, 2, 0))
    np.testing.assert_array_equal(bgr, rgb[::-1])
    assert not np.array_equal(bgr, rgb)
    assert nhwc.flags.c_contiguous
    assert bgr.flags.c_contiguous


def test_bgr_means_apply_to_bgr_channels():
    image = Image.new("RGB", (1, 1), (10, 20, 30))
    result = preprocess_image(image, Preprocess(scale=1, color="BGR", mean=[30, 20, 10]))
    np.testing.assert_array_equal(result.ravel(), [0, 0, 0])


def test_grey_has_one_channel():
    result = preprocess_image(noise(4, 6), Preprocess(color="L", scale=1))
    assert result.shape == (1, 4, 6)
    np.testing.assert_array_equal(result[0], np.asarray(noise(4, 6).convert("L")))


@pytest.mark.parametrize(("height", "width"), [(37, 91), (91, 37), (64, 64), (33, 34)])
@pytest.mark.parametrize("resize", [32, 48])
def test_geometry_is_torchvisions(height, width, resize):
    transforms = pytest.importorskip("torchvision.transforms")
    image = noise(height, width)
    theirs = transforms.CenterCrop(31)(transforms.Resize(resize)(image))
    ours = resize_and_crop(image, Preprocess(resize=resize, crop=31))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_exact_resize_is_height_then_width():
    assert resize_and_crop(noise(9, 9), Preprocess(resize=(4, 8))).size == (8, 4)


def test_crop_larger_than_the_image():
    with pytest.raises(DataError, match="smaller than the crop") as caught:
        preprocess_image(noise(10, 20), Preprocess(crop=(11, 5)))
    assert "10x20" in str(caught.value)


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    pixels = np.asarray(to_mode(image, Preprocess()))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert abs(int(pixels[0, 1, 0]) - 127) <= 1


def test_palette_with_transparent_entry():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 0
    pixels = np.asarray(to_mode(image, Preprocess()))
    assert pixels.reshape(-1, 3).tolist() == [[255, 255, 255], [10, 20, 30]]


def test_sixteen_bit_grey_keeps_its_range():
    image = Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16))
    assert np.asarray(to_mode(image, Preprocess(color="L"))).tolist() == [[0, 1, 128, 255]]
    assert np.asarray(to_mode(image, Preprocess()))[0, 2].tolist() == [128, 128, 128]


def test_float_pixels_have_no_range():
    with pytest.raises(DataError, match="no defined value range"):
        to_mode(Image.fromarray(np.ones((2, 2), np.float32)), Preprocess())


def test_to_array_after_augmentation_equals_the_whole():
    image, p = noise(40, 50), Preprocess(resize=32, crop=24, mean=[0.5], std=[0.5])
    np.testing.assert_array_equal(
        to_array(resize_and_crop(image, p), p), preprocess_image(image, p)
    )


@pytest.mark.parametrize(
    ("p", "shape"),
    [
        (Preprocess(resize=8, crop=(4, 5)), (3, 4, 5)),
        (Preprocess(resize=(6, 7), layout="NHWC"), (6, 7, 3)),
        (Preprocess(resize=8, color="L"), (1, None, None)),
    ],
)
def test_output_shape_tells_what_comes_out(p, shape):
    assert output_shape(p) == shape
    actual = preprocess_image(noise(9, 20), p).shape
    assert all(told in (None, real) for told, real in zip(shape, actual, strict=True))


def test_no_warnings_on_any_mode():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"):
            assert to_mode(Image.new(mode, (3, 2)), Preprocess()).mode == "RGB"
