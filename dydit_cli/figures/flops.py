"""MACs at every timestep, by part, against the static model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dydit_cli.figures.style import BLUE, GREEN, ORANGE, new_figure
from dydit_cli.profiling.profile import Profile
from dydit_cli.units import scale_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_flops(profile: Profile) -> Figure:
    """A stack of attention, MLP and the rest over the sampling steps, under the static model's line."""
    table, summary = profile.table, profile.summary
    size, prefix = scale_of(summary["macs_static"])
    attention, mlp = table["attention_macs"] / size, table["mlp_macs"] / size
    rest = table["dynamic_macs"] / size - attention - mlp
    figure = new_figure(6.5, 3.6)
    ax = figure.subplots()
    ax.stackplot(
        table["timestep"],
        attention,
        mlp,
        rest,
        colors=[BLUE, ORANGE, GREEN],
        labels=["attention", "MLP", "routers, adaLN, norms, embedders"],
        step="mid",
    )
    left = table["timestep"].max()
    for macs, text, line in (
        (summary["macs_static"], " static model", "--"),
        (summary["macs_dynamic"], f" mean over the steps: {summary['ratio']:.3f} of static", ":"),
    ):
        ax.axhline(macs / size, color="black", linestyle=line, linewidth=1.1)
        ax.text(left, macs / size, text, va="bottom", ha="left")
    ax.invert_xaxis()
    ax.margins(x=0)
    ax.set_ylim(0, 1.32 * summary["macs_static"] / size)
    ax.set_xlabel("timestep t (999: pure noise; sampling runs left to right)")
    ax.set_ylabel(f"{prefix}MACs per forward and image")
    ax.legend(loc="upper center", ncols=3, fontsize=8)
    return figure
