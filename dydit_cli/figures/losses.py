"""The diffusion loss over the timesteps and over the image (figures 1a and 1b of the DyDiT paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dydit_cli.figures.base import TooLittleError, figure
from dydit_cli.figures.maps import draw_maps
from dydit_cli.figures.style import BLUE, GREEN, ORANGE, new_figure
from dydit_cli.units import scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dydit_cli.artifacts.losses import Losses

ERROR, EXCESS = "standard_error", "excess over the last"

LAST, OTHERS = (BLUE, "-"), ((ORANGE, "--"), (GREEN, "-."), ("#CC79A7", ":"))

NORMALISED = "loss_from_0_to_1_in_its_map"


def loss_column(losses: Losses) -> str:
    """A table's, by what the models predict."""
    return f"mse_of_the_{losses.target}"


def loss_gap_table(losses: Losses) -> pd.DataFrame:
    """One row a curve and timestep: each model's loss, then each one's excess over the last model's.

    Raises `DyditError` for a single model, which has no gap, or more than four.
    """
    names = losses.names
    if not 2 <= len(names) <= 1 + len(OTHERS):
        raise TooLittleError(
            f"loss-gap is drawn of two to four models and {len(names)} "
            f"{'was' if len(names) == 1 else 'were'} measured; measure again: dydit losses SMALL LARGE --out DIR"
        )
    loss = loss_column(losses)
    frames = [losses.table.rename(columns={"mse": loss, "mse_standard_error": ERROR}).assign(curve="loss")]
    for i, name in enumerate(names[:-1]):
        mean, error = losses.excess(i)
        frames.append(pd.DataFrame({"curve": EXCESS, "model": name, "timestep": losses.timesteps, loss: mean, ERROR: error}))
    return pd.concat(frames, ignore_index=True)[["curve", "model", "timestep", loss, ERROR]]


@figure(
    "loss-gap",
    "losses",
    title="The loss of a small and a large model at every timestep",
    caption="Above, the mean squared error of the predicted {0.target} on real images, from noise to image; below, how much "
    "more the smaller model loses than the larger one: where it is near zero, capacity is not what is lacking.",
    table=loss_gap_table,
)
def draw_loss_gap(losses: Losses) -> Figure:
    """Above each model's loss over all timesteps, on a logarithmic axis, below what the others lose more than the last."""
    table = loss_gap_table(losses)
    *others, last = losses.names
    styles = {last: LAST, **dict(zip(others, OTHERS, strict=False))}
    figure = new_figure(6.5, 4.8)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, 1])
    sizes = {model["name"]: _parameters(model["parameters"]) for model in losses.summary["models"]}
    for ax, curve in ((above, "loss"), (below, EXCESS)):
        for name, own in table[table["curve"] == curve].groupby("model", sort=False):
            _curve(ax, own, loss_column(losses), *styles[str(name)], f"{name} ({sizes[str(name)]})")
    above.set_yscale("log")
    above.set_ylabel(f"squared error\nof the {losses.target}")
    above.legend(loc="upper center", fontsize=8)
    below.axhline(0, color="black", linewidth=0.8)
    below.set_ylabel(f"excess over\n{losses.names[-1]}")
    below.set_xlabel(losses.timeline.label)
    timeline = losses.timeline
    left, right = (losses.timesteps[i].item() for i in ((0, -1) if timeline.rising else (-1, 0)))
    if left == right:
        right = timeline.high if timeline.rising else timeline.low - 1
    below.set_xlim(left, right)
    part = "held-out images" if losses.summary["held_out"] else "images"
    above.set_title(
        f"Diffusion loss over {losses.summary['images']} {part} of {losses.summary['data']} (bands: standard error)"
    )
    figure.align_ylabels()
    return figure


def _curve(ax: Axes, own: pd.DataFrame, loss: str, color: str, line: str, label: str) -> None:
    t, mean, error = own["timestep"], own[loss], own[ERROR].fillna(0)
    ax.fill_between(t, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)
    ax.plot(t, mean, color=color, linestyle=line, linewidth=1.1, label=label)


def _parameters(count: int) -> str:
    size, prefix = scale_of(count)
    return f"{count / size:.3g} {prefix} parameters"


def normalised(patches: NDArray[np.float32]) -> NDArray[np.float64]:
    """A R S S, or of videos A R F S S, each map from its own least loss (0) to its greatest (1)."""
    inside = tuple(range(2, patches.ndim))
    low, high = (edge(patches, axis=inside, keepdims=True).astype(np.float64) for edge in (np.min, np.max))
    return (patches - low) / np.maximum(high - low, 1e-12)


def loss_maps_table(losses: Losses) -> pd.DataFrame:
    """One row a timestep, image and patch: its loss and where that lies in its map."""
    maps = normalised(losses.patches)
    at, image, *frame, row, column = (axis.ravel() for axis in np.indices(maps.shape))
    return pd.DataFrame(
        {
            "timestep": losses.patch_timesteps[at],
            "image": image,
            "label": losses.labels[image],
            **({"frame": frame[0]} if frame else {}),
            "patch_row": row,
            "patch_column": column,
            loss_column(losses): losses.patches.ravel(),
            NORMALISED: maps.ravel(),
        }
    )


@figure(
    "loss-maps",
    "losses",
    title="Where in the image the loss is",
    caption="Real images beside the loss of each of their patches at several timesteps, each map from its own least to its own "
    "greatest value.",
    table=loss_maps_table,
)
def draw_loss_maps(losses: Losses) -> Figure:
    """A row for each image: the image, then where the loss is at each timestep, the lowest first."""
    maps = loss_maps_table(losses)[NORMALISED].to_numpy().reshape(losses.patches.shape)
    return draw_maps(
        losses.images,
        losses.labels,
        maps,
        [f"t = {losses.timeline.text(timestep)}" for timestep in losses.patch_timesteps.tolist()],
        [[f"{mean:.2g}" for mean in means] for means in losses.patches.reshape(*losses.patches.shape[:2], -1).mean(axis=2)],
        limits=(0, 1),
        scale="loss of a patch, from its map's least (0) to its greatest (1);\n"
        f"under each map: its mean squared error of the {losses.target}",
        title=f"Where the loss is, {losses.summary['map_model']}, mean over {losses.summary['map_noises']} noises",
    )
