"""Where the time of a sampling run goes, static beside sparse: the gap between fewer FLOPs and less time, part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dydit_cli.figures.style import BLUE, GREEN, GREY, LIGHT, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {
    "attention": BLUE,
    "mlp": ORANGE,
    "modulation and norms": GREEN,
    "token routers": "#CC79A7",
    "gather and scatter": "#56B4E9",
    "slicing": "#D55E00",
    "rest": GREY,
}


def draw_breakdown(result: dict[str, Any]) -> Figure:
    """Two stacked bars, and a line where the sparse one would end if time followed FLOPs; `result` is a bench's JSON."""
    parts: dict[str, dict[str, float]] = result["parts"]
    settings = result["settings"]
    figure = new_figure(7.0, 2.9)
    ax = figure.subplots()
    static, sparse = (sum(both[kind] for both in parts.values()) for kind in ("static", "sparse"))
    proportional = static * result["flops_ratio"]
    for row, kind in enumerate(("sparse", "static")):
        left = 0.0
        for part, both in parts.items():
            ax.barh(row, both[kind], left=left, color=COLORS.get(part, LIGHT), height=0.6, label=part if row == 0 else None)
            left += both[kind]
        in_the_way = row == 0 and left <= proportional < left + 0.1 * static
        ax.text(proportional if in_the_way else left, row, f" {left:.1f} s", va="center")
    ax.plot([proportional, proportional], [-0.4, 0.4], color="black", linewidth=1.5)
    ax.text(proportional, 0.42, f"{result['flops_ratio']:.2f} of static", ha="center", va="bottom", fontsize=8)
    ax.set_yticks([0, 1], ["sparse", "static"])
    ax.set_ylim(-0.5, 1.5)
    ax.set_xlim(0, 1.12 * max(static, sparse))
    ax.set_xlabel(f"seconds of {settings['steps']} steps, batch {settings['batch']}, {settings['dtype']}, {result['device']}")
    ax.set_title(
        f"{result['model']}: speed-up {result['speedup']:.2f}, realised efficiency {result['realised_efficiency']:.2f}"
    )
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure
