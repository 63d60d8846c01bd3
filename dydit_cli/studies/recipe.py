"""What a trade-off study is: a TOML file, checked, with every default written here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from dydit_cli.compress.criteria import Method
from dydit_cli.diffusion.sampler import DEFAULT_STEPS, GuidanceChannels, SamplerName, SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.recipe_files import Section, Seed, explain, find_recipe, first_fault, parse_setting, read_merged

Share = Annotated[float, Field(gt=0, le=1)]


class FinetunePart(Section):
    """The budget, equal for all that is fine-tuned, and the recipes, stretched to it."""

    steps: int = Field(gt=0, description="optimiser steps")
    dynamic: str = Field(default="digits/finetune", description="the recipe of a DyDiT")
    static: str = Field(default="digits/control", description="the recipe of the control and of what was pruned")
    calibrate: bool = Field(default=False, description="shift a DyDiT's routers to its lambda afterwards")


class MethodsPart(Section):
    """What is compared with the static model."""

    control: bool = Field(default=True, description="the static model, fine-tuned as long")
    dydit: tuple[Share, ...] = Field(default=(), description="lambdas")
    prune: tuple[Method, ...] = ()
    keep: tuple[Share, ...] | None = Field(default=None, description="shares that pruning keeps; by default the lambdas")
    tome: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(), description="shares of tokens that are merged")

    @property
    def kept(self) -> tuple[float, ...]:
        return self.dydit if self.keep is None else self.keep


class EvaluationPart(Section):
    """How a row is measured."""

    images: int = Field(default=1000, ge=2, description="samples that are judged")
    sampler: SamplerName = "ddim"
    steps: int | None = Field(default=None, ge=1, description="sampling steps, by default the sampler's usual number")
    cfg: float = Field(default=1.5, ge=1)
    cfg_channels: GuidanceChannels = "3"
    features: str = "digits"
    reference: str | None = Field(default=None, description="what samples are compared with, as for `dydit evaluate`")
    vae: str | None = Field(default=None, description="an AutoencoderKL, for models of latents")
    batch: int = Field(default=64, ge=1, description="images drawn at once")
    profiled: int = Field(default=20, ge=1, description="images whose MACs are counted")
    held_out: int = Field(default=360, ge=0, description="held-out images whose loss is taken, as far as there are any")
    kept: int = Field(default=100, ge=1, description="samples of a row that are kept for pictures")

    @property
    def settings(self) -> SamplerSettings:
        """Raises `DyditError` for steps that the sampler cannot take."""
        steps = DEFAULT_STEPS[self.sampler] if self.steps is None else self.steps
        return SamplerSettings(sampler=self.sampler, steps=steps, cfg=self.cfg, cfg_channels=self.cfg_channels)


class TimingPart(Section):
    """How time is taken: sampling runs of the static model and another, in turn."""

    images: int = Field(default=64, ge=1, description="images of a run, all at once")
    repeats: int = Field(default=5, ge=1)


class StudyRecipe(Section):
    """One study. Rows depend on nothing but themselves and what is not in `methods`, `seeds` and `timing`."""

    model: str
    data: str = "digits"
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    keep_checkpoints: bool = Field(default=False, description="of every seed; those of the first are always kept")
    finetune: FinetunePart
    methods: MethodsPart = MethodsPart()
    evaluation: EvaluationPart = EvaluationPart()
    timing: TimingPart = TimingPart()

    @model_validator(mode="after")
    def _each_once(self) -> StudyRecipe:
        methods = self.methods
        lists: dict[str, tuple[Any, ...]] = {
            "seeds": self.seeds,
            "methods.dydit": methods.dydit,
            "methods.prune": methods.prune,
            "methods.keep": methods.kept,
            "methods.tome": methods.tome,
        }
        for name, values in lists.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice")
        if methods.prune and not methods.kept:
            raise ValueError("methods.prune needs shares to keep: methods.keep, or the lambdas methods.dydit")
        return self


SECTIONS = (StudyRecipe, FinetunePart, MethodsPart, EvaluationPart, TimingPart)


def read_study(path: str | Path, settings: Sequence[str] = ()) -> StudyRecipe:
    """Reads a study's TOML file with those that it is based on; `settings` such as `evaluation.images=100` replace values.

    Raises `DyditError` in one line where it is missing, no TOML or no study, naming the file, or `--set`, at fault.
    """
    path = find_recipe(path)
    merged = read_merged(path)
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in merged.values.items()}
    replaced = dict(parse_setting(text) for text in settings)
    for key, value in replaced.items():
        section, dot, name = key.partition(".")
        place = values.setdefault(section, {}) if dot else values
        if not isinstance(place, dict):
            raise DyditError(f"--set {key}: {section!r} is no section of a study")
        place[name or section] = value
    try:
        return StudyRecipe.model_validate(values)
    except ValidationError as error:
        location = ".".join(str(part) for part in first_fault(error)["loc"])
        where = "--set" if any(location.startswith(key) for key in replaced) else merged.file(location, path)
        raise DyditError(f"{where}: {explain(error, SECTIONS)}") from None
