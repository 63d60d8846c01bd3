"""The same seeds through several models (figure 4 of the DyDiT paper)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dydit_cli.figures.grid import make_grid, picture, to_pixels
from dydit_cli.figures.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

SHOWN = 10
COLUMNS, ROWS = 10, 4
GAP, TITLE_HEIGHT = 24, 30


@dataclass(frozen=True)
class SampleRow:
    """One model's samples: pixels M S S C uint8, C of 1 or 3. `ratio` is its MACs over the static model's, None where
    that is not known."""

    label: str
    pixels: NDArray[np.uint8]
    ratio: float | None = None


@dataclass(frozen=True)
class SampleRows:
    """Rows whose images belong together column by column; `classes` (M) where they are known; `note` says how drawn;
    `places` (M) says where in their files they are, by default from the first on."""

    rows: list[SampleRow]
    classes: list[int] | None = None
    note: str = ""
    places: list[int] | None = None

    @property
    def shown(self) -> int:
        """How many columns there are."""
        return min(SHOWN, *(len(row.pixels) for row in self.rows))


def samples_table(samples: SampleRows) -> pd.DataFrame:
    """One row a picture, in the figure's order; its pixels stay in the file that it was read from, at place `image`."""
    count = samples.shown
    return pd.DataFrame(
        {
            "model": [row.label for row in samples.rows for _ in range(count)],
            "ratio_of_static": [math.nan if row.ratio is None else row.ratio for row in samples.rows for _ in range(count)],
            "image": (samples.places or list(range(count))) * len(samples.rows),
            "class": (samples.classes[:count] if samples.classes else [math.nan] * count) * len(samples.rows),
        }
    )


def draw_samples(samples: SampleRows) -> Figure:
    """A row for each model under its name and MACs, a column for each seed and class, at most 10."""
    table = samples_table(samples)
    count = samples.shown
    figure = new_figure(2.0 + 0.72 * count, 0.75 + 0.74 * len(samples.rows), gap=0.0)
    axes = figure.subplots(len(samples.rows), count, squeeze=False)
    for row, sample in enumerate(samples.rows):
        for column in range(count):
            pixels = sample.pixels[column]
            grey = pixels.shape[-1] == 1
            axes[row, column].imshow(pixels[..., 0] if grey else pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
            axes[row, column].spines[:].set_visible(False)
        macs = "" if sample.ratio is None else f"\n{sample.ratio:.2f} of the MACs"
        axes[row, 0].set_ylabel(sample.label + macs, rotation=0, ha="right", va="center", fontsize=8)
    if samples.classes:
        for column in range(count):
            axes[0, column].set_title(f"class {table['class'].iloc[column]}", fontsize=8)
    figure.suptitle("The same noise through each model" + (f": {samples.note}" if samples.note else ""), fontsize=9)
    return figure


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
