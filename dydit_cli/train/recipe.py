"""What a training run is: a TOML file, checked, with every default written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from dydit_cli.diffusion.options import MOST_TIMESTEPS, SamplerSettings, TimestepDraw
from dydit_cli.errors import DyditError
from dydit_cli.model.options import GuidanceChannels
from dydit_cli.recipe_files import (
    KINDS,
    RecipeFile,
    Section,
    Seed,
    explain,
    find_recipe,
    first_fault,
    kind_of,
    parse_setting,
    read_merged,
)

if TYPE_CHECKING:
    from dydit_cli.model.config import ModelConfig


class ModelRecipe(Section):
    """The static model that `pretrain` starts from random weights; `family` is a name in `model.families`.

    Beside what all have, any field of the family's configuration may stand here; it is checked when the model is built.
    """

    model_config = ConfigDict(extra="allow")

    family: str = "dit"
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
    optimizer: Literal["adamw", "muon"] = Field(default="adamw", description="muon: the blocks' matrices step by Muon")
    lr: float = Field(default=1e-4, gt=0)
    lr_schedule: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    timestep_strata: int = Field(default=4, ge=1, le=MOST_TIMESTEPS)
    timestep_draw: TimestepDraw = Field(default="uniform", description="flow matching: uniform, or logit-normal")
    min_snr: float | None = Field(
        default=None, gt=0, description="gamma: a timestep's squared noise errors weigh min(SNR, gamma) / SNR"
    )
    data_weight: float = Field(default=1.0, ge=0, description="of the squared error against the data's noise or velocity")
    teacher_weight: float = Field(default=0.0, ge=0, description="of the squared distance to the teacher's prediction")
    teacher: str | None = Field(default=None, description="a checkpoint; by default the model that the run begins with")
    block_weight: float = Field(
        default=0.0, ge=0, description="of the squared distance to the teacher's block outputs, relative to their mean square"
    )
    cosine_weight: float = Field(
        default=0.0, ge=0, description="of 1 - cosine over the channels of prediction and target (LightningDiT)"
    )
    grad_limit: float | None = Field(default=None, gt=0, description="a step whose gradient norm is over it is skipped")
    seed: Seed = 0
    accumulation: int = Field(default=1, ge=1, description="micro-batches that a process cuts its part of a batch into")
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = Field(default=False, description="blocks are computed again in the backward pass")
    compile: bool = Field(default=False, description="torch.compile")
    save_every: int = Field(default=1000, ge=1, description="steps between two saves of the training state")
    keep: int = Field(default=2, ge=1, description="saves that are kept")
    keep_state: bool = Field(default=False, description="a finished run keeps its last save, for more steps")


class RoutingRecipe(Section):
    """How a DyDiT is brought to its FLOPs ratio; a static model ignores it (the control experiment)."""

    flops_ratio: float = Field(default=0.5, gt=0, le=1, description="lambda")
    largest_ratio: float | None = Field(
        default=None, gt=0, le=1, description="where given, one model is trained for every ratio from flops_ratio to it"
    )
    budgets: int = Field(default=4, ge=2, description="of a range: ratios in a batch, the smallest and the largest among them")
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
    start: Literal["on", "importance"] = Field(
        default="on", description="width routers begin all on, or off where a head or group adds least at a timestep"
    )
    width: Literal["learned", "random", "off"] = Field(
        default="learned", description="heads and channel groups: random ones are on, or (off) all of them: SDT only"
    )
    tokens: Literal["learned", "random", "layers", "off"] = Field(
        default="learned", description="random ones skip the MLP, or all of an image together, or (off) none: TDW only"
    )

    calibrate: bool = Field(
        default=False, description="in the end the routers are shifted until a sampling run has the ratio, see [calibration]"
    )

    def target(self, step: int) -> float:
        """The target ratio at `step`, counted from 0: 1, then linear to lambda, then lambda."""
        if step < self.hold_steps:
            return 1.0
        if step >= self.hold_steps + self.warmup_steps:
            return self.flops_ratio
        return 1.0 + (self.flops_ratio - 1.0) * (step - self.hold_steps) / self.warmup_steps

    @property
    def range(self) -> tuple[float, float] | None:
        """Smallest and largest ratio, where one model is trained for all between."""
        return None if self.largest_ratio is None else (self.flops_ratio, self.largest_ratio)

    def complete_now(self, step: int) -> bool:
        """Whether `step`, counted from 0, runs the complete model too."""
        return step < self.complete_steps and step % self.complete_every == 0


class SamplingSection(Section):
    """How images are sampled."""

    sampler: str | None = Field(default=None, description="by default the usual one of the model's process")
    steps: int | None = Field(default=None, ge=1, description="sampling steps, by default the sampler's usual number")
    cfg: float = Field(default=1.5, ge=1)
    cfg_channels: GuidanceChannels | None = Field(default=None, description="by default those of the model's family")
    time_shift: float | None = Field(default=None, gt=0, description="of flow matching's ODE")

    @property
    def settings(self) -> SamplerSettings:
        """As a command's."""
        return SamplerSettings(**{name: getattr(self, name) for name in SamplingSection.model_fields})

    def for_model(self, config: ModelConfig) -> Self:
        """With the sampler and the channels that a model of `config` is sampled with, where none are given. Raises `DyditError`
        for what its sampler cannot take."""
        ready = self.settings.for_model(config)
        return self.model_copy(update={"sampler": ready.sampler, "cfg_channels": ready.cfg_channels})


class CalibrationRecipe(SamplingSection):
    """The sampling run whose ratio `routing.calibrate` brings to lambda."""

    images: int = Field(default=16, ge=1, description="that are sampled")


class LoraRecipe(Section):
    """Adapters that are trained in the place of the weights, beside the routers (LoRA, arXiv 2106.09685); without a rank there
    are none, and everything is trained."""

    rank: int | None = Field(default=None, ge=1, description="of the matrices beside each Linear of attention and MLP")
    alpha: float | None = Field(default=None, gt=0, description="they are multiplied by alpha / rank; by default by 1")
    lr: float | None = Field(default=None, gt=0, description="the adapters' own lr; by default the model's")
    merge: bool = Field(default=True, description="into the weights in the end; else the run leaves the adapter alone")


class Recipe(RecipeFile):
    """One run; `model` is for `pretrain` alone."""

    kind: ClassVar[str] = "training"

    data: str = "digits"
    model: ModelRecipe | None = None
    train: TrainRecipe
    routing: RoutingRecipe = RoutingRecipe()
    calibration: CalibrationRecipe = CalibrationRecipe()
    lora: LoraRecipe = LoraRecipe()

    @model_validator(mode="after")
    def _phases_fit(self) -> Recipe:
        if self.train.lr_warmup_steps > self.train.steps:
            raise ValueError("train.lr_warmup_steps is over train.steps")
        if not self.train.data_weight and not self.train.teacher_weight:
            raise ValueError("train.data_weight and train.teacher_weight are both 0: nothing is learned")
        if self.lora.rank is None and self.lora != LoraRecipe():
            raise ValueError("[lora] has no rank, without which there are no adapters; give lora.rank")
        low, high = self.routing.flops_ratio, self.routing.largest_ratio
        if high is not None and not low < high:
            raise ValueError(f"routing.largest_ratio {high:g} is not over routing.flops_ratio {low:g}")
        if high is not None and "random" in (self.routing.width, self.routing.tokens):
            raise ValueError("random routers are of one ratio; leave routing.largest_ratio out")
        if not self.train.teacher_weight:
            for name in ("teacher", "block_weight"):
                if getattr(self.train, name):
                    raise ValueError(f"train.{name} needs a train.teacher_weight over 0")
        return self


def for_model(recipe: Recipe, config: ModelConfig) -> Recipe:
    """`recipe` with what is left to the model filled in. Raises `DyditError` for what its process does not take."""
    from dydit_cli.diffusion.process import process_of

    process_of(config, recipe.train.timestep_draw)
    return recipe.model_copy(update={"calibration": recipe.calibration.for_model(config)})


SECTIONS = (Recipe, ModelRecipe, TrainRecipe, RoutingRecipe, CalibrationRecipe, LoraRecipe)


PHASES = (
    ("train", "lr_warmup_steps"), ("routing", "hold_steps"), ("routing", "warmup_steps"), ("routing", "complete_steps"),
    ("routing", "noise_off_steps"),
)  # fmt: skip


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """`recipe` over another number of steps, its phases stretched in proportion, so that the run keeps its shape."""
    factor, values = steps / recipe.train.steps, recipe.model_dump()
    for section, name in PHASES:
        values[section][name] = round(values[section][name] * factor)
    values["train"]["steps"] = steps
    return recipe_from_dict(values, "--steps")


def why_not_more_steps(recipe: Recipe, before: int, taken: int, dynamic: bool) -> str | None:
    """Why the `taken` steps of a run planned for `before` steps are not the first ones of `recipe`, which differs in
    `train.steps` alone; None where they are, to the bit."""
    steps, fade = recipe.train.steps, recipe.routing.noise_off_steps if dynamic else 0
    if steps < taken:
        return f"{taken} steps are taken already"
    if recipe.train.lr_schedule == "cosine" and taken > recipe.train.lr_warmup_steps:
        return "its learning rate falls to 0 over all of its steps (train.lr_schedule)"
    if taken > min(before, steps) - fade:
        return f"its routers' noise fades over the last {fade} steps (routing.noise_off_steps)"
    return None


def set_values(values: dict[str, Any], settings: Mapping[str, Any] | Sequence[str], where: str) -> list[str]:
    """Replaces single values, in place: a mapping, or strings `train.lr=1e-4` whose values are written as in TOML.

    Returns the keys. Raises `DyditError` where one names a section that is none.
    """
    pairs = settings if isinstance(settings, Mapping) else dict(parse_setting(text) for text in settings)
    for key, value in pairs.items():
        section, dot, name = key.partition(".")
        inside = values.setdefault(section, {}) if dot else values
        if not isinstance(inside, dict):
            raise DyditError(f"{where} {key}: {section!r} is no section")
        inside[name or section] = value
    return list(pairs)


def with_settings(recipe: Recipe, settings: Mapping[str, Any] | Sequence[str], where: str = "--set") -> Recipe:
    """`recipe` with single values replaced, see `set_values`."""
    values = recipe.model_dump()
    set_values(values, settings, where)
    return recipe_from_dict(values, where)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"lr": 1}}` as `{"train.lr": 1}`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def defaults(section: Section, prefix: str = "") -> set[str]:
    """The flat names of the values that are as they are without being given. A file that is older than one lacks it."""
    values = section.model_dump(mode="json"), section.model_dump(mode="json", exclude_defaults=True)
    every, given = (flat(part, prefix) for part in values)
    return every.keys() - given.keys()


# on these no step depends: a run may be continued with others
FREE = {"train.save_every", "train.keep", "train.keep_state", "routing.calibrate", "lora.merge"} | defaults(
    CalibrationRecipe(), "calibration."
)


def recipe_from_dict(values: dict[str, Any], where: str) -> Recipe:
    """Raises `DyditError` in one line, naming the key in `where` and, for an unknown one, the nearest known."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise DyditError(f"{where}: {explain(error, SECTIONS)}") from None


def read_recipe(path: str | Path) -> Recipe:
    """Reads a TOML recipe, with those that it is based on.

    Raises `DyditError` where one is missing, no TOML, or not a recipe, and names the file that the fault stands in.
    """
    return read_as(Recipe, SECTIONS, path)


R = TypeVar("R", bound=RecipeFile)


def read_as(cls: type[R], sections: Sequence[type[Section]], path: str | Path, settings: Sequence[str] = ()) -> R:
    """A TOML file with those that it is based on, single values replaced by `settings`, as a `cls` made of `sections`.

    Raises `DyditError` in one line where it is none, naming the file, or `--set`, that the fault stands in.
    """
    path = find_recipe(path)
    merged = read_merged(path)
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in merged.values.items()}
    if (kind := kind_of(values)) != cls.kind:
        raise DyditError(f"{path}: is the recipe of a {kind}, for {KINDS[kind][1]}; name one of a {cls.kind}")
    replaced = set_values(values, settings, "--set")
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        location = ".".join(str(part) for part in first_fault(error)["loc"])
        where = "--set" if any(location.startswith(key) for key in replaced) else merged.file(location, path)
        raise DyditError(f"{where}: {explain(error, sections)}") from None
