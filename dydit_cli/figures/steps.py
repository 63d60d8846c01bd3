"""Quality against the compute of a whole image: fewer sampling steps and caches beside fewer MACs per forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from dydit_cli.artifacts.study import cache_of
from dydit_cli.figures.base import TooLittleError, figure
from dydit_cli.figures.style import new_figure
from dydit_cli.figures.tradeoff import STYLES, Panel, frechet_panels, row_label, style_of, title_of
from dydit_cli.units import scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dydit_cli.artifacts.study import StudyTable

STATIC, DYNAMIC = "static", "dydit"

LONG = 5  # times its lowest value is a long axis's highest

LIGHTEST, DARKEST = 0.35, 0.9  # of the blues that DyDiTs' lambdas are told apart by


def steps_table(study: StudyTable) -> pd.DataFrame:
    """One row a method, target, number of steps, cache and judge: the mean over seeds, the sample standard deviation (empty for
    one seed), and how many seeds; beside them the forwards and the MACs of an image. `line` numbers those that one line joins.

    Raises `TooLittleError` where all rows have the same number of steps, and none a cache.
    """
    if "macs_per_image" not in study.rows.columns or len(study.alike) == len(study.rows):
        raise TooLittleError(
            f"{study.folder}: all rows of this study have the same number of steps; give its recipe methods.steps, "
            "methods.dydit_steps or methods.cache"
        )
    rows = study.rows.assign(cache=study.rows["cache"] if "cache" in study.rows.columns else None)
    # the static model with all of its steps is the end of the line of fewer
    rows["line"] = [
        line_of(method, target, cache_of(cache) is not None)
        for method, target, cache in zip(rows["method"], rows["target"], rows["cache"], strict=True)
    ]
    order = list(dict.fromkeys(rows.sort_values("method", key=lambda methods: methods.map(rank), kind="stable")["line"]))
    frames = []
    for panel in frechet_panels(study):
        known = rows[rows[panel.column].notna()].assign(value=rows[panel.column])
        groups = known.groupby(["method", "target", "steps", "cache", "line"], dropna=False, sort=False)
        means = groups.agg(
            forwards_per_image=("forwards_per_image", "mean"),
            macs_per_image=("macs_per_image", "mean"),
            seeds=("seed", "count"),
            mean=("value", "mean"),
            standard_deviation=("value", "std"),
        ).reset_index()
        means.insert(4, "measure", panel.name)
        means["line"] = means["line"].map(order.index)
        frames.append(means.sort_values(["line", "macs_per_image"]))
    return pd.concat(frames, ignore_index=True)


def rank(method: str) -> int:
    """Of the methods in the legend: the static model, DyDiT, and the others."""
    return list(STYLES).index(method) if method in STYLES else len(STYLES)


def line_of(method: str, target: float, cached: bool) -> str:
    """Rows of one name are one line: the static model over its steps, a DyDiT of one lambda, any other method, and each of
    these with caches."""
    name = STATIC if style_of(method).hurries else row_label(method, target) if method == DYNAMIC else method
    return f"{name}, cached" if cached else name


@figure(
    "tradeoff-steps",
    "study",
    title="Quality against the compute of an image",
    caption="Fréchet distance over the MACs of a whole image: the static model with fewer and fewer steps is one line, each "
    "DyDiT another; what was pruned stands as points, and what has a cache hollow, all with the study's own number of "
    "steps. Numbers are steps.",
    table=steps_table,
)
def draw_steps(study: StudyTable) -> Figure:
    """A panel for each judge: means over seeds, the standard deviations as bars, both axes logarithmic where they are long."""
    table = steps_table(study)
    panels = frechet_panels(study)
    figure = new_figure(5.0 * len(panels) if len(panels) > 1 else 6.4, 4.6)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    size, prefix = scale_of(float(table["macs_per_image"].max()))
    for ax, panel in zip(axes, panels, strict=True):
        _panel(ax, table[table["measure"] == panel.name], panel, size)
    figure.supxlabel(f"MACs per image, all of its forwards [{prefix}MACs]", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, title=title_of(study))
    return figure


def _panel(ax: Axes, table: pd.DataFrame, panel: Panel, size: float) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import LogLocator, NullFormatter

    lambdas = sorted(set(table.loc[table["method"] == DYNAMIC, "target"]))
    for _, points in table.groupby("line", sort=True):
        method, target = str(points["method"].iloc[0]), float(points["target"].iloc[0])
        style = style_of(method)
        cached = cache_of(points["cache"].iloc[0]) is not None
        over_steps = not cached and (style.hurries or method in (STATIC, DYNAMIC))
        color: Any = style.color
        label = row_label(method, target) if method == DYNAMIC else style.label
        if method == DYNAMIC:
            darkness = (lambdas.index(target) + 1) / len(lambdas)
            color = colormaps["Blues"](LIGHTEST + (DARKEST - LIGHTEST) * darkness)
        ax.errorbar(
            points["macs_per_image"] / size,
            points["mean"],
            yerr=points["standard_deviation"].fillna(0),
            color=color,
            marker=style.marker,
            markerfacecolor="white" if cached or method == "control" else color,
            markersize=5,
            linestyle="-" if over_steps else "none",
            linewidth=1.5,
            elinewidth=0.9,
            capsize=2,
            zorder=3 if over_steps else 2,
            label=f"{label}, cached" if cached else label,
        )
        notes = points["cache"] if cached else points["steps"].map("{:g}".format)
        for x, y, note in zip(points["macs_per_image"] / size, points["mean"], notes, strict=True):
            if over_steps or cached:
                ax.annotate(note, (x, y), (3, 3), textcoords="offset points", fontsize=7, color=color)
    ax.set_ylabel(panel.axis)
    for values, scale, axis in (
        (table["macs_per_image"], ax.set_xscale, ax.xaxis),
        (table["mean"], ax.set_yscale, ax.yaxis),
    ):
        if 0 < LONG * values.min() < values.max():
            scale("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
