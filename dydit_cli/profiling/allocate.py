"""A FLOPs ratio for each timestep of a sampling run, in a DyDiT of a range of ratios.

How far samples go from the complete model's, at equal noise, is measured with one part of the run at a lower ratio and all
else complete. Such distances are taken to add up, and the ratios are chosen by one price of a MAC: each part takes the ratio
at which distance and price are least together, and the price is found at which the run has the ratio asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.artifacts.profile import timestep_table
from dydit_cli.checkpoint import lineage
from dydit_cli.checkpoint.budgets import BUDGETS
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.generate import cycle_labels
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.execution import SparseModel
from dydit_cli.profiling.calibrate import TOLERANCE
from dydit_cli.profiling.record import Recorder

PARTS = 10  # of a run, in which the timesteps have one ratio
TRIES = 16

Pairs = list[tuple[float, float]]


@dataclass(frozen=True)
class Allocation:
    """`pairs` of a timestep and its ratio, rising; `ratio` is the run's, of attention and MLP, and `distance` the mean squared
    distance of its samples to the complete model's; `even_ratio` and `even_distance` are those of one ratio at all timesteps.
    Where that is no worse, the pairs are it."""

    target: float
    pairs: Pairs
    ratio: float
    distance: float
    even_ratio: float
    even_distance: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def allocate(
    checkpoint: Checkpoint,
    target: float,
    *,
    images: int = 32,
    settings: SamplerSettings = SamplerSettings(),
    seed: int = 0,
    device: str = "auto",
    on_run: Callable[[int, int], None] = lambda done, all: None,
) -> tuple[Checkpoint, Allocation]:
    """`checkpoint` with the ratios by timestep at which a sampling run of FLOPs ratio `target` stays nearest to the complete
    model. `on_run` gets how many sampling runs are done, of how many at most.

    Raises `DyditError` for a model of one ratio, a static one, and a target out of the range.
    """
    model = checkpoint.build()
    if not isinstance(model, DynamicBackbone):
        raise DyditError(f"{checkpoint.path}: is a static model, which has no ratios to allocate")
    config = model.config
    config.setting_for(target)  # or it says why not
    model = model.to(pick_device(device)).float()
    labels = cycle_labels(list(config.class_numbers), images)
    levels = np.linspace(config.budgets[0], config.budgets[-1], BUDGETS).tolist()
    runs = 0

    def run(pairs: Pairs) -> tuple[Tensor, dict[float, float]]:
        """Samples, and the ratio at each timestep, times its calls."""
        nonlocal runs
        model.set_allocation(pairs)
        recorder = Recorder(SparseModel(model), 1 if settings.for_model(config).cfg == 1 else 2, keep=1)
        samples = recorder.sample(labels, settings, seed=seed)
        table = timestep_table(recorder.record(), config).groupby("timestep")["routed_ratio"].sum()
        runs += 1
        on_run(min(runs, most), most)
        return samples, {float(str(t)): float(ratio) for t, ratio in table.items()}

    most = 1
    top = levels[-1]
    complete, spent = run([(0.0, top)])
    timesteps = sorted(spent)
    parts = [part.tolist() for part in np.array_split(timesteps, min(PARTS, len(timesteps))) if len(part)]
    most = 1 + len(parts) * (len(levels) - 1) + TRIES
    calls = len(settings.for_model(config).timesteps or timesteps)

    def pairs_of(ratios: Sequence[float]) -> Pairs:
        return [(t, ratio) for part, ratio in zip(parts, ratios, strict=True) for t in part]

    distances, costs = np.zeros((2, len(parts), len(levels)))  # each P K
    for i, part in enumerate(parts):
        for k, level in enumerate(levels):
            if level < top:
                samples, spent = run(pairs_of([level if j == i else top for j in range(len(parts))]))
            else:
                samples, spent = complete, dict.fromkeys(part, 1.0)
            distances[i, k] = (samples - complete).square().mean().item()
            costs[i, k] = sum(spent[t] for t in part) / calls

    def measured(ratios: Sequence[float]) -> tuple[float, float]:
        samples, spent = run(pairs_of(ratios))
        return sum(spent.values()) / calls, (samples - complete).square().mean().item()

    even = [target] * len(parts)
    even_ratio, even_distance = measured(even)
    ratios, ratio, distance = even, even_ratio, even_distance
    aim = target
    for _ in range(TRIES - 1):
        chosen = cheapest(distances, costs, levels, aim)
        found, far = measured(chosen)
        if abs(found - target) <= TOLERANCE:
            if far < even_distance:
                ratios, ratio, distance = chosen, found, far
            break
        aim += target - found  # what was taken to add up does not quite
    pairs = pairs_of(ratios)
    result = Allocation(target, pairs, ratio, distance, even_ratio, even_distance, images)
    step = lineage.entry("allocate", checkpoint, flops_ratio=target, images=images)
    changed = replace(config, allocation=tuple(pairs))
    return replace(checkpoint, config=changed, lineage=[*checkpoint.lineage, step]), result


def cheapest(distances: NDArray[np.float64], costs: NDArray[np.float64], levels: Sequence[float], budget: float) -> list[float]:
    """The ratio of each part, between the levels, at which the distances' sum is least and the costs' sum is `budget`.

    distances, costs: P K, at K rising levels. Between two levels both are taken to be straight, and a distance never rises
    with the cost: what is over the lower convex hull of a part's points is never chosen.
    """
    sides = [_hull(c, d) for c, d in zip(costs, distances, strict=True)]
    # all sides of all hulls, the steepest fall of distance per cost first
    falls = sorted(
        ((d[b] - d[a]) / (c[b] - c[a]), i, a, b)
        for i, (hull, c, d) in enumerate(zip(sides, costs, distances, strict=True))
        for a, b in itertools.pairwise(hull)
    )
    chosen = [float(levels[hull[0]]) for hull in sides]
    left = budget - sum(c[hull[0]] for hull, c in zip(sides, costs, strict=True))
    for _, i, a, b in falls:
        step = costs[i][b] - costs[i][a]
        share = min(1.0, max(0.0, left / step))
        chosen[i] = levels[a] + (levels[b] - levels[a]) * share if share > 0 else chosen[i]
        left -= step * share
        if share < 1:
            break
    return chosen


def _hull(costs: NDArray[np.float64], distances: NDArray[np.float64]) -> list[int]:
    """Indices of the points on the falling part of the lower convex hull, by rising cost."""
    hull: list[int] = []
    for k in np.argsort(costs, kind="stable").tolist():
        if hull and distances[k] >= distances[hull[-1]]:
            continue  # dearer, and no nearer
        while len(hull) > 1 and _over(costs, distances, hull[-2], hull[-1], k):
            hull.pop()
        if hull and costs[k] <= costs[hull[-1]]:
            hull.pop()
        hull.append(k)
    return hull


def _over(costs: NDArray[np.float64], distances: NDArray[np.float64], a: int, b: int, c: int) -> bool:
    """Whether point b is on or over the line from a to c."""
    return bool((distances[b] - distances[a]) * (costs[c] - costs[a]) >= (distances[c] - distances[a]) * (costs[b] - costs[a]))
