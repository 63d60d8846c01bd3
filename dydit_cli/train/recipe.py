"""What a training run is: a TOML file, checked, with every default written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from dydit_cli.diffusion.schedule import TRAIN_STEPS
from dydit_cli.errors import DyditError
from dydit_cli.recipe_files import Section, Seed, explain, find_recipe, first_fault, parse_setting, read_merged


class ModelRecipe(Section):
    """The static model that `pretrain` starts from random weights; the fields of `DiTConfig`."""

    input_size: int
    patch_size: int
    in_channels: int
    hidden_size: int
    depth: int
    num_heads: int
    num_classes: int
    learn_sigma: bool = True


class TrainRecipe(Section):
    """The optimiser and everything that static and dynamic training share."""

    steps: int = Field(gt=0, description="optimiser steps")
    batch_size: int = Field(default=64, gt=0, description="images")
    lr: float = Field(default=1e-4, gt=0)
    lr_schedule: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    timestep_strata: int = Field(default=4, ge=1, le=TRAIN_STEPS)
    min_snr: float | None = Field(
        default=None, gt=0, description="gamma: a timestep's squared noise errors weigh min(SNR, gamma) / SNR"
    )
    grad_limit: float | None = Field(default=None, gt=0, description="a step whose gradient norm is over it is skipped")
    seed: Seed = 0
    accumulation: int = Field(default=1, ge=1, description="micro-batches that a process cuts its part of a batch into")
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = Field(default=False, description="blocks are computed again in the backward pass")
    compile: bool = Field(default=False, description="torch.compile")
    save_every: int = Field(default=1000, ge=1, description="steps between two saves of the training state")
    keep: int = Field(default=2, ge=1, description="saves that are kept")


class RoutingRecipe(Section):
    """How a DyDiT is brought to its FLOPs ratio; a static model ignores it (the control experiment)."""

    flops_ratio: float = Field(default=0.5, gt=0, le=1, description="lambda")
    weight: float = Field(default=2.0, ge=0, description="w of w (ratio - lambda)^2")
    hold_steps: int = Field(default=100, ge=0, description="steps at target 1")
    warmup_steps: int = Field(default=1000, ge=0, description="steps over which the target falls from 1 to lambda")
    complete_steps: int = Field(default=0, ge=0, description="first steps in which the complete model is trained too")
    router_lr: float | None = Field(default=None, gt=0, description="the routers' own lr; by default the model's")
    noise_off_steps: int = Field(default=0, ge=0, description="last steps over which the Gumbel noise fades to none")
    complete_every: int = Field(default=1, ge=1, description="the complete pass runs on every so-many-th step, weighted by it")
    complete_share: float = Field(
        default=1.0, gt=0, le=1, description="what the complete pass sees of a batch: 1, 1/2, 1/3, ..."
    )
    teacher_weight: float = Field(default=0.0, ge=0, description="weight of the distance to the start model's noise")
    start: Literal["on", "importance"] = Field(
        default="on", description="width routers begin all on, or off where a head or group adds least at a timestep"
    )
    width: Literal["learned", "random", "off"] = Field(
        default="learned", description="heads and channel groups: random ones are on, or (off) all of them: SDT only"
    )
    tokens: Literal["learned", "random", "layers", "off"] = Field(
        default="learned", description="random ones skip the MLP, or all of an image together, or (off) none: TDW only"
    )

    def target(self, step: int) -> float:
        """The ratio asked for at `step`, counted from 0: 1, then linear to lambda, then lambda."""
        if step < self.hold_steps:
            return 1.0
        if step >= self.hold_steps + self.warmup_steps:
            return self.flops_ratio
        return 1.0 + (self.flops_ratio - 1.0) * (step - self.hold_steps) / self.warmup_steps

    def complete_now(self, step: int) -> bool:
        """Whether `step`, counted from 0, runs the complete model too."""
        return step < self.complete_steps and step % self.complete_every == 0


class Recipe(Section):
    """One run; `model` is for `pretrain` alone."""

    data: str = "digits"
    model: ModelRecipe | None = None
    train: TrainRecipe
    routing: RoutingRecipe = RoutingRecipe()

    @model_validator(mode="after")
    def _phases_fit(self) -> Recipe:
        if self.train.lr_warmup_steps > self.train.steps:
            raise ValueError("train.lr_warmup_steps is over train.steps")
        return self


SECTIONS = (Recipe, ModelRecipe, TrainRecipe, RoutingRecipe)


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """`recipe` over another number of steps, its phases stretched in proportion, so that the run keeps its shape."""
    factor = steps / recipe.train.steps

    def stretched(section: TrainRecipe | RoutingRecipe, *names: str) -> dict[str, int]:
        return {name: round(getattr(section, name) * factor) for name in names}

    values = recipe.model_dump()
    values["train"].update(steps=steps, **stretched(recipe.train, "lr_warmup_steps"))
    phases = ("hold_steps", "warmup_steps", "complete_steps", "noise_off_steps")
    values["routing"].update(stretched(recipe.routing, *phases))
    return recipe_from_dict(values, "--steps")


def with_settings(recipe: Recipe, settings: Mapping[str, Any] | Sequence[str], where: str = "--set") -> Recipe:
    """`recipe` with single values replaced: a mapping, or strings `train.lr=1e-4` whose values are written as in TOML."""
    pairs = settings if isinstance(settings, Mapping) else dict(parse_setting(text) for text in settings)
    values = recipe.model_dump()
    for key, value in pairs.items():
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place.get(section)  # type: ignore[assignment]
            if not isinstance(place, dict):
                raise DyditError(f"{where}: no section {section!r} in a recipe; sections are data, model, train, routing")
        place[name] = value
    return recipe_from_dict(values, where)


def recipe_from_dict(values: dict[str, Any], where: str) -> Recipe:
    """Raises `DyditError` in one line, naming the key in `where` and, for an unknown one, the nearest known."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise DyditError(f"{where}: {explain(error, SECTIONS)}") from None


def read_recipe(path: str | Path) -> Recipe:
    """Reads a TOML recipe, with those that it is based on (`train.bases`).

    Raises `DyditError` where one is missing, no TOML, or not a recipe, and names the file that the fault stands in.
    """
    path = find_recipe(path)
    merged = read_merged(path)
    try:
        return Recipe.model_validate(merged.values)
    except ValidationError as error:
        where = merged.file(".".join(str(part) for part in first_fault(error)["loc"]), path)
        raise DyditError(f"{where}: {explain(error, SECTIONS)}") from None
