"""Images in a column, and beside each of them maps of its patches or tokens; of videos below each of them, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dydit_cli.figures.style import HEAT, bare, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


VIDEOS = 3  # shown at most


def draw_maps(
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    maps: NDArray[np.float64],
    titles: Sequence[str],
    notes: Sequence[Sequence[str]],
    *,
    limits: tuple[float, float],
    scale: str,
    title: str,
) -> Figure:
    """A row for each of the images (R C P P): its class, the image, then its maps (A R S S) under their `titles`, a note of
    `notes` (A lists of R) below each; colours run between the `limits`, and `scale` names what they stand for.

    Videos (R F C P P, maps A R F S S) are rows of frames, at most three of them, each with its maps below it.
    """
    video, edge = images.ndim == 5, (115 + 10 * len(scale.splitlines())) / 100
    rows, columns = len(images[:VIDEOS] if video else images), 1 + len(maps)
    if video:
        figure = new_figure(7.0, edge + rows * columns * min(0.9, 5.2 / images.shape[1]))
        axes = figure.subplots(rows * columns, 1, squeeze=False).reshape(rows, columns)
    else:
        figure = new_figure(max(4.6, 0.9 + 0.82 * columns), edge + 0.92 * rows)
        axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        first, *others = axes[row]
        first.imshow(displayable(images[row]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        _beside(first, f"class {labels[row]}")
        if video:
            _part(first, *images.shape[1:5:3])
        for ax, text, values, note in zip(others, titles, maps, notes, strict=True):
            shown = np.concatenate(list(values[row]), axis=1) if video else values[row]
            heat = ax.imshow(shown, cmap=HEAT, vmin=limits[0], vmax=limits[1], interpolation="nearest")
            if video:
                _beside(ax, f"{text}\n{note[row]}")
                _part(ax, *maps.shape[2:5:2])
            else:
                ax.set_xlabel(note[row], fontsize=8, labelpad=2)
    for ax, text in zip(axes[0], () if video else ["image", *titles], strict=False):
        ax.set_title(text, fontsize=8)
    for ax in axes.flat:
        bare(ax)
    figure.colorbar(heat, ax=axes, location="bottom", shrink=0.8, aspect=40, pad=0.02).set_label(scale)
    figure.suptitle(title)
    return figure


def _part(ax: Axes, frames: int, width: int) -> None:
    """White lines between frames side by side."""
    for frame in range(1, frames):
        ax.axvline(frame * width - 0.5, color="white", linewidth=1.5)


def _beside(ax: Axes, text: str) -> None:
    ax.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)


def displayable(sample: NDArray[np.float32]) -> NDArray[np.float64]:
    """A sample C S S as S S (one channel) or S S 3, from 0 to 1. A latent shows its first three channels, stretched; a video
    (F C S S) its frames side by side."""
    image = (np.concatenate(list(sample), axis=2) if sample.ndim == 4 else sample).astype(np.float64)
    if image.shape[0] in (1, 3):
        image = (image.clip(-1, 1) + 1) / 2
    else:
        image = image[:3]
        low, high = np.percentile(image, [1, 99])
        image = ((image - low) / max(high - low, 1e-9)).clip(0, 1)
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)
