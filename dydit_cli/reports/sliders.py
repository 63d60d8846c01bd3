"""What one DyDiT of a range does at several FLOPs ratios, behind one slider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dydit_cli.figures.base import find_figure
from dydit_cli.reports.section import Frame, Section, Slider

MOVED = "architecture"  # the figure that a slider moves


def budget_of(record: Mapping[str, Any]) -> tuple[str, float] | None:
    """The model and the FLOPs ratio that it was set to; None of a model that has one ratio or none."""
    return (str(record["checkpoint"]), float(record["flops_ratio"])) if "flops_ratio" in record else None


def sliders(sections: Sequence[Section]) -> tuple[list[Slider], list[Section]]:
    """A slider for every model that is there at two ratios or more, and the sections without what it shows."""
    models: dict[str, set[float]] = {}
    for one in sections:
        if one.budget is not None:
            models.setdefault(one.budget[0], set()).add(one.budget[1])
    title = find_figure(MOVED).title
    found, rest = [], list(sections)
    for model, stops in models.items():
        if len(stops) < 2:
            continue
        frames = []
        for stop in sorted(stops):
            own = [i for i, one in enumerate(rest) if one.budget == (model, stop)]
            frames.append(
                Frame(
                    stop,
                    metrics=[metric for i in own for metric in rest[i].metrics],
                    figures=[figure for i in own for figure in rest[i].figures if figure.title == title],
                    galleries=[gallery for i in own for gallery in rest[i].galleries],
                )
            )
            for i in own:
                left = [figure for figure in rest[i].figures if figure.title != title]
                rest[i] = replace(rest[i], metrics=(), figures=left, galleries=())
        found.append(Slider(model, "FLOPs ratio", frames))
    return found, rest
