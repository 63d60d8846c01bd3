"""The same seeds through several models (figure 4 of the DyDiT paper)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dydit_cli.artifacts.samples import ARRAY_FILE, SHOWN, read_arrays, read_pixels, read_record
from dydit_cli.figures.style import new_figure
from dydit_cli.pixels import make_grid, picture, to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor
from collections.abc import Sequence
from pathlib import Path

from dydit_cli.artifacts.study import TABLE_FILE, WHOLE, StudyTable, read_study
from dydit_cli.errors import DyditError
from dydit_cli.figures.tradeoff import LOOKS, row_label

# what must be the same for images to belong together
SAME = ("seed", "classes", "sampler", "steps", "cfg", "cfg_channels", "cfg_interval", "spacing", "vae")

HALF = 0.5


def read_rows(paths: Sequence[Path]) -> SampleRows:
    """A study's samples where one folder with a study is named; else a row for each folder of `dydit sample`.

    Raises `DyditError` for what is neither, and for folders whose images were not drawn alike.
    """
    if len(paths) == 1 and (paths[0] / TABLE_FILE).is_file():
        return of_study(paths[0])
    records = [read_record(path) for path in paths]
    for path, record in zip(paths[1:], records[1:], strict=True):
        for name in SAME:
            if record.get(name) != records[0].get(name):
                raise DyditError(
                    f"{path}: drawn with {name} {record.get(name)}, {paths[0]} with {records[0].get(name)}; "
                    "sample both with the same settings"
                )
    first, count = records[0], min(int(record.get("images", SHOWN)) for record in records)
    classes = first.get("classes") or None
    names = [Path(str(record.get("checkpoint", path.name))).name for path, record in zip(paths, records, strict=True)]
    # of one checkpoint drawn in two ways the folders' names tell which is which
    labels = [path.name if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    return SampleRows(
        [SampleRow(label, read_pixels(path)) for path, label in zip(paths, labels, strict=True)],
        [int(classes[i % len(classes)]) for i in range(count)] if classes else None,
        f"{first['sampler']}, {first['steps']} steps, cfg {first['cfg']:g}, seed {first['seed']}",
    )


@dataclass(frozen=True)
class Kind:
    """What a study has a row of for every seed."""

    method: str
    target: float
    ratio: float

    @property
    def name(self) -> str:
        """What the study calls its samples."""
        return self.method if self.method in WHOLE or math.isnan(self.target) else f"{self.method}-{self.target:g}"


def of_study(folder: Path) -> SampleRows:
    """The static models, and of each method the samples nearest to half of the static MACs, or to the DyDiT that is."""
    study = read_study(folder)
    if not (folder / ARRAY_FILE).is_file():
        raise DyditError(f"{folder}: this study kept no samples: it has no {ARRAY_FILE}; keep some in its recipe")
    kept = dict(read_arrays(folder / ARRAY_FILE))
    means = study.rows.groupby(["method", "target"], dropna=False, sort=False)["ratio"].mean().reset_index()
    kinds = [Kind(line["method"], line["target"], line["ratio"]) for line in means.to_dict("records")]
    kinds = [kind for kind in kinds if kind.name in kept]
    if not kinds:
        raise DyditError(f"{folder / ARRAY_FILE}: holds none of the rows of {TABLE_FILE}; run the study again")
    classes = study.protocol.get("classes")
    classes = classes if isinstance(classes, list) and classes else None
    kinds = alike(kinds)
    places = spread(min(len(kept[kind.name]) for kind in kinds), len(classes or ()))
    return SampleRows(
        [SampleRow(row_label(kind.method, kind.target), kept[kind.name][places], kind.ratio) for kind in kinds],
        [int(classes[i % len(classes)]) for i in places] if classes else None,
        study_note(study),
        places,
    )


def spread(images: int, classes: int) -> list[int]:
    """Which of `images` that go through the classes in turn are shown: from all over the classes where there are many."""
    shown, among = min(SHOWN, images), min(images, classes)
    return [i * among // shown for i in range(shown)] if among > shown else list(range(shown))


def alike(kinds: list[Kind]) -> list[Kind]:
    """One target of each method, in the order of `LOOKS`: those whose MACs are nearest to one DyDiT's."""
    wanted = min((kind.ratio for kind in kinds if kind.method == "dydit"), key=lambda ratio: abs(ratio - HALF), default=HALF)
    order = [*LOOKS, *(kind.method for kind in kinds)]
    methods = sorted({kind.method for kind in kinds}, key=order.index)
    of_each = ([kind for kind in kinds if kind.method == method] for method in methods)
    return [min(targets, key=lambda kind: abs(kind.ratio - wanted)) for targets in of_each]


def study_note(study: StudyTable) -> str:
    """How a study's samples were drawn."""
    protocol = study.protocol
    if not {"sampler", "steps", "cfg"} <= protocol.keys():
        return ""
    seed = f", seed {study.rows['seed'].iloc[0]}"
    return f"{protocol['sampler']}, {protocol['steps']} steps, cfg {protocol['cfg']:g}{seed}"


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
