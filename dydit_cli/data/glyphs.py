"""The letters and digits of the fonts that come with matplotlib: 62 classes of real shapes, drawn here, nothing downloaded.

Each glyph of each font is drawn several times, at another size and place, slightly turned and slanted. All stand on one
baseline, so that case is told by height and place, as in print: `s` is lower than `S`. What stays alike (`I` and `l` of a
sans serif, `O` and `0` of some) is the set's difficulty.

Lengths are in pixels of the finished 16x16 image unless said otherwise; y runs downwards.
"""

from __future__ import annotations

import importlib.util
import math
import string
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dydit_cli.data.dataset import ImageData
from dydit_cli.data.registry import SupportVectors, dataset
from dydit_cli.errors import DyditError

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase  # class 0 is `0`, 10 is `A`, 36 is `a`

# the fonts of single sizes and symbols (display, STIXSiz*, STIXNonUni, cmsy, cmex) lack letters
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmtt10", "cmti10",
)  # fmt: skip

SIDE = 16

DRAWS, HELD_OUT_DRAWS = 6, 2  # of each glyph of each font

FINE = 4  # a glyph is drawn on a canvas so many times finer, then averaged

CAPITAL = (9.0, 10.2)  # the height of H

TURN, SLANT = 4.0, 0.08  # degrees, and x per y, either way

MOVE = 0.6  # either way

MARGIN = 0.5  # ink stays this far from the edge

ASCENT, DESCENT = 1.05, 0.33  # of a line, in heights of H: what the baseline's place follows from


# 32 components of 256 pixels lose nothing in accuracy, and each of thousands of support vectors costs an eighth
@dataset("glyphs", classifier=SupportVectors(c=10.0, gamma=0.02, components=32))
@lru_cache(maxsize=2)
def load_glyphs_split(held_out: bool = False) -> ImageData:
    """16x16 images in [-1, 1], ink at 1, drawn in some seconds: 7,812 to train on, or the 2,604 that are held out.

    The held-out ones are other draws of the same glyphs, so that both parts have one distribution, as a Fréchet distance
    wants it; what is right about them says nothing of other fonts. The same versions of Pillow and the fonts give the
    same bits. They are never mirrored: a mirrored `b` is a `d`. Raises `DyditError` where a font is missing.
    """
    draws = slice(DRAWS, DRAWS + HELD_OUT_DRAWS) if held_out else slice(DRAWS)
    # font, character, draw, and five numbers from -1 to 1: size, turn, slant, and the place
    chance = np.random.default_rng(0).uniform(-1, 1, (len(FONTS), len(CHARACTERS), DRAWS + HELD_OUT_DRAWS, 5))
    images = np.stack(
        [
            draw(glyph, numbers)
            for font, of_font in zip(FONTS, chance[:, :, draws], strict=True)
            for glyph, of_glyph in zip(_glyphs(font), of_font, strict=True)
            for numbers in of_glyph
        ]
    )
    labels = torch.arange(len(CHARACTERS)).repeat_interleave(images.shape[0] // (len(FONTS) * len(CHARACTERS)))
    pixels = torch.from_numpy(images).float().div(127.5).sub(1).unsqueeze(1)  # M 1 16 16
    return ImageData("glyphs", pixels, labels.repeat(len(FONTS)), len(CHARACTERS), tuple(CHARACTERS))


class Glyph:
    """One character of one font, large. `ink` is its box in `image`; `capital` the height of H and `baseline` the y of
    the line, both in pixels of `image`."""

    def __init__(self, font: ImageFont.FreeTypeFont, character: str, capital: float) -> None:
        em = int(font.size)
        self.image = Image.new("L", (3 * em, 3 * em))
        ImageDraw.Draw(self.image).text((em, 2 * em), character, fill=255, font=font, anchor="ls")
        box = self.image.getbbox()
        if box is None:
            raise DyditError(f"font {font.getname()[0]} has no glyph for {character!r}; install matplotlib anew")
        self.ink, self.capital, self.baseline = box, capital, float(2 * em)


def _glyphs(name: str) -> list[Glyph]:
    """All characters of one font, H being about as many fine pixels high as on the finished canvas."""
    font = _open(name, 100)
    capital = -font.getbbox("H", anchor="ls")[1] / 100  # in ems
    font = _open(name, round(CAPITAL[1] * FINE / capital))
    height = -font.getbbox("H", anchor="ls")[1]
    return [Glyph(font, character, height) for character in CHARACTERS]


def _open(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = font_folder() / f"{name}.ttf"
    try:
        # Pillow, given a name, would look for it among the system's fonts too; the other layout engine is not everywhere
        return ImageFont.truetype(BytesIO(path.read_bytes()), size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise DyditError(f"{path}: not readable as a font ({error.strerror or error}); install matplotlib anew") from None


def font_folder() -> Path:
    """Where matplotlib keeps its fonts, without loading it."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise DyditError("data set glyphs is drawn from matplotlib's fonts, and it is not there; pip install matplotlib")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


def draw(glyph: Glyph, chance: NDArray[np.float64]) -> NDArray[np.uint8]:
    """16 x 16. `chance` is five numbers from -1 to 1: size, turn, slant, and the place across and down."""
    size, turn, slant, across, down = chance.tolist()
    height = sum(CAPITAL) / 2 + size * (CAPITAL[1] - CAPITAL[0]) / 2
    angle, slope = math.radians(turn * TURN), slant * SLANT
    scale = height / glyph.capital  # finished pixels for one of the glyph's
    # turned and slanted, seen from the middle of the ink: x' = a x + b y, y' = c x + d y
    cos, sin = math.cos(angle), math.sin(angle)
    a, b, c, d = cos, -slope * cos - sin, sin, cos - slope * sin
    left, top, right, bottom = glyph.ink
    half_x, half_y = (right - left) / 2, (bottom - top) / 2
    reach_x, reach_y = abs(a) * half_x + abs(b) * half_y, abs(c) * half_x + abs(d) * half_y
    room = SIDE / 2 - MARGIN
    scale = min(scale, room / reach_x, room / reach_y)  # a wide W has to be smaller
    baseline = SIDE / 2 + (ASCENT - DESCENT) / 2 * height
    x = SIDE / 2 + across * MOVE
    y = baseline + (top + half_y - glyph.baseline) * scale + down * MOVE
    x, y = (_within(at, reach * scale) for at, reach in ((x, reach_x), (y, reach_y)))
    # Pillow takes the inverse: the point of the glyph that a point of the fine canvas shows
    a, b, c, d = (one / (scale * FINE * (a * d - b * c)) for one in (d, -b, -c, a))
    e, f = left + half_x - FINE * (a * x + b * y), top + half_y - FINE * (c * x + d * y)
    canvas = glyph.image.transform(
        (SIDE * FINE, SIDE * FINE), Image.Transform.AFFINE, (a, b, e, c, d, f), Image.Resampling.BILINEAR
    )
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX))


def _within(at: float, reach: float) -> float:
    """The middle of something that reaches so far either way, moved so that it stays on the canvas."""
    return min(max(at, MARGIN + reach), SIDE - MARGIN - reach)
