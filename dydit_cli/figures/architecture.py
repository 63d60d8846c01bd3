"""Which heads and channel groups run at which timestep (figure 5 of the DyDiT paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dydit_cli.figures.base import figure
from dydit_cli.figures.style import BLUE, GREY, LIGHT, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dydit_cli.artifacts.profile import Profile

HEAD, GROUP = "attention head", "channel group"


def architecture_table(profile: Profile) -> pd.DataFrame:
    """One row a part (head or channel group), sampling step, block and number in the block: `active` is 1 or 0; with a cache,
    `forecast` whether the step was."""
    record = profile.record
    T, L, H = record.heads.shape
    step, block, number = (axis.ravel() for axis in np.indices((T, L, H)))
    frames = [
        pd.DataFrame(
            {
                "part": part,
                "step": step,
                "timestep": record.timesteps[step],
                "block": block,
                "number": number,
                "active": masks.ravel().astype(np.int8),
                **({"forecast": (record.forecasts[step] > 0).astype(np.int8)} if record.forecasts.any() else {}),
            }
        )
        for part, masks in ((HEAD, record.heads), (GROUP, record.groups))
    ]
    return pd.concat(frames, ignore_index=True)


@figure(
    "architecture",
    "profile",
    title="What runs at which timestep",
    caption="Each row is an attention head (left) or a channel group of an MLP (right), each column a sampling step from noise "
    "to image; coloured where it runs, light where it is skipped, dark where a cache forecasts the step. The lines above are "
    "the active share of all of them.",
    table=architecture_table,
)
def draw_architecture(profile: Profile) -> Figure:
    """Two maps, heads and channel groups: sampling steps across, blocks and their heads down; above, the active share."""
    table, config = architecture_table(profile), profile.config
    timesteps = table.groupby("step")["timestep"].first().tolist()
    L, H = config.depth, config.num_heads
    figure = new_figure(9.0, min(2.6 + 0.085 * L * H, 12.0), gap=0.06)
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[1, max(3.0, 0.05 * L * H)])
    for column, (name, part, color) in enumerate((("attention heads", HEAD, BLUE), ("MLP channel groups", GROUP, ORANGE))):
        masks = table.loc[table["part"] == part, "active"].to_numpy().reshape(-1, L, H)
        _share(grid[0, column], masks, color, f"{name}: {100 * masks.mean():.0f} % active")
        _map(
            grid[1, column],
            np.where(profile.record.forecasts[:, None, None] > 0, np.int8(2), masks),
            color,
            [profile.timeline.text(t) for t in timesteps],
            [config.block_title(i) for i in range(L)],
        )
        grid[1, column].set_xlabel(profile.timeline.label)
    grid[0, 0].set_ylabel("active [%]")
    grid[1, 0].set_ylabel(f"block ({H} rows each, the top one always on)")
    figure.suptitle(f"What runs at which timestep: {config.size_name}, {profile.summary['ratio']:.2f} of the static MACs")
    return figure


def _share(ax: Axes, masks: NDArray[np.int8], color: str, title: str) -> None:
    ax.step(np.arange(len(masks)), 100 * masks.mean(axis=(1, 2)), where="mid", color=color)
    ax.set_ylim(0, 105)
    ax.set_title(title)


def _map(ax: Axes, masks: NDArray[np.int8], color: str, timesteps: list[str], blocks: list[str]) -> None:
    """masks: T L H, 1 where it runs, 2 where the step is forecast."""
    from matplotlib.colors import ListedColormap

    T, L, H = masks.shape
    ax.imshow(
        masks.reshape(T, L * H).T,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap([LIGHT, color, GREY]),
        vmin=0,
        vmax=2,
    )
    for block in range(1, L):
        ax.axhline(block * H - 0.5, color="white", linewidth=1.5 if L * H < 100 else 0.6)
    every = 1 if L <= 12 else 4 if blocks[0].isdecimal() else 3  # of two kinds in turn both are named
    ax.set_yticks([block * H + (H - 1) / 2 for block in range(0, L, every)], blocks[::every])
    ticks = np.unique(np.linspace(0, T - 1, min(T, 6)).round().astype(int))
    ax.set_xticks(ticks, [timesteps[i] for i in ticks])
    ax.tick_params(length=0, axis="y")
    for spine in ax.spines.values():
        spine.set_color(GREY)
