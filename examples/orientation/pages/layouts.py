"""What is printed on a page: articles, lists, invoices, forms, slides and the like.

Every layout fills a `Sheet`, which is upright, flat and clean; `camera` does the rest. The middle
of a sheet always carries text, because the model only looks at a square cut from it.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from pages.fonts import FAMILIES, font, glyph_width
from pages.vocabulary import LANGUAGES, Split, Writer

Colour = tuple[int, int, int]


@dataclass
class Sheet:
    """An upright page while it is being filled from the top.

    Attributes:
        image: The page, mode RGB.
        rng: Source of every choice.
        writer: Source of every text.
        family: Font family of the text.
        size: Height of the text in pixels.
        leading: Distance of the lines in text heights.
        ink: Colour of the text.
        accent: Colour of headings, rules and drawings.
        left, right, bottom: Edges of the area to fill, in pixels.
        y: Where the next thing goes.
    """

    image: Image.Image
    rng: Random
    writer: Writer
    family: str
    size: int
    leading: float
    ink: Colour
    accent: Colour
    left: float
    right: float
    bottom: float
    y: float

    def __post_init__(self) -> None:
        self.draw = ImageDraw.Draw(self.image)

    @property
    def step(self) -> float:
        """Distance from line to line in pixels."""
        return self.size * self.leading

    @property
    def full(self) -> bool:
        """Whether no further line fits."""
        return self.y + self.step > self.bottom

    def write(self, x: float, text: str, *, style: str = "regular", scale: float = 1.0) -> None:
        """Write one line at `x` without moving on."""
        face = font(self.family, style, round(self.size * scale))
        ink = self.ink if style == "regular" else self.accent
        self.draw.text((x, self.y), text, fill=ink, font=face)

    def write_right(self, x: float, text: str, *, style: str = "regular") -> None:
        """Write one line that ends at `x` without moving on."""
        self.write(x - font(self.family, style, self.size).getlength(text), text, style=style)

    def heading(self, scale: float, text: str | None = None) -> None:
        """Write a heading, `scale` times as high as the text, and move on."""
        style = self.rng.choice(("bold", "bold", "italic"))
        text = text or self.writer.title()
        length = font(self.family, style, round(self.size * scale)).getlength(text)
        for line in _wrap(text, len(text) / length * (self.right - self.left)):
            self.write(self.left, line, style=style, scale=scale)
            self.y += self.size * scale * 1.2
        self.y += self.step * 0.3

    def paragraph(self, lines: int, *, left: float | None = None) -> None:
        """Write about `lines` lines of prose, as far as they fit, and move on."""
        left = self.left if left is None else left
        columns = (self.right - left) / glyph_width(self.family, self.size)
        for line in _wrap(self.writer.prose(round(columns * (lines - 0.5))), columns):
            if self.full:
                return
            self.write(left, line)
            self.y += self.step

    def rule(self, *, colour: Colour | None = None) -> None:
        """Draw a thin rule across the area and move on by a third of a line."""
        y = round(self.y)
        self.draw.line((self.left, y, self.right, y), fill=colour or self.accent)
        self.y += self.step * 0.3


def _wrap(text: str, columns: float) -> list[str]:
    """Break a text into lines of at most `columns` characters."""
    return textwrap.wrap(text, max(8, int(columns)))


def article(sheet: Sheet) -> None:
    """A title and paragraphs, some with headings."""
    if sheet.rng.random() < 0.7:
        sheet.heading(sheet.rng.uniform(1.3, 2.2))
    while not sheet.full:
        if sheet.rng.random() < 0.25:
            sheet.heading(1.2)
        sheet.paragraph(sheet.rng.randint(2, 9))
        sheet.y += sheet.step * sheet.rng.uniform(0.2, 0.9)


def columns(sheet: Sheet) -> None:
    """Two or three newspaper columns under one title."""
    sheet.heading(sheet.rng.uniform(1.4, 2.4))
    count, gap = sheet.rng.choice((2, 2, 3)), sheet.size
    left, top, width = sheet.left, sheet.y, (sheet.right - sheet.left + gap) / count
    for column in range(count):
        sheet.left, sheet.y = left + column * width, top
        sheet.right = sheet.left + width - gap
        while not sheet.full:
            sheet.paragraph(sheet.rng.randint(3, 12))
            sheet.y += sheet.step * 0.5


def listing(sheet: Sheet) -> None:
    """A list with bullets, numbers or boxes."""
    sheet.heading(sheet.rng.uniform(1.2, 2.0))
    mark = sheet.rng.choice(("•", "-", "☐", "{}.", "{})", "§{}"))
    indent = sheet.left + sheet.size * sheet.rng.uniform(1.8, 2.6)
    number = 1
    while not sheet.full:
        sheet.write(sheet.left, mark.format(number))
        sheet.paragraph(sheet.rng.randint(1, 3), left=indent)
        sheet.y += sheet.step * 0.25
        number += 1


def invoice(sheet: Sheet) -> None:
    """Address and date, then a table of items with amounts and a total."""
    for _ in range(sheet.rng.randint(2, 4)):
        sheet.write(sheet.left, sheet.writer.phrase(2))
        sheet.y += sheet.step
    sheet.write_right(sheet.right, sheet.writer.date())
    sheet.y += sheet.step * 1.5
    sheet.heading(1.4, f"{sheet.writer.phrase(1)} {sheet.rng.randint(100, 99999)}")
    lined = sheet.rng.random() < 0.5
    while sheet.y + 3 * sheet.step < sheet.bottom:
        sheet.write(sheet.left, f"{sheet.rng.randint(1, 20)}  {sheet.writer.phrase(2)}")
        sheet.write_right(sheet.right, sheet.writer.amount())
        sheet.y += sheet.step
        if lined:
            sheet.rule()
    sheet.rule()
    sheet.write(sheet.left, sheet.writer.phrase(1), style="bold")
    sheet.write_right(sheet.right, sheet.writer.amount(), style="bold")


def table(sheet: Sheet) -> None:
    """A grid of words and numbers under a row of headings."""
    if sheet.rng.random() < 0.6:
        sheet.heading(1.3)
    count = sheet.rng.randint(2, max(2, min(5, int((sheet.right - sheet.left) / sheet.size / 7))))
    width = (sheet.right - sheet.left) / count
    numeric = [column > 0 and sheet.rng.random() < 0.5 for column in range(count)]
    top, style, pad = sheet.y, "bold", sheet.size * 0.3
    while not sheet.full:
        sheet.rule()
        for column in range(count):
            edge = sheet.left + column * width
            if numeric[column] and style == "regular":
                sheet.write_right(edge + width - pad, sheet.writer.amount())
            else:
                text = sheet.writer.phrase(1)[: int(width / sheet.size * 1.4)]
                sheet.write(edge + pad, text, style=style)
        sheet.y += sheet.step
        style = "regular"
    sheet.rule()
    if sheet.rng.random() < 0.5:
        for column in range(count + 1):
            x = sheet.left + column * width
            sheet.draw.line((x, top, x, sheet.y - sheet.step * 0.3), fill=sheet.accent)


def form(sheet: Sheet) -> None:
    """Labels with lines or boxes to fill in; some are filled in."""
    sheet.heading(1.5)
    boxed = sheet.rng.random() < 0.5
    middle = sheet.left + (sheet.right - sheet.left) * sheet.rng.uniform(0.35, 0.5)
    while sheet.y + 2 * sheet.step < sheet.bottom:
        sheet.write(sheet.left, sheet.writer.phrase(sheet.rng.randint(1, 2)) + ":")
        if sheet.rng.random() < 0.6:
            sheet.write(middle + 3, sheet.writer.phrase(1), style="italic")
        low = sheet.y + sheet.size * 1.3
        if boxed:
            sheet.draw.rectangle((middle, sheet.y - 1, sheet.right, low), outline=sheet.accent)
        else:
            sheet.draw.line((middle, low, sheet.right, low), fill=sheet.accent)
        sheet.y += sheet.step * 1.5
    sheet.paragraph(2)


def slide(sheet: Sheet) -> None:
    """A few large lines around the middle and otherwise nothing."""
    sheet.size = round(sheet.size * sheet.rng.uniform(1.3, 2.0))
    sheet.y = sheet.bottom * sheet.rng.uniform(0.3, 0.42)
    sheet.heading(1.5, sheet.writer.phrase(sheet.rng.randint(2, 3)))
    for _ in range(sheet.rng.randint(1, 4)):
        sheet.write(sheet.left, sheet.writer.phrase(sheet.rng.randint(2, 4)))
        sheet.y += sheet.step * 1.2


def note(sheet: Sheet) -> None:
    """Two to four short lines in the middle of an empty page."""
    sheet.y = sheet.bottom * sheet.rng.uniform(0.4, 0.52)
    sheet.left += (sheet.right - sheet.left) * sheet.rng.uniform(0.0, 0.2)
    for _ in range(sheet.rng.randint(2, 4)):
        sheet.write(sheet.left, sheet.writer.phrase(sheet.rng.randint(2, 3)))
        sheet.y += sheet.step


def figure(sheet: Sheet) -> None:
    """A chart or a picture with a caption, and text around it."""
    sheet.heading(1.4)
    room = sheet.bottom - sheet.y
    if sheet.rng.random() < 0.6:
        sheet.paragraph(int(room / sheet.step / 4))
    bottom = sheet.y + sheet.size + room * sheet.rng.uniform(0.2, 0.35)
    box = (sheet.left, sheet.y + sheet.size, sheet.right, bottom)
    if sheet.rng.random() < 0.5:
        _chart(sheet, box)
    else:
        _picture(sheet, box)
    sheet.y = bottom + sheet.size * 0.5
    sheet.write(sheet.left + sheet.size, sheet.writer.phrase(4), style="italic", scale=0.9)
    sheet.y += sheet.step * 1.5
    while not sheet.full:
        sheet.paragraph(sheet.rng.randint(3, 6))
        sheet.y += sheet.step * 0.5


def _chart(sheet: Sheet, box: tuple[float, float, float, float]) -> None:
    """A scatter of points in a frame: it has no upright side of its own."""
    left, top, right, bottom = box
    sheet.draw.rectangle(box, outline=sheet.ink)
    for _ in range(sheet.rng.randint(8, 40)):
        x, y = sheet.rng.uniform(left, right), sheet.rng.uniform(top, bottom)
        sheet.draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=sheet.accent)


def _picture(sheet: Sheet, box: tuple[float, float, float, float]) -> None:
    """Random shapes in random colours."""
    left, top, right, bottom = box
    sheet.draw.rectangle(box, fill=_colour(sheet.rng, 120, 230))
    for _ in range(sheet.rng.randint(3, 8)):
        x, y = sheet.rng.uniform(left, right), sheet.rng.uniform(top, bottom)
        reach = min(sheet.rng.uniform(3, 25), x - left, right - x, y - top, bottom - y)
        shape = sheet.rng.choice((sheet.draw.ellipse, sheet.draw.rectangle))
        shape((x - reach, y - reach, x + reach, y + reach), fill=_colour(sheet.rng, 20, 255))


Layout = Callable[[Sheet], None]
LAYOUTS: tuple[Layout, ...] = (
    article, columns, listing, invoice, table, form, slide, note, figure,
)  # fmt: skip
_WEIGHTS = (5, 3, 3, 3, 3, 2, 2, 2, 3)


def _colour(rng: Random, low: int, high: int) -> Colour:
    """A colour with every channel in `[low, high]`."""
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _paper(rng: Random) -> Colour:
    """White, off-white or tinted."""
    if rng.random() < 0.5:
        white = rng.randint(225, 255)
        return white, white, white
    return _colour(rng, 195, 255)


def blank_sheet(rng: Random, split: Split) -> Sheet:
    """An empty page with size, margins, colours, font and language chosen."""
    short = rng.choice((256, 272, 288))
    long = round(short * rng.uniform(1.15, 1.42))
    width, height = (long, short) if rng.random() < 0.25 else (short, long)
    ink, paper = _colour(rng, 0, 90), _paper(rng)
    accent = _colour(rng, 0, 150) if rng.random() < 0.4 else ink
    if rng.random() < 0.08:
        ink, accent, paper = paper, paper, ink
    margin = short * rng.uniform(0.03, 0.12)
    return Sheet(
        image=Image.new("RGB", (width, height), paper),
        rng=rng,
        writer=Writer(rng, rng.choice(LANGUAGES), split),
        family=rng.choice(tuple(FAMILIES)),
        size=round(rng.triangular(6.5, 15, 8)),
        leading=rng.uniform(1.2, 1.6),
        ink=ink,
        accent=accent,
        left=margin,
        right=width - margin,
        bottom=height - margin,
        y=margin,
    )


def compose(rng: Random, split: Split) -> Sheet:
    """Draw one upright page."""
    sheet = blank_sheet(rng, split)
    rng.choices(LAYOUTS, _WEIGHTS)[0](sheet)
    return sheet
