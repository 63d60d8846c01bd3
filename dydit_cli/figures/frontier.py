"""How near to the complete model each mix of ratio, steps, sampler and cache stays, over its cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dydit_cli.figures.base import figure
from dydit_cli.figures.style import BLUE, new_figure
from dydit_cli.units import scale_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dydit_cli.artifacts.frontier import Frontier, MeasuredMix

LONG = 5  # times its lowest value is a long axis's highest


def frontier_table(front: Frontier) -> pd.DataFrame:
    """One row a mix: what it is, its MACs and seconds per image, its distance, and on which fronts it is."""
    return front.table


@figure(
    "frontier",
    "frontier",
    title="Nearness to the complete model over the cost of an image",
    caption="Each grey point is a mix of model, FLOPs ratio, steps, sampler and cache: the mean squared distance of its "
    "samples to the complete model's with many steps, from the same noise. The line joins those than which none is cheaper and "
    "nearer; crosses were dropped after a quarter of the images.",
    table=frontier_table,
)
def draw_frontier(front: Frontier) -> Figure:
    """A panel over MACs, and one over seconds where they were taken; both axes logarithmic where they are long."""
    timed = front.front("seconds_per_image")
    size, prefix = scale_of(max(mix.macs_per_image for mix in front.mixes))
    figure = new_figure(12.4 if timed else 6.6, 4.6)
    axes = figure.subplots(1, 4 if timed else 2, squeeze=False, width_ratios=[3, 1] * (2 if timed else 1))[0]
    _panel(axes[0], axes[1], front, [(mix.macs_per_image / size, mix) for mix in front.mixes], front.front("cost"))
    axes[0].set_xlabel(f"MACs per image [{prefix}MACs]")
    axes[0].set_ylabel("mean squared distance to the complete model's samples")
    if timed:
        points = [(mix.seconds_per_image, mix) for mix in front.mixes if mix.seconds_per_image is not None]
        _panel(axes[2], axes[3], front, points, timed)
        axes[2].set_xlabel(f"seconds per image, {front.summary['device']} [s]")
    reference = front.summary["reference"]
    handles, labels = axes[0].get_legend_handles_labels()
    title = (
        f"{front.summary['model']}: distance to {reference['checkpoint']}, {reference['sampler']}, {reference['steps']} steps, "
        f"{front.summary['images']} images"
    )
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, title=title)
    return figure


def _panel(ax: Axes, key: Axes, front: Frontier, points: list[tuple[float, MeasuredMix]], best: list[MeasuredMix]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for dropped, marker, label in ((False, "o", "mix"), (True, "x", "dropped early")):
        some = [(x, mix.distance) for x, mix in points if mix.dropped == dropped]
        if some:
            ax.plot(*zip(*some, strict=True), marker, color="#AAAAAA", markersize=4, linestyle="none", zorder=2, label=label)
    on_front = sorted(((x, mix) for x, mix in points if mix in best), key=lambda one: one[0])
    xs, ys = [x for x, _ in on_front], [mix.distance for _, mix in on_front]
    ax.plot(xs, ys, "o-", color=BLUE, markersize=5, linewidth=1.4, zorder=3, label="front")
    for number, (x, mix) in enumerate(on_front, 1):  # nothing is below a front
        ax.annotate(
            str(number), (x, mix.distance), (-3, -3), textcoords="offset points", fontsize=7, ha="right", va="top", color=BLUE
        )
    key.set_axis_off()
    lines = [f"{number}  {front.label(mix)}" for number, (_, mix) in enumerate(on_front, 1)]
    key.text(0, 1, "\n".join(lines), transform=key.transAxes, fontsize=7, va="top", color=BLUE, linespacing=1.5)
    distances = [mix.distance for mix in front.mixes]
    if 0 < LONG * min(x for x, _ in points) < max(x for x, _ in points):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    nearest, farthest = min((distance for distance in distances if distance > 0), default=1.0), max(distances)
    if min(distances) == 0:  # the reference itself
        ax.set_yscale("symlog", linthresh=nearest)
        ax.set_ylim(-nearest / 2, 1.5 * max(nearest, farthest))
    else:
        ax.set_yscale("log")
        ax.set_ylim(nearest / 1.5, 1.5 * farthest)
