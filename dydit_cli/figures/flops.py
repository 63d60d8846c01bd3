"""MACs at every timestep, by part, against the static model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from dydit_cli.figures.base import figure
from dydit_cli.figures.style import BLUE, GREEN, ORANGE, new_figure
from dydit_cli.units import scale_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dydit_cli.artifacts.profile import Profile

REST = "routers, adaLN, norms, embedders"

MACS = "macs_per_forward_and_image"


def flops_table(profile: Profile) -> pd.DataFrame:
    """One row a sampling step and part: attention, MLP, the rest, their sum (`dynamic model`) and the `static model`."""
    table = profile.table
    attention, mlp, dynamic = table["attention_macs"], table["mlp_macs"], table["dynamic_macs"]
    parts = {
        "attention": attention,
        "MLP": mlp,
        REST: dynamic - attention - mlp,
        "dynamic model": dynamic,
        "static model": table["static_macs"],
    }
    steps = table[["step", "timestep"]]
    return pd.concat([steps.assign(part=part, **{MACS: macs}) for part, macs in parts.items()], ignore_index=True)


@figure(
    "flops",
    "profile",
    title="MACs at every timestep",
    caption="The multiply-accumulates of one forward pass at each sampling step, by part, under the static model's line; the "
    "dotted line is the mean over the steps.",
    table=flops_table,
    order=1,
)
def draw_flops(profile: Profile) -> Figure:
    """A stack of attention, MLP and the rest over the sampling steps, under the static model's line."""
    summary = profile.summary
    size, prefix = scale_of(summary["macs_static"])
    # Heun calls the model twice at a timestep
    table = flops_table(profile).pivot_table(index="timestep", columns="part", values=MACS) / size
    figure = new_figure(6.5, 3.6)
    ax = figure.subplots()
    ax.stackplot(
        table.index,
        table["attention"],
        table["MLP"],
        table[REST],
        colors=[BLUE, ORANGE, GREEN],
        labels=["attention", "MLP", REST],
        step="mid",
    )
    left = table.index.min() if profile.timeline.rising else table.index.max()
    for macs, text, line in (
        (summary["macs_static"], " static model", "--"),
        (summary["macs_dynamic"], f" mean over the steps: {summary['ratio']:.3f} of static", ":"),
    ):
        ax.axhline(macs / size, color="black", linestyle=line, linewidth=1.1)
        ax.text(left, macs / size, text, va="bottom", ha="left")
    if not profile.timeline.rising:
        ax.invert_xaxis()
    ax.margins(x=0)
    ax.set_ylim(0, 1.32 * summary["macs_static"] / size)
    ax.set_xlabel(profile.timeline.label)
    ax.set_ylabel(f"{prefix}MACs per forward and image")
    ax.legend(loc="upper center", ncols=3, fontsize=8)
    return figure
