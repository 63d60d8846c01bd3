"""The best mix for a cost, from a front that is stored with a checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace

from dydit_cli.artifacts.frontier import Frontier, MeasuredMix, Over
from dydit_cli.checkpoint.budgets import at_ratio
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.files import sha256
from dydit_cli.model.caching import CacheOptions
from dydit_cli.sampling.options import SamplingConfig


def stored_front(loaded: Checkpoint) -> Frontier:
    """Raises `DyditError` where none is stored with the checkpoint, or that of other weights."""
    make = f"make one: dydit frontier {loaded.path} --store --out DIR"
    if loaded.file is None or not Frontier.fits(loaded.file.parent):
        raise DyditError(f"{loaded.path}: no front is stored with it; {make}")
    front = Frontier.read(loaded.file.parent)
    if front.summary.get("checkpoint_sha256") != sha256(loaded.file):
        raise DyditError(f"{loaded.path}: the front that is stored with it is of other weights; {make}")
    return front


def best_within(loaded: Checkpoint, front: Frontier, over: Over, budget: float) -> MeasuredMix:
    """The nearest mix whose cost, or seconds per image, are at most `budget`, by the front's main judge, or where it has none
    by the distance. Raises `DyditError` where none is so cheap."""
    points = front.front(over, front.main)
    if not points:
        raise DyditError(f"{loaded.path}: its front has no seconds; measure them: dydit frontier without --no-time")
    fitting = [mix for mix in points if getattr(mix, over) <= budget]
    if not fitting:
        low, high = (f"{getattr(mix, over):.3g}" for mix in (points[0], points[-1]))
        name, unit = ("cost", "") if over == "cost" else ("seconds", " s per image")
        raise DyditError(f"--{name} {budget:g}: the front of {loaded.path} is from {low} to {high}{unit}; give {low} or more")
    return fitting[-1]


def with_mix(
    loaded: Checkpoint, front: Frontier, mix: MeasuredMix, config: SamplingConfig, kept: Collection[str]
) -> tuple[Checkpoint, SamplingConfig]:
    """What is sampled then, and how: as the front was measured, but for those settings of the sampler that are `kept`."""
    own = {field.name: getattr(config.settings, field.name) for field in fields(SamplerSettings) if field.name in kept}
    settings = SamplerSettings(**{**front.summary["settings"], **own, "sampler": mix.sampler, "steps": mix.steps})
    set_to = loaded if mix.flops_ratio is None else at_ratio(loaded, mix.flops_ratio)
    return set_to, replace(config, settings=settings, cache=CacheOptions.parse(mix.cache))
