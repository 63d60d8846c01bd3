"""Where the time of a sampling run goes, static beside sparse: the gap between fewer FLOPs and less time, part by part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dydit_cli.artifacts.bench import subject_of
from dydit_cli.figures.style import BLUE, GREEN, GREY, LIGHT, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def time_table(result: dict[str, Any]) -> pd.DataFrame:
    """One row an execution and part, in seconds of a sampling run; the last is the time that would follow the FLOPs."""
    rows = [
        {"execution": kind, "part": part, "seconds": both[kind]}
        for kind in ("static", subject_of(result))
        for part, both in result["parts"].items()
    ]
    static = sum(both["static"] for both in result["parts"].values())
    proportional = {"execution": "in proportion to FLOPs", "part": "all", "seconds": static * result["flops_ratio"]}
    return pd.DataFrame([*rows, proportional])


def draw_breakdown(result: dict[str, Any]) -> Figure:
    """Two stacked bars, and a line where the second would end if time followed FLOPs; `result` is a bench's JSON."""
    table, settings = time_table(result), result["settings"]
    seconds = {kind: rows.set_index("part")["seconds"] for kind, rows in table.groupby("execution")}
    figure = new_figure(7.0, 2.9)
    ax = figure.subplots()
    subject = subject_of(result)
    static, dynamic = (float(seconds[kind].sum()) for kind in ("static", subject))
    proportional = float(table["seconds"].iloc[-1])
    for row, kind in enumerate((subject, "static")):
        left = 0.0
        for part, length in seconds[kind].items():
            color = COLORS.get(str(part), LIGHT)
            (bar,) = ax.barh(row, length, left=left, color=color, height=0.6, edgecolor="white", linewidth=0)
            bar.set_hatch(HATCHES.get(str(part), ""))
            if row == 0:
                bar.set_label(str(part))
            left += length
        in_the_way = row == 0 and left <= proportional < left + 0.1 * static
        ax.text(proportional if in_the_way else left, row, f" {left:.1f} s", va="center")
    ax.plot([proportional, proportional], [-0.4, 0.4], color="black", linewidth=1.5)
    ax.text(proportional, 0.42, f"{result['flops_ratio']:.2f} of static", ha="center", va="bottom", fontsize=8)
    ax.set_yticks([0, 1], [{"tome": "ToMe"}.get(subject, subject), "static"])
    ax.set_ylim(-0.5, 1.5)
    ax.set_xlim(0, 1.12 * max(static, dynamic))
    ax.set_xlabel(f"seconds of {settings['steps']} steps, batch {settings['batch']}, {settings['dtype']}, {result['device']}")
    speedup, efficiency = f"speed-up {result['speedup']:.2f}", f"realised efficiency {result['realised_efficiency']:.2f}"
    ax.set_title(f"{short_name(result['model'])}: {speedup}, {efficiency}")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure


def short_name(model: str) -> str:
    """A checkpoint's own name, without the folders that it lies in; `DiT-S/2` is itself."""
    return model if model.startswith("DiT-") else Path(model).name
