"""Quality against compute (figure 3 of the DyDiT paper), by forward, drawn from a study's table alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from dydit_cli.figures.base import figure
from dydit_cli.figures.style import BLUE, GREEN, GREY, ORANGE, new_figure
from dydit_cli.units import scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dydit_cli.artifacts.study import StudyTable


@dataclass(frozen=True)
class MethodStyle:
    """`label` is the method in words, `target` its number in words; a `whole` one leaves nothing out: it is one point; the
    target of one that `hurries` is its number of steps."""

    label: str
    color: str
    marker: str
    line: str = "-"
    target: str = "{:g}"
    whole: bool = False
    hurries: bool = False


STYLES = {
    "static": MethodStyle("static DiT", "black", "*", whole=True),
    "control": MethodStyle("static DiT, fine-tuned as long", "black", "D", whole=True),
    "dydit": MethodStyle("DyDiT", BLUE, "o", "-", "lambda {:g}"),
    "range": MethodStyle("one DyDiT for all ratios", "#0B3C5D", ".", "-", "at {:g}"),
    "magnitude": MethodStyle("magnitude pruning", ORANGE, "s", "--", "keep {:g}"),
    "taylor": MethodStyle("Taylor pruning", GREEN, "^", "-.", "keep {:g}"),
    "diff": MethodStyle("Diff pruning", "#CC79A7", "v", ":", "keep {:g}"),
    "depth": MethodStyle("depth pruning", "#D55E00", "d", "--", "keep {:g}"),
    "random": MethodStyle("random pruning", GREY, "x", "--", "keep {:g}"),
    "tome": MethodStyle("ToMe", "#56B4E9", "P", "-.", "{:g} merged"),
    "steps": MethodStyle("static DiT", "black", "*", target="{:g} steps", hurries=True),
}


def style_of(method: str) -> MethodStyle:
    """How `method` is drawn; one that is not known is drawn in black under its own name."""
    return STYLES.get(method, MethodStyle(method, "black", "."))


def row_label(method: str, target: float, steps: int | None = None, cache: str | None = None) -> str:
    """`DyDiT, lambda 0.5`; `static DiT`; with a number of steps `DyDiT, lambda 0.5, 10 steps`; with a cache `static DiT,
    fora:3`."""
    style = style_of(method)
    label = style.label if style.whole or pd.isna(target) else f"{style.label}, {style.target.format(target)}"
    label = label if steps is None or style.hurries else f"{label}, {steps} steps"
    return label if cache is None else f"{label}, {cache}"


@dataclass(frozen=True)
class Panel:
    """`column` of study.csv times `scale` is `name` in the figure's table; `axis` its label, with the unit."""

    column: str
    name: str
    axis: str
    scale: float = 1.0


FRECHET = Panel("frechet", "frechet_distance", "Fréchet distance (lower is better)")

PANELS = (
    Panel("recognised", "recognised_percent", "recognised samples [%] (higher is better)", 100),
    Panel("loss_ratio", "held_out_loss_over_static", "held-out loss / static's (lower is better)"),
    Panel("speedup", "speedup_over_static", "sampling speed / static's (higher is better)"),
)


def frechet_panels(study: StudyTable) -> list[Panel]:
    """One for each judge, the main one first; where there are several each bears its name."""
    if not study.other_judges:
        return [FRECHET]
    main = str(study.protocol.get("judges", ["main judge"])[0])
    axis = "Fréchet distance, {}\n(lower is better)".format
    others = [Panel(f"frechet_{name}", f"frechet_distance_{name}", axis(name)) for name in study.other_judges]
    return [replace(FRECHET, axis=axis(main)), *others]


def panels_of(study: StudyTable) -> list[Panel]:
    """Of all measures that a study can have."""
    return [*frechet_panels(study), *PANELS]


def tradeoff_table(study: StudyTable) -> pd.DataFrame:
    """One row a method, target and measure, all with the study's own number of steps: the mean over seeds, the sample standard
    deviation (empty for one seed), and how many seeds; beside them the MACs per forward and image, and what share of the
    static model's they are."""
    rows = study.alike
    order = [*STYLES, *(method for method in rows["method"].unique() if method not in STYLES)]
    frames = []
    for panel in panels_of(study):
        if panel.column not in rows.columns or rows[panel.column].isna().all():
            continue
        known = rows[rows[panel.column].notna()]
        groups = known.assign(value=known[panel.column] * panel.scale).groupby(["method", "target"], dropna=False)
        means = groups.agg(
            macs_per_forward_and_image=("macs", "mean"),
            ratio_of_static=("ratio", "mean"),
            ratio_standard_deviation=("ratio", "std"),
            seeds=("seed", "count"),
            mean=("value", "mean"),
            standard_deviation=("value", "std"),
        ).reset_index()
        means.insert(2, "measure", panel.name)
        rank = means["method"].map({method: i for i, method in enumerate(order)})
        frames.append(means.assign(rank=rank).sort_values(["rank", "ratio_of_static"]).drop(columns="rank"))
    return pd.concat(frames, ignore_index=True)


@figure(
    "tradeoff",
    "study",
    title="Quality against compute",
    caption="Each method's quality over the share of the static model's MACs that it needs, means and standard deviations over "
    "seeds; the star is the static model, its level dotted, the diamond the same model fine-tuned as long.",
    table=tradeoff_table,
)
def draw_tradeoff(study: StudyTable) -> Figure:
    """A panel for each measure over the MACs: a line a method, its spread over seeds as bars, the static model's level
    dotted."""
    table = tradeoff_table(study)
    panels = [panel for panel in panels_of(study) if panel.name in set(table["measure"])]
    down, across = -(-len(panels) // 2), min(len(panels), 2)
    figure = new_figure(3.9 * across if across > 1 else 5.0, 0.9 + 2.9 * down, gap=0.05)
    axes = figure.subplots(down, across, squeeze=False)
    for ax, panel in zip(axes.flat, panels, strict=False):
        _panel(ax, table[table["measure"] == panel.name], panel)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    macs = _static_macs(study)
    size, prefix = scale_of(macs)
    figure.supxlabel(
        f"MACs per forward and image, share of the static model's (1 = {macs / size:.4g} {prefix}MACs)", fontsize=9
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4 if across > 1 else 2, fontsize=8, title=title_of(study))
    return figure


def _panel(ax: Axes, table: pd.DataFrame, panel: Panel) -> None:
    for method, points in table.groupby("method", sort=False):
        style = style_of(str(method))
        ax.errorbar(
            points["ratio_of_static"],
            points["mean"],
            xerr=None if style.whole else points["ratio_standard_deviation"].fillna(0),
            yerr=points["standard_deviation"].fillna(0),
            color=style.color,
            marker=style.marker,
            markersize={"static": 10, "control": 6}.get(str(method), 5),
            markerfacecolor="white" if method == "control" else style.color,
            linestyle="none" if style.whole else style.line,
            linewidth=1.8 if method == "dydit" else 1.2,
            elinewidth=0.9,
            capsize=2,
            zorder=4 if method == "static" else 5 if method == "control" else 3 if method == "dydit" else 2,
            label=style.label,
        )
        if method == "static":
            ax.axhline(float(points["mean"].iloc[0]), color="black", linestyle=":", linewidth=0.9, zorder=1)
    ax.set_ylabel(panel.axis)
    low, high = float(table["mean"].min()), float(table["mean"].max())
    if low > 0 and high > 15 * low:
        ax.set_yscale("log")
    elif panel.column == "speedup":
        ax.set_ylim(bottom=0)
    ax.set_xlim(left=max(0.0, float(table["ratio_of_static"].min()) - 0.08), right=1.06)


def _static_macs(study: StudyTable) -> float:
    """What a share of 1 is; any row's MACs over its share say it."""
    return float((study.rows["macs"] / study.rows["ratio"]).median())


def title_of(study: StudyTable) -> str:
    """Of which model and data, over how many seeds and samples."""
    protocol, counts = study.protocol, study.rows.groupby(study.keys, dropna=False)["seed"].nunique()
    about = f"{protocol['model']} on {protocol['data']}. " if {"model", "data"} <= protocol.keys() else ""
    up_to = "up to " if counts.min() < counts.max() else ""  # where some rows are still to be run
    spread = f"mean and standard deviation over {up_to}{counts.max()} seeds" if counts.max() > 1 else "one seed"
    samples = f", {protocol['images']:,} samples each" if isinstance(protocol.get("images"), int) else ""
    return f"{about}{spread[0].upper()}{spread[1:]}{samples}"
