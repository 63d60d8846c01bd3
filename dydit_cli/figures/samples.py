"""The same seeds through several models, side by side (figure 4 of the DyDiT paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from dydit_cli.figures.grid import make_grid, picture, to_pixels

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS, ROWS = 10, 4
GAP, TITLE_HEIGHT = 24, 30


def side_by_side(samples: dict[str, Tensor]) -> Image.Image:
    """A titled grid for each model; place by place the grids show the same seed and class. Values: M C S S in [-1, 1]."""
    grids = {
        title: make_grid([picture(image) for image in to_pixels(images[: COLUMNS * ROWS].numpy())], COLUMNS)
        for title, images in samples.items()
    }
    width = sum(grid.width for grid in grids.values()) + GAP * (len(grids) - 1)
    sheet = Image.new("RGB", (width, max(grid.height for grid in grids.values()) + TITLE_HEIGHT), "white")
    left = 0
    for title, grid in grids.items():
        ImageDraw.Draw(sheet).text((left + 2, 4), title, fill="black", font=ImageFont.load_default(size=18))
        sheet.paste(grid, (left, TITLE_HEIGHT))
        left += grid.width + GAP
    return sheet
