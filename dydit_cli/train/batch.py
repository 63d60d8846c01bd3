"""What one step is computed from, drawn for the whole batch however many processes and micro-batches share it.

Legend: B batch, C channels, S size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dydit_cli.data.dataset import BatchStream, Dataset
from dydit_cli.diffusion.process import process_of
from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig, RoutedConfig
from dydit_cli.model.routers import GateNoise
from dydit_cli.train.recipe import Recipe, RoutingRecipe


@dataclass(frozen=True)
class Batch:
    """x0, noise: B C S S; t, y: B. `gates` is the routers' noise, None for a static model; `ratios` (G,) are the FLOPs ratios
    that groups of the global batch are to have, one for all but in a model of a range, and `group` (B,) is each sample's.

    `complete` (B, bool, always on the cpu) marks the samples that the complete model sees too, None where it sees none.
    """

    x0: Tensor
    t: Tensor
    y: Tensor
    noise: Tensor
    gates: GateNoise | None = None
    complete: Tensor | None = None
    ratios: Tensor | None = None
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def select(self, samples: slice) -> Batch:
        """The part that `samples` cuts out."""
        whole: dict[str, Any] = {"ratios": self.ratios, "gates": None if self.gates is None else self.gates.select(samples)}
        return self._each(lambda tensor: tensor[samples], **whole)

    def to(self, device: torch.device) -> Batch:
        as_it_is: dict[str, Any] = {"complete": self.complete, "gates": None if self.gates is None else self.gates.to(device)}
        return self._each(lambda tensor: tensor.to(device, non_blocking=True), **as_it_is)

    def _each(self, change: Callable[[Tensor], Tensor], **given: Any) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in given}
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in values.items()}
        return Batch(**given, **changed)


class TrainingBatches:
    """A run's batches, step by step. All chance is drawn here, on the cpu, under the recipe's seed, for whole batches;
    what comes back is the `part` of one process, and only its images are read.

    Raises `DyditError` where the complete pass would see no sample at all.
    """

    def __init__(self, data: Dataset, config: ModelConfig, recipe: Recipe, part: slice = slice(None)) -> None:
        self.config, self.recipe, self.part = config, recipe, part
        self._process = process_of(config, recipe.train.timestep_draw)
        self._generator = torch.Generator().manual_seed(recipe.train.seed)
        self._gates = torch.Generator().manual_seed(recipe.train.seed)
        self._stream = BatchStream(data, recipe.train.batch_size, self._generator, part)
        if recipe.routing.complete_steps:
            complete_count(recipe.train.batch_size, recipe.routing)

    def __call__(self, step: int) -> Batch:
        """The batch of `step`, counted from 0; steps come in their order."""
        config, settings, routing = self.config, self.recipe.train, self.recipe.routing
        size = settings.batch_size
        x0, y = next(self._stream)
        t = self._process.draw(size, settings.timestep_strata, self._generator)
        dropped = torch.rand(size, generator=self._generator) < settings.label_dropout
        y = torch.where(dropped[self.part], torch.full_like(y, config.null_class), y)
        noise = torch.randn((size, *x0.shape[1:]), generator=self._generator)
        gates = complete = ratios = group = None
        if isinstance(config, RoutedConfig):
            gates = GateNoise.draw(config, size, self._gates, self._noise_scale(step)).select(self.part)
            if routing.complete_now(step):
                complete = complete_samples(size, routing, settings.timestep_strata, step)[self.part]
            ratios, every = self._ratios(step)
            group = every[self.part]
        return Batch(x0, t[self.part], y, noise[self.part], gates, complete, ratios, group)

    def _ratios(self, step: int) -> tuple[Tensor, Tensor]:
        """What the groups of a batch are to have, and each sample's group, whose timesteps are of all strata.

        Of a range they are the smallest, the largest, and random ones between (the sandwich rule, arXiv 1903.05134).
        """
        settings, routing = self.recipe.train, self.recipe.routing
        low, size = routing.target(step), settings.batch_size
        if routing.largest_ratio is None:
            return torch.tensor([low]), torch.zeros(size, dtype=torch.long)
        low, between = min(low, routing.largest_ratio), routing.budgets - 2
        shares = torch.arange(between) + torch.rand(between, generator=self._gates)
        shares = torch.cat([torch.zeros(1), shares / max(1, between), torch.ones(1)])
        group = torch.arange(size) // settings.timestep_strata % routing.budgets
        return low + (routing.largest_ratio - low) * shares, group

    def _noise_scale(self, step: int) -> float:
        """1, falling over the run's last `noise_off_steps` to 0 in the very last."""
        fade = self.recipe.routing.noise_off_steps
        return min(1.0, (self.recipe.train.steps - step - 1) / fade) if fade else 1.0

    def state(self) -> dict[str, Any]:
        """Everything that the batches to come depend on: tensors, and `images`, the number in the data."""
        stream = self._stream.state()
        return {**stream, "generator": self._generator.get_state(), "gates": self._gates.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after the step at which `state` was taken; raises `DyditError` where the data have changed."""
        self._stream.restore(state)
        self._generator.set_state(state["generator"])
        self._gates.set_state(state["gates"])


def complete_count(batch: int, routing: RoutingRecipe) -> int:
    """How many samples of a batch the complete pass sees; raises `DyditError` for none."""
    count = batch // round(1 / routing.complete_share)
    if not count:
        raise DyditError(f"routing.complete_share {routing.complete_share:g} of {batch} images is none; raise one of them")
    return count


def complete_samples(batch: int, routing: RoutingRecipe, strata: int, step: int) -> Tensor:
    """(batch,) bool: one sample of every 1/share in a row, the place in the row moving so that all strata have their turn
    within a step, and all samples over the steps."""
    row = round(1 / routing.complete_share)
    picked = torch.arange(complete_count(batch, routing))
    place = (picked // (strata // math.gcd(strata, row)) + step // routing.complete_every) % row
    chosen = torch.zeros(batch, dtype=torch.bool)
    chosen[picked * row + place] = True
    return chosen
