"""How near to the complete model each mix of ratio, steps, sampler and cache stays over its cost, and what judges say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dydit_cli.artifacts.frontier import front_of
from dydit_cli.figures.base import TooLittleError, figure
from dydit_cli.figures.style import BLUE, GREEN, GREY, ORANGE, new_figure
from dydit_cli.units import scale_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dydit_cli.artifacts.frontier import Frontier, MeasuredMix, Over

LINES = ("black", BLUE, ORANGE, GREEN, "#CC79A7", "#D55E00", "#56B4E9", GREY)  # of checkpoints, in turn

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
    set_costs(ax, [x for x, _ in points])
    distances = [mix.distance for mix in front.mixes]
    nearest, farthest = min((distance for distance in distances if distance > 0), default=1.0), max(distances)
    if min(distances) == 0:  # the reference itself
        ax.set_yscale("symlog", linthresh=nearest)
        ax.set_ylim(-nearest / 2, 1.5 * max(nearest, farthest))
    else:
        ax.set_yscale("log")
        ax.set_ylim(nearest / 1.5, 1.5 * farthest)


def set_costs(ax: Axes, costs: list[float]) -> None:
    """A logarithmic axis where they reach far."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if 0 < LONG * min(costs) < max(costs):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())


def judges_table(front: Frontier) -> pd.DataFrame:
    """As `frontier_table`, of the mixes that judges saw. Raises `TooLittleError` where there are none."""
    if not front.judges:
        raise TooLittleError("no judge saw these mixes: measure the front with --features, such as --features fashion")
    table = frontier_table(front)
    return table[table[f"frechet_{front.main}"].notna()].reset_index(drop=True)


@figure(
    "frontier-judges",
    "frontier",
    title="Quality by judges over the cost of an image",
    caption="Each point is a mix of model, FLOPs ratio, steps, sampler and cache that is near its checkpoint's front by the "
    "distance: the Fréchet distance of its samples, with the standard deviation over draws of samples. A line joins those of a "
    "checkpoint than which none is cheaper and better; the numbers are those of all checkpoints.",
    table=judges_table,
)
def draw_judges(front: Frontier) -> Figure:
    """A row for each judge: a panel over MACs, and one over seconds where they were taken."""
    judges_table(front)
    overs: list[Over] = ["cost", *(["seconds_per_image"] if front.front("seconds_per_image", front.main) else [])]  # type: ignore[list-item]
    figure = new_figure(6.8 * len(overs), 0.9 + 3.6 * len(front.judges))
    axes = figure.subplots(len(front.judges), 2 * len(overs), squeeze=False, width_ratios=[3, 1.8] * len(overs))
    for row, judge in zip(axes, front.judges, strict=True):
        for i, over in enumerate(overs):
            _judged(row[2 * i], row[2 * i + 1], front, judge, over)
        facts = front.summary["judges"][judge]
        row[0].set_ylabel(f"Fréchet distance, {judge}\n{facts['images']:,} samples, {facts['reference']} (lower is better)")
    reference = front.summary["reference"]
    axes[-1, 0].set_xlabel(f"MACs per image, share of {reference['checkpoint']}'s with {reference['steps']} steps")
    if len(overs) > 1:
        axes[-1, 2].set_xlabel(f"seconds per image, {front.summary['device']} [s]")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, title=front.summary["model"])
    return figure


def _judged(ax: Axes, key: Axes, front: Frontier, judge: str, over: Over) -> None:
    costs: list[float] = []
    distances: list[float] = []
    checkpoints = list(dict.fromkeys([*front.summary["checkpoints"], *(mix.checkpoint for mix in front.mixes)]))
    for i, checkpoint in enumerate(checkpoints):
        known = [mix for mix in front.mixes if mix.checkpoint == checkpoint and mix.apart(judge) is not None]
        points = [(getattr(mix, over), mix.apart(judge), mix.judged[judge].get("frechet_sd") or 0) for mix in known]
        points = [point for point in points if point[0] is not None]
        if not points:
            continue
        xs, ys, deviations = zip(*points, strict=True)
        costs.extend(xs)
        distances.extend(ys)
        color = LINES[i % len(LINES)]
        ax.errorbar(xs, ys, yerr=deviations, fmt="o", color=color, markersize=3.5, elinewidth=0.8, capsize=1.5, alpha=0.7)
        best = front_of(known, over, judge)
        ax.plot([getattr(mix, over) for mix in best], [mix.apart(judge) or 0.0 for mix in best], color=color, label=checkpoint)
    lines = []
    for number, mix in enumerate(front.front(over, judge), 1):
        at = (getattr(mix, over), mix.apart(judge) or 0.0)
        ax.annotate(str(number), at, (-3, -3), textcoords="offset points", fontsize=7, ha="right", va="top")
        lines.append(f"{number}  {front.label(mix)}")
    key.set_axis_off()
    key.text(0, 1, "\n".join(lines), transform=key.transAxes, fontsize=7, va="top", linespacing=1.5)
    set_costs(ax, costs)
    if max(distances) > LONG * min(distances) > 0:
        ax.set_yscale("log")
