"""The mixes that `dydit frontier` is asked for, and what each needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from dydit_cli.artifacts.frontier import Mix
from dydit_cli.checkpoint.budgets import at_ratio
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.lineage import asked_ratio
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.diffusion.options import ReadySettings, SamplerSettings
from dydit_cli.errors import DyditError, naming
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.config import ModelConfig, RoutedConfig
from dydit_cli.profiling.profile import names_of
from dydit_cli.studies.frontier_options import FrontierOptions

RATIOS = 4  # of a range, where none are named


@dataclass(frozen=True)
class Candidate:
    """A mix, and what it needs; `computed` is the share of its model calls that a cache leaves to compute, and `share` about
    what one of these takes of the static model's MACs."""

    mix: Mix
    source: Checkpoint
    settings: ReadySettings
    asked: SamplerSettings
    cache: CacheOptions
    share: float
    computed: float

    @property
    def calls(self) -> float:
        """How often an image runs the model."""
        return self.settings.work * self.computed

    @property
    def forwards(self) -> float:
        """Its cost in forwards of the static model, roughly."""
        return self.calls * self.share

    @cached_property
    def checkpoint(self) -> Checkpoint:
        ratio = self.mix.flops_ratio
        return self.source if ratio is None else at_ratio(self.source, ratio)


def candidates(named: Mapping[str, Checkpoint], options: FrontierOptions) -> list[Candidate]:
    """All mixes by rising cost. A cache that forecasts nothing in so few steps is the mix without it, and left out.

    Raises `DyditError` for a ratio out of a range, a number of steps or a sampler that cannot be, and a cache that fits none.
    """
    found: list[Candidate] = []
    unfit: dict[str, str] = {}
    for name, checkpoint in named.items():
        for ratio, share in ratios_of(checkpoint, options.flops_ratios):
            for sampler in options.samplers or (None,):
                for steps in options.steps:
                    asked = replace(options.settings, sampler=sampler, steps=steps)
                    ready = asked.for_model(checkpoint.config)
                    for cache in options.caches:
                        cached = CacheOptions.parse(cache)
                        try:
                            cached.check(checkpoint.config)
                            schedule = cached.schedule(ready.timesteps, ready.sampler)
                        except DyditError as error:
                            unfit[cache] = str(error)
                            continue
                        computed = 1.0 if schedule is None else sum(schedule.computed) / len(schedule.computed)
                        if schedule is None or computed < 1:
                            mix = Mix(name, ratio, ready.sampler, steps, cache)
                            found.append(Candidate(mix, checkpoint, ready, asked, cached, share, computed))
    for cache in options.caches:
        if cache not in {one.mix.cache for one in found}:
            raise DyditError(unfit.get(cache, f"cache {cache}: computes all of so few steps; give more steps, or leave it out"))
    return sorted(found, key=lambda one: one.forwards)


def ratios_of(checkpoint: Checkpoint, asked: Sequence[float] | None) -> list[tuple[float | None, float]]:
    """The ratios that a checkpoint is set to, None for one that stays as it is, each with its share of attention and MLP."""
    config = checkpoint.config
    if not isinstance(config, RoutedConfig):
        return [(None, 1.0)]
    if not config.budgets or (config.allocation and asked is None):
        return [(None, asked_ratio(checkpoint.lineage) or 1.0)]
    low, high = config.budgets[0], config.budgets[-1]
    with naming(checkpoint.path):
        ratios = asked or [round(ratio, 3) for ratio in torch.linspace(low, high, RATIOS, dtype=torch.float64).tolist()]
        for ratio in ratios:
            config.setting_for(ratio)
    return [(ratio, ratio) for ratio in ratios]


def static_config(checkpoint: Checkpoint) -> ModelConfig:
    """Of the model without routers."""
    config = checkpoint.config
    return config.static() if isinstance(config, RoutedConfig) else config


def read_alike(checkpoints: Sequence[CheckpointLike], reading: LoadOptions) -> dict[str, Checkpoint]:
    """By short names. Raises `DyditError` for models whose samples cannot be compared."""
    loaded = [read(checkpoint, reading) for checkpoint in checkpoints]
    if not loaded:
        raise DyditError("no checkpoint; name one or more")
    first = loaded[0]
    for other in loaded[1:]:
        if static_config(other) != static_config(first) or other.latents != first.latents:
            raise DyditError(f"{other.path}: is of another configuration than {first.path}; a front is of one static model's")
    return dict(zip(names_of([str(one.path) for one in loaded]), loaded, strict=True))
