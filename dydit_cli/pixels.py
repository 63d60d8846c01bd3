"""Samples as pictures: single PNGs and a grid of them; of videos strips of their frames, and GIFs that move."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.files import atomic_file

SMALL, ENLARGED = 64, 64

MARGIN = 2

FRAME_MS = 125  # a frame of a GIF is shown


def to_pixels(samples: NDArray[np.float32]) -> NDArray[np.uint8]:
    """... C S S in [-1, 1] to ... S S C, 0 to 255; C is 1 or 3."""
    return np.moveaxis(((samples.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8), -3, -1)


def picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """One image S S C, its pixels enlarged to squares where it is under 64 pixels a side."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if image.width < SMALL:
        image = image.resize((image.width * (ENLARGED // image.width),) * 2, Image.Resampling.NEAREST)
    return image


def make_grid(pictures: list[Image.Image], columns: int | None = None) -> Image.Image:
    """Rows of pictures on white, about as wide as high."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = (side + MARGIN for side in pictures[0].size)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    for i, image in enumerate(pictures):
        row, column = divmod(i, columns)
        sheet.paste(image.convert("RGB"), (MARGIN + column * width, MARGIN + row * height))
    return sheet


def strip(frames: NDArray[Any]) -> NDArray[Any]:
    """F S S C to S F*S C: the frames of a video from left to right."""
    return np.concatenate(list(frames), axis=1)


def save_gif(frames: list[Image.Image], path: str | Path) -> None:
    """Writes the frames of a video atomically, to be shown again and again."""
    with atomic_file(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)


def save_png(image: Image.Image, path: str | Path) -> None:
    """Writes `image` atomically."""
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
