"""Samples as pictures: single PNGs and a grid of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.files import atomic_file

SMALL, ENLARGED = 64, 64

MARGIN = 2


def to_pixels(samples: NDArray[np.float32]) -> NDArray[np.uint8]:
    """M C S S in [-1, 1] to M S S C, 0 to 255; C is 1 or 3."""
    return ((samples.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)


def picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """One image S S C, its pixels enlarged to squares where it is under 64 pixels a side."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if image.width < SMALL:
        image = image.resize((image.width * (ENLARGED // image.width),) * 2, Image.Resampling.NEAREST)
    return image


def make_grid(pictures: list[Image.Image], columns: int | None = None) -> Image.Image:
    """Rows of pictures on white, about as wide as high."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows, side = math.ceil(len(pictures) / columns), pictures[0].width + MARGIN
    sheet = Image.new("RGB", (columns * side + MARGIN, rows * side + MARGIN), "white")
    for i, image in enumerate(pictures):
        row, column = divmod(i, columns)
        sheet.paste(image.convert("RGB"), (MARGIN + column * side, MARGIN + row * side))
    return sheet


def save_png(image: Image.Image, path: str | Path) -> None:
    """Writes `image` atomically."""
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
