"""Where the time of a sampling run goes, static beside sparse: the gap between fewer FLOPs and less time, part by part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dydit_cli.figures.base import figure
from dydit_cli.figures.style import BLUE, GREEN, GREY, LIGHT, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dydit_cli.artifacts.bench import BenchResult

COLORS = {
    "attention": BLUE,
    "mlp": ORANGE,
    "modulation and norms": GREEN,
    "token routers": "#CC79A7",
    "matching": "#CC79A7",
    "gather and scatter": "#56B4E9",
    "slicing": "#D55E00",
    "rest": GREY,
}

# what is alike in grey
HATCHES = {"modulation and norms": "////", "token routers": "....", "gather and scatter": "xxxx", "slicing": "||||"}


def time_table(result: BenchResult) -> pd.DataFrame:
    """One row an execution and part, in seconds of a sampling run; the last is the time that would follow the FLOPs."""
    rows = [
        {"execution": name, "part": part, "seconds": both[name]}
        for name in ("static", result.timed)
        for part, both in result.parts.items()
    ]
    static = sum(both["static"] for both in result.parts.values())
    proportional = {"execution": "in proportion to FLOPs", "part": "all", "seconds": static * result.flops_ratio}
    return pd.DataFrame([*rows, proportional])


@figure(
    "time",
    "bench",
    title="Where the time goes",
    caption="Seconds of a sampling run by part, static beside sparse. The black line is where the sparse bar would end if time "
    "followed FLOPs.",
    table=time_table,
)
def draw_breakdown(result: BenchResult) -> Figure:
    """Two stacked bars, and a line where the second would end if time followed FLOPs."""
    table, settings = time_table(result), result.settings
    seconds = {name: rows.set_index("part")["seconds"] for name, rows in table.groupby("execution")}
    figure = new_figure(7.0, 2.9)
    ax = figure.subplots()
    static, dynamic = (float(seconds[name].sum()) for name in ("static", result.timed))
    proportional = float(table["seconds"].iloc[-1])
    for row, name in enumerate((result.timed, "static")):
        left = 0.0
        for part, length in seconds[name].items():
            color = COLORS.get(str(part), LIGHT)
            (bar,) = ax.barh(row, length, left=left, color=color, height=0.6, edgecolor="white", linewidth=0)
            bar.set_hatch(HATCHES.get(str(part), ""))
            if row == 0:
                bar.set_label(str(part))
            left += length
        in_the_way = row == 0 and left <= proportional < left + 0.1 * static
        ax.text(proportional if in_the_way else left, row, f" {left:.1f} s", va="center")
    ax.plot([proportional, proportional], [-0.4, 0.4], color="black", linewidth=1.5)
    ax.text(proportional, 0.42, f"{result.flops_ratio:.2f} of static", ha="center", va="bottom", fontsize=8)
    ax.set_yticks([0, 1], [{"tome": "ToMe"}.get(result.timed, result.timed), "static"])
    ax.set_ylim(-0.5, 1.5)
    ax.set_xlim(0, 1.12 * max(static, dynamic))
    ax.set_xlabel(f"seconds of {settings.steps} steps, batch {settings.batch}, {settings.dtype}, {result.device}")
    efficiency = f"realised efficiency {result.realised_efficiency.median:.2f}"
    ax.set_title(f"{short_name(result.model)}: speed-up {result.speedup.median:.2f}, {efficiency}")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure


def short_name(model: str) -> str:
    """A checkpoint's own name, without the folders that it lies in; `DiT-S/2` is itself."""
    return model if model.startswith("DiT-") else Path(model).name
