"""Shifting a DyDiT's router thresholds together until a sampling run has the FLOPs ratio that was asked for.

Training asks for lambda with noise in the routers, over noised images of the data; a sampling run has neither, so its ratio
may end up beside lambda. The shift goes into the routers' biases: every format carries it, and no reader needs to know.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dydit_cli.artifacts.profile import timestep_table
from dydit_cli.checkpoint import lineage
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.generate import cycle_labels
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.config import RoutedConfig
from dydit_cli.model.execution import SparseModel
from dydit_cli.profiling.record import Recorder

TOLERANCE = 0.002  # over the images that are measured; over others, whose tokens are others, a ratio is then within 0.005

FIRST_SHIFT, LARGEST_SHIFT, TRIES = 0.25, 32.0, 12
FIRST_INTERVALS, MOST_ENTRIES = 8, 96  # of a range's table
NARROWEST = 1 / 256  # of a first interval: what changes in less is a jump


@dataclass(frozen=True)
class Calibration:
    """Ratios are of attention and MLP over a sampling run of `images` images; `shift` was added to every router's logits."""

    target: float
    ratio_before: float
    ratio_after: float
    shift: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrate(
    checkpoint: Checkpoint,
    target: float,
    *,
    images: int = 16,
    settings: SamplerSettings = SamplerSettings(),
    seed: int = 0,
    device: str = "auto",
) -> tuple[Checkpoint, Calibration]:
    """`checkpoint` with its routers shifted so that a sampling run's ratio is within 0.005 of `target`, or the nearest
    that a common shift reaches. Raises `DyditError` for a static model or a target out of range."""
    if not 0 < target <= 1:
        raise DyditError(f"FLOPs ratio {target}; it must be over 0 and at most 1")
    model = checkpoint.build()
    if not isinstance(model, DynamicBackbone):
        raise DyditError(f"{checkpoint.path}: is a static model, which has no routers to calibrate")
    if model.config.budgets:
        low, high = model.config.budgets[0], model.config.budgets[-1]
        raise DyditError(
            f"{checkpoint.path}: is of all FLOPs ratios from {low:g} to {high:g}; say --flops-ratio where it is used"
        )
    model = model.to(pick_device(device)).float()
    biases = model.router_biases()
    own = {name: p.detach().clone() for name, p in biases.items()}

    @torch.no_grad()
    def ratio(shift: float) -> float:
        for name, p in biases.items():
            p.copy_(own[name] + shift)
        return sampled_ratio(model, images, settings, seed)

    before = ratio(0.0)
    tried = {0.0: before}
    low, high = _bracket(ratio, tried, target)
    while abs(_best(tried, target)[1] - target) > TOLERANCE and len(tried) < TRIES and low < high:
        middle = (low + high) / 2
        tried[middle] = ratio(middle)
        low, high = (middle, high) if tried[middle] < target else (low, middle)
    shift, after = _best(tried, target)
    result = Calibration(target, before, after, shift, images)
    if shift == 0:
        return checkpoint, result
    shifted: dict[str, Tensor] = {name: w + shift if name in biases else w for name, w in checkpoint.weights.items()}
    step = lineage.entry("calibrate", checkpoint, shift=shift, flops_ratio=target)
    return replace(checkpoint, weights=shifted, lineage=[*checkpoint.lineage, step]), result


def measure_range(
    checkpoint: Checkpoint,
    *,
    images: int = 16,
    settings: SamplerSettings = SamplerSettings(),
    seed: int = 0,
    device: str = "auto",
    most: int = MOST_ENTRIES,
) -> Checkpoint:
    """`checkpoint`, a DyDiT of a range of FLOPs ratios, with a table of what its routers are set to and the ratio of attention
    and MLP that a sampling run then has, the ratios of two entries at most 0.004 apart where `most` entries are enough for
    that, and the widest gaps halved first."""
    config, model = checkpoint.config, checkpoint.build()
    assert isinstance(config, RoutedConfig)
    assert isinstance(model, DynamicBackbone)
    model = model.to(pick_device(device)).float()

    @torch.no_grad()
    def ratio(setting: float) -> float:
        model.set_routers(torch.tensor([setting], device=model.device))
        return sampled_ratio(model, images, settings, seed)

    low, high = config.budgets[0], config.budgets[-1]
    step = (high - low) / FIRST_INTERVALS
    found = {setting: ratio(setting) for setting in (low + i * step for i in range(FIRST_INTERVALS + 1))}
    for end, away in ((low, -step), (high, step)):  # on, until the ends of the range are between two entries
        while (found[end] - end) * away > 0 and len(found) < most:
            end += away
            found[end] = ratio(end)

    def gap(first: float, second: float) -> tuple[float, float, float]:
        """How far two neighbours' ratios are apart, as far as that is in the range; of a jump no more can be known."""
        less, more = sorted(found[setting] for setting in (first, second))
        inside = min(more, high) - max(less, low) if second - first > NARROWEST * step else 0.0
        return -inside, first, second

    gaps = [gap(first, second) for first, second in pairwise(sorted(found))]
    heapify(gaps)
    while len(found) < most and -gaps[0][0] > 2 * TOLERANCE:  # a line is then nowhere further off
        _, first, second = heappop(gaps)
        middle = (first + second) / 2
        found[middle] = ratio(middle)
        heappush(gaps, gap(first, middle))
        heappush(gaps, gap(middle, second))
    measured = tuple(sorted(found.items()))
    step_taken = lineage.entry("measure range", checkpoint, entries=len(measured))
    return replace(checkpoint, config=replace(config, measured=measured), lineage=[*checkpoint.lineage, step_taken])


def sampled_ratio(model: DynamicBackbone, images: int, settings: SamplerSettings, seed: int) -> float:
    """The FLOPs ratio of attention and MLP over a sampling run, without noise in the routers."""
    config = model.config
    recorder = Recorder(SparseModel(model), 1 if settings.for_model(config).cfg == 1 else 2, keep=1)
    recorder.sample(cycle_labels(list(config.class_numbers), images), settings, seed=seed)
    return float(timestep_table(recorder.record(), config)["routed_ratio"].mean())


def _bracket(ratio: Any, tried: dict[float, float], target: float) -> tuple[float, float]:
    """Two shifts with `target` between their ratios, the steps doubling; equal ones where nothing reaches it."""
    if abs(tried[0.0] - target) <= TOLERANCE:
        return 0.0, 0.0
    sign = 1.0 if tried[0.0] < target else -1.0
    inner, step = 0.0, FIRST_SHIFT
    while step <= LARGEST_SHIFT:
        tried[sign * step] = ratio(sign * step)
        if (tried[sign * step] - target) * sign >= 0:
            return min(inner, sign * step), max(inner, sign * step)
        inner, step = sign * step, 2 * step
    return 0.0, 0.0


def _best(tried: dict[float, float], target: float) -> tuple[float, float]:
    return min(tried.items(), key=lambda pair: abs(pair[1] - target))
