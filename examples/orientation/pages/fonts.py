"""The DejaVu fonts that the matplotlib package carries.

matplotlib itself is never imported; it is the best kept Python package with these fonts.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

FAMILIES = {
    "sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf"),
    "serif": ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif-Italic.ttf"),
    "mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSansMono-Oblique.ttf"),
}
_STYLES = ("regular", "bold", "italic")


class FontsMissingError(Exception):
    """The DejaVu fonts are not there; the message says what to install."""


@lru_cache(maxsize=1)
def font_folder() -> Path:
    """The folder that holds the DejaVu fonts.

    Raises:
        FontsMissingError: matplotlib is not installed, or came without its fonts.
    """
    package = find_spec("matplotlib")
    if package is None or package.origin is None:
        raise FontsMissingError(
            "the pages are set in the DejaVu fonts of the package matplotlib, which is not "
            "installed: pip install matplotlib, or the extra `demo` of onnxprune"
        )
    folder = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf"
    missing = [
        name for names in FAMILIES.values() for name in names if not (folder / name).is_file()
    ]
    if missing:
        raise FontsMissingError(
            f"{folder} lacks {', '.join(missing)}: pip install --force-reinstall matplotlib"
        )
    return folder


@lru_cache(maxsize=512)
def font(family: str, style: str, size_px: int) -> ImageFont.FreeTypeFont:
    """A font by family (`sans`, `serif`, `mono`), style (`regular`, `bold`, `italic`) and size."""
    path = font_folder() / FAMILIES[family][_STYLES.index(style)]
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=512)
def glyph_width(family: str, size_px: int) -> float:
    """The usual width of a character of running text, in pixels."""
    sample = "Пример текста, ein Beispiel, texte simple, απλό κείμενο"
    return font(family, "regular", size_px).getlength(sample) / len(sample)
