"""What scanner and camera do to a page: skew, crop, uneven light, blur, fading and noise.

Nothing here prefers a direction, so no defect tells how a page was turned.
"""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class Shot:
    """One way to take a picture of a page.

    Attributes:
        skew_deg: Rotation of the page, counter-clockwise, in degrees.
        zoom: Size of the page in the picture; above 1 the page's edges are cut off.
        shift: Displacement of the page, as a share of what zooming cut off, in `[-1, 1]`.
        perspective: Displacement of each corner as a share of the page, eight numbers.
        background: Grey level around the page.
        shadow: 4 by 4 grid of light, 1 is full light; empty means even light.
        low_resolution: Factor by which resolution was lost.
        blur_px: Radius of the blur, horizontal and vertical.
        fade: Share of the contrast that is lost.
        noise: Standard deviation of the noise in grey levels.
        noise_seed: Seed of the noise.
    """

    skew_deg: float
    zoom: float
    shift: tuple[float, float]
    perspective: tuple[float, ...]
    background: int
    shadow: tuple[float, ...]
    low_resolution: float
    blur_px: tuple[float, float]
    fade: float
    noise: float
    noise_seed: int

    @classmethod
    def random(cls, rng: Random, text_px: int) -> "Shot":
        """A scan three times in five, otherwise a photograph.

        Sharpness is lost in proportion to the height of the text, and noise is weak where there
        is little contrast, so that people can still tell how the page stands.
        """
        photo = rng.random() < 0.4
        bend = 0.05 if photo else 0.0
        darkest = rng.uniform(0.35, 0.9)
        shadowed = rng.random() < (0.8 if photo else 0.2)
        blur = text_px * rng.uniform(0.02, 0.15) if rng.random() < 0.5 else 0.0
        streak = blur * rng.uniform(0.3, 1.0)
        fade = rng.uniform(0.2, 0.75) if rng.random() < 0.3 else 0.0
        return cls(
            skew_deg=rng.uniform(-3.0, 3.0),
            zoom=rng.uniform(0.9, 1.25),
            shift=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
            perspective=tuple(rng.uniform(-bend, bend) for _ in range(8)),
            background=rng.randint(20, 255),
            shadow=tuple(rng.uniform(darkest, 1) for _ in range(16)) if shadowed else (),
            low_resolution=text_px * rng.uniform(0.13, 0.24) if rng.random() < 0.2 else 1.0,
            blur_px=(blur, streak) if rng.random() < 0.5 else (streak, blur),
            fade=fade,
            noise=rng.uniform(2, 20) * (1 - 0.8 * fade) if rng.random() < 0.6 else 0.0,
            noise_seed=rng.getrandbits(63),
        )


def photograph(page: Image.Image, shot: Shot) -> Image.Image:
    """The page as `shot` shows it: same size and mode (RGB), still upright."""
    picture = _warp(page, shot)
    if shot.low_resolution > 1.0:
        width, height = (round(side / shot.low_resolution) for side in page.size)
        picture = picture.resize((width, height)).resize(page.size)
    if max(shot.blur_px) > 0.0:
        picture = picture.filter(ImageFilter.GaussianBlur(shot.blur_px))
    return _expose(picture, shot)


def _corners(width: float, height: float) -> np.ndarray:
    """The corners of a page around its middle, `(4, 2)`."""
    return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2, height / 2)


def _warp(page: Image.Image, shot: Shot) -> Image.Image:
    """Skew, zoom, shift and bend the page with one transform."""
    size = np.array(page.size, dtype=float)
    picture = _corners(*page.size)
    angle = math.radians(shot.skew_deg)
    turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    spare = size / 2 * abs(1 - 1 / shot.zoom)
    bend = np.reshape(shot.perspective, (4, 2)) * size
    source = picture / shot.zoom @ turn + bend + spare * shot.shift
    background = (shot.background,) * 3
    return page.transform(
        page.size,
        Image.Transform.PERSPECTIVE,
        _perspective(picture + size / 2, source + size / 2).tolist(),
        resample=Image.Resampling.BILINEAR,
        fillcolor=background,
    )


def _perspective(picture: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The eight coefficients that map the points `picture` to `source`, both `(4, 2)`."""
    rows, values = [], []
    for (x, y), (u, v) in zip(picture, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values))


def _expose(picture: Image.Image, shot: Shot) -> Image.Image:
    """Apply light, fading and noise."""
    pixels = np.asarray(picture, dtype=np.float32)
    height, width = pixels.shape[:2]
    if shot.shadow:
        grid = Image.fromarray(np.reshape(shot.shadow, (4, 4)).astype(np.float32))
        light = grid.resize((width, height), Image.Resampling.BICUBIC)
        pixels = pixels * np.asarray(light)[..., None]
    if shot.fade:
        pixels = pixels + (pixels.mean() - pixels) * np.float32(shot.fade)
    if shot.noise:
        noise = np.random.default_rng(shot.noise_seed)
        grain = noise.standard_normal((height, width, 1), dtype=np.float32)
        pixels = pixels + grain * np.float32(shot.noise)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
