"""The same seeds through several models (figure 4 of the DyDiT paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dydit_cli.artifacts.samples import SOLVED
from dydit_cli.artifacts.study import SAMPLES_FILE, TABLE_FILE
from dydit_cli.figures.base import TooLittleError, figure
from dydit_cli.figures.style import bare, new_figure
from dydit_cli.figures.tradeoff import STYLES, row_label, style_of
from dydit_cli.pixels import make_grid, picture, to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from dydit_cli.artifacts.samples import SampleFolder
    from dydit_cli.artifacts.study import StudyTable

SHOWN = 10  # pictures in a row

# what must be the same for images to belong together
SAME = ("seed", "classes", "sampler", "steps", "cfg", "cfg_channels", "cfg_interval", "spacing", *SOLVED, "vae")

HALF = 0.5


@dataclass(frozen=True)
class SampleRow:
    """One model's samples: each S S C uint8, C of 1 or 3. `ratio` is its MACs over the static model's, None where that is
    not known."""

    label: str
    pixels: Sequence[NDArray[np.uint8]]
    ratio: float | None = None


@dataclass(frozen=True)
class SampleRows:
    """Rows whose images belong together column by column: `indices` says which of their files' images these are, `classes`
    of which classes where that is known, `note` how they were drawn."""

    rows: list[SampleRow]
    indices: list[int]
    classes: list[int] | None
    note: str


def rows_of(sources: Sequence[SampleFolder | StudyTable]) -> SampleRows:
    """A study's samples where a study alone is given; else a row for each folder of `dydit sample`.

    Raises `DyditError` for a study among others, and for folders whose images were not drawn alike.
    """
    studies = [source for source in sources if source.kind == "study"]
    if studies and len(sources) > 1:
        raise TooLittleError("the samples figure is drawn of one study, or of several folders of samples; name the study alone")
    return rows_of_study(studies[0]) if studies else rows_of_folders(sources)  # type: ignore[arg-type]


def rows_of_folders(folders: Sequence[SampleFolder]) -> SampleRows:
    """A row for each folder of `dydit sample`."""
    first = folders[0]
    for other in folders[1:]:
        for name in SAME:
            if other.record.get(name) != first.record.get(name):
                raise TooLittleError(
                    f"{other.folder}: drawn with {name} {other.record.get(name)}, {first.folder} with "
                    f"{first.record.get(name)}; sample both with the same settings"
                )
    pixels = [folder.first(SHOWN) for folder in folders]
    for folder, own in zip(folders, pixels, strict=True):
        if not own:
            raise TooLittleError(f"{folder.folder}: holds no images of dydit sample (00000-class0.png, ...); sample again")
    indices = list(range(min(map(len, pixels))))
    labels = [first.label(i) for i in indices]
    names = [Path(str(folder.record.get("checkpoint", folder.folder))).name for folder in folders]
    record = first.record
    return SampleRows(
        # of one checkpoint drawn in two ways the folders' names tell which is which
        [
            SampleRow(folder.folder.name if names.count(name) > 1 else name, own)
            for folder, name, own in zip(folders, names, pixels, strict=True)
        ],
        indices,
        [label for label in labels if label is not None] or None,
        f"{record['sampler']}, {record['steps']} steps, cfg {record['cfg']:g}, seed {record['seed']}",
    )


def rows_of_study(study: StudyTable) -> SampleRows:
    """The static models, and of each method the samples whose MACs are nearest to those of one DyDiT: the one that is nearest
    to half of the static MACs."""
    kept = study.samples()
    if not kept:
        raise TooLittleError(f"{study.folder}: this study kept no samples: it has no {SAMPLES_FILE}; keep some in its recipe")
    rows, static = study.rows, study.rows.loc[study.rows["method"] == "static"]
    # fewer steps are another way to do less, of the static model: what counts is a whole image's MACs
    rows = pd.concat([study.alike, rows[[style_of(method).hurries for method in rows["method"]]]])
    if "macs_per_image" in rows.columns and len(static):
        rows = rows.assign(ratio=rows["macs_per_image"] / static["macs_per_image"].mean())
    means = rows.groupby(["method", "target"], dropna=False, sort=False)["ratio"].mean().reset_index()
    means["name"] = [samples_name(str(line["method"]), line["target"]) for line in means.to_dict("records")]
    means = means[means["name"].isin(list(kept))]
    if means.empty:
        raise TooLittleError(f"{study.folder / SAMPLES_FILE}: holds none of the rows of {TABLE_FILE}; run the study again")
    dynamic = means.loc[means["method"] == "dydit", "ratio"]
    wanted = min(dynamic, key=lambda ratio: abs(ratio - HALF), default=HALF)
    order = [*STYLES, *means["method"]]
    nearest = (
        means.assign(distance=(means["ratio"] - wanted).abs(), rank=means["method"].map(lambda method: order.index(method)))
        .sort_values(["rank", "distance"], kind="stable")
        .drop_duplicates("method")
    )
    classes = study.protocol.get("classes")
    classes = classes if isinstance(classes, list) and classes else None
    indices = spread(min(len(kept[name]) for name in nearest["name"]), len(classes or ()))
    return SampleRows(
        [
            SampleRow(row_label(line["method"], line["target"]), list(kept[line["name"]][indices]), line["ratio"])
            for line in nearest.to_dict("records")
        ],
        indices,
        [int(classes[i % len(classes)]) for i in indices] if classes else None,
        study_note(study),
    )


def samples_name(method: str, target: float) -> str:
    """What a study calls the samples of a method and target."""
    return method if style_of(method).whole or math.isnan(target) else f"{method}-{target:g}"


def spread(images: int, classes: int) -> list[int]:
    """Which of `images` that go through the classes in turn are shown: from all over the classes where there are many."""
    shown, among = min(SHOWN, images), min(images, classes)
    return [i * among // shown for i in range(shown)] if among > shown else list(range(shown))


def study_note(study: StudyTable) -> str:
    """How a study's samples were drawn."""
    protocol = study.protocol
    if not {"sampler", "steps", "cfg"} <= protocol.keys():
        return ""
    seed = f", seed {study.rows['seed'].iloc[0]}"
    return f"{protocol['sampler']}, {protocol['steps']} steps, cfg {protocol['cfg']:g}{seed}"


COLUMNS, ROWS = 10, 4

GAP, TITLE_HEIGHT = 24, 30


def samples_table(sources: Sequence[SampleFolder | StudyTable]) -> pd.DataFrame:
    """One row a picture, in the figure's order; its pixels stay in the file that it was read from, as number `image`."""
    samples = rows_of(sources)
    count, rows = len(samples.indices), samples.rows
    classes: Sequence[float] = samples.classes or [math.nan] * count
    return pd.DataFrame(
        {
            "model": [row.label for row in rows for _ in range(count)],
            "ratio_of_static": [math.nan if row.ratio is None else row.ratio for row in rows for _ in range(count)],
            "image": samples.indices * len(rows),
            "class": [*classes] * len(rows),
        }
    )


@figure(
    "samples",
    "study",
    "samples",
    title="The same seeds through each model",
    caption="Each column is one noise and class, each row a model; of a study's methods those that need about the same MACs.",
    table=samples_table,
    several=True,
    order=1,
)
def draw_samples(sources: Sequence[SampleFolder | StudyTable]) -> Figure:
    """A row for each model under its name and MACs, a column for each seed and class, at most 10."""
    samples = rows_of(sources)
    count = len(samples.indices)
    figure = new_figure(2.0 + 0.72 * count, 0.75 + 0.74 * len(samples.rows), gap=0.0)
    axes = figure.subplots(len(samples.rows), count, squeeze=False)
    for row, sample in zip(axes, samples.rows, strict=True):
        for ax, pixels in zip(row, sample.pixels, strict=False):
            grey = pixels.shape[-1] == 1
            ax.imshow(pixels[..., 0] if grey else pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            bare(ax)
        macs = "" if sample.ratio is None else f"\n{sample.ratio:.2f} of the MACs"
        row[0].set_ylabel(sample.label + macs, rotation=0, ha="right", va="center", fontsize=8)
    for ax, label in zip(axes[0], samples.classes or (), strict=False):
        ax.set_title(f"class {label}", fontsize=8)
    figure.suptitle("The same noise through each model" + (f": {samples.note}" if samples.note else ""), fontsize=9)
    return figure


def side_by_side(samples: dict[str, Tensor]) -> Image.Image:
    """A titled grid for each model; the grids show the same seeds and classes, cell by cell. Values: M C S S in [-1, 1]."""
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
