"""How a training run went: the FLOPs ratio against its target, and the loss, over its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dydit_cli.figures.base import figure
from dydit_cli.figures.style import BLUE, GREEN, GREY, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dydit_cli.artifacts.run import Run

WINDOWS = 40  # a running mean covers one part in so many of the run


def training_table(run: Run) -> pd.DataFrame:
    """One row a step: the ratio (MACs of attention and MLP over the static model's), its target, the losses of the batch,
    running means of those, whether the step was skipped. What the run lacks is left out, but for `skipped`."""
    metrics, window = run.metrics, _window(run)
    values = {"ratio": metrics["ratio"], "target_ratio": metrics["target"], "diffusion_loss": metrics["mse"] + metrics["vb"]}
    if "complete_loss" in metrics.columns:
        values["complete_loss"] = metrics["complete_loss"]
    table = pd.DataFrame({"step": metrics["step"]})
    for name, series in values.items():
        present = series.astype(float)
        if present.notna().any() or name == "diffusion_loss":
            table[name] = present
            if name != "target_ratio":
                # where the complete pass runs on every k-th step, its mean is of those alone
                known = present if name == "diffusion_loss" else present.dropna()
                table[f"{name}_mean_of_{window}"] = known.rolling(window, min_periods=1, center=True).mean()
    return table.assign(skipped=metrics["skipped"].astype(bool))


@figure(
    "training",
    "run",
    title="How the training went",
    caption="The share of the static model's MACs that the routers switched on, against its target, and the diffusion loss of "
    "each batch.",
    table=training_table,
)
def draw_training(run: Run) -> Figure:
    """Above the ratio under the training noise and its target, for a DyDiT alone; below the diffusion loss."""
    table, window = training_table(run), _window(run)
    dynamic = "target_ratio" in table.columns
    figure = new_figure(6.5, 4.6 if dynamic else 3.0)
    if dynamic:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 1])
        _ratio(above, table, window)
    else:
        below = figure.subplots()
    _loss(below, table, window)
    below.set_xlim(0, table["step"].max())
    below.set_xlabel("optimiser step" + (f" (thick lines: means of {window} steps)" if window > 1 else ""))
    return figure


def _ratio(ax: Axes, table: pd.DataFrame, window: int) -> None:
    steps, ratio = table["step"], table["ratio"]
    ax.plot(steps, ratio, color=BLUE, linewidth=0.6, alpha=0.35)
    ax.plot(steps, table[f"ratio_mean_of_{window}"], color=BLUE, linewidth=1.6, label="achieved, under the training noise")
    ax.plot(steps, table["target_ratio"], color="black", linestyle="--", linewidth=1.2, label="target")
    last = float(ratio.iloc[-window:].mean())
    ax.set_title(f"FLOPs ratio: {last:.3f} at the end, target {float(table['target_ratio'].iloc[-1]):.3f}")
    ax.set_ylabel("attention and MLP,\nshare of static")
    ax.set_ylim(0, 1.05)
    ax.legend(loc="lower left", fontsize=8)


def _loss(ax: Axes, table: pd.DataFrame, window: int) -> None:
    steps, loss = table["step"], table["diffusion_loss"]
    ax.plot(steps, loss, color=ORANGE, linewidth=0.6, alpha=0.35)
    ax.plot(steps, table[f"diffusion_loss_mean_of_{window}"], color=ORANGE, linewidth=1.6, label="diffusion loss")
    drawn = [loss]
    if "complete_loss" in table.columns:
        # the line joins the steps that have one
        complete = table.loc[table["complete_loss"].notna()]
        mean = complete[f"complete_loss_mean_of_{window}"]
        ax.plot(complete["step"], mean, color=GREEN, linewidth=1.6, label="complete model's")
        drawn.append(complete["complete_loss"])
    finite = np.concatenate([part[np.isfinite(part)].to_numpy() for part in drawn])
    if len(finite):
        # a few wild batches must not flatten the rest
        low, high = float(finite.min()), float(np.quantile(finite, 0.995))
        if low > 0 and high > 5 * np.quantile(finite, 0.2):
            ax.set_yscale("log")
            ax.set_ylim(0.9 * low, 1.3 * high)
        else:
            ax.set_ylim(0, 1.15 * high or 1.0)
    skipped = steps[table["skipped"]]
    if len(skipped):
        ax.plot(
            skipped,
            np.full(len(skipped), 0.02),
            "|",
            color=GREY,
            transform=ax.get_xaxis_transform(),
            label=f"{len(skipped)} steps skipped by the gradient guard",
        )
    ax.set_ylabel("loss of a batch")
    ax.legend(loc="upper right", fontsize=8)


def _window(run: Run) -> int:
    return max(1, len(run.metrics) // WINDOWS)
