"""What a trade-off study is: a TOML file, checked, with every default written here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from dydit_cli.compress.methods import pruning_methods
from dydit_cli.diffusion.options import SAMPLERS
from dydit_cli.errors import DyditError
from dydit_cli.model.caching import CacheOptions
from dydit_cli.recipe_files import RecipeFile, Section, Seed
from dydit_cli.train.recipe import SamplingSection, read_as

Share = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=1)]


def _pruning(name: str) -> str:
    if name not in pruning_methods():
        *names, last = map(repr, pruning_methods())
        raise ValueError(f"input should be {', '.join(names)} or {last}")
    return name


def _cache(text: str) -> str:
    try:
        keeps = CacheOptions.parse(text).keeps
    except DyditError as error:
        raise ValueError(str(error)) from None
    if not keeps:
        raise ValueError("rows without a cache are there already; leave it out")
    return text


def _static_cache(text: str) -> str:
    if CacheOptions.parse(text).reuse_skipped:
        raise ValueError("a static model has no tokens that skip an MLP; name it under methods.dydit_cache")
    return text


Cache = Annotated[str, AfterValidator(_cache)]

StaticCache = Annotated[Cache, AfterValidator(_static_cache)]


class FinetunePart(Section):
    """The budget, equal for all that is fine-tuned, and the recipes, stretched to it."""

    steps: int = Field(gt=0, description="optimiser steps")
    dynamic: str = Field(default="digits/finetune", description="the recipe of a DyDiT")
    static: str = Field(default="digits/control", description="the recipe of the control and of what was pruned")
    calibrate: bool = Field(default=False, description="shift a DyDiT's routers to its lambda in the end")
    range: tuple[Share, Share] = Field(default=(0.3, 1.0), description="FLOPs ratios that methods.range is trained for")
    range_steps: int | None = Field(default=None, gt=0, description="steps of a DyDiT of a range; by default `steps`")


class MethodsPart(Section):
    """What is compared with the static model."""

    control: bool = Field(default=True, description="the static model, fine-tuned as long")
    dydit: tuple[Share, ...] = Field(default=(), description="lambdas")
    range: tuple[Share, ...] = Field(default=(), description="FLOPs ratios at which the DyDiT of a range is measured")
    prune: tuple[Annotated[str, AfterValidator(_pruning)], ...] = Field(default=(), description="methods of pruning")
    keep: tuple[Share, ...] | None = Field(default=None, description="shares that pruning keeps; by default the lambdas")
    tome: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(), description="shares of tokens that are merged")
    steps: tuple[Steps, ...] = Field(default=(), description="sampling steps of the static model as it is")
    dydit_steps: tuple[Steps, ...] = Field(default=(), description="sampling steps that each DyDiT is measured with as well")
    cache: tuple[StaticCache, ...] = Field(
        default=(), description="caches of the static model as it is: fora:3, or fora:3@model"
    )
    dydit_cache: tuple[Cache, ...] = Field(
        default=(), description="as cache, of each DyDiT; fora:3+reuse, reuse: skipped tokens keep outputs"
    )

    @property
    def kept(self) -> tuple[float, ...]:
        return self.dydit if self.keep is None else self.keep


class EvaluationPart(SamplingSection):
    """How a row is measured."""

    images: int = Field(default=1000, ge=2, description="samples that are evaluated")
    features: str | tuple[str, ...] = Field(default="digits", description="the judge, or several: the first is the main one")
    reference: str | None = Field(default=None, description="what samples are compared with, as for `dydit evaluate`")
    vae: str | None = Field(default=None, description="an AutoencoderKL, for models of latents")
    batch: int = Field(default=64, ge=1, description="images sampled at once")
    profiled: int = Field(default=20, ge=1, description="images whose MACs are counted")
    held_out: int = Field(default=360, ge=0, description="held-out images whose loss is taken, as far as there are any")
    kept: int = Field(default=100, ge=1, description="samples of a row that are kept for pictures")

    @field_validator("features")
    @classmethod
    def _one_by_its_name(cls, features: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """One judge is the same study, however it is written."""
        if not features:
            raise ValueError("input should name a judge")
        if len(set(features)) < len(features) and not isinstance(features, str):
            raise ValueError("input should name each judge once")
        return features[0] if not isinstance(features, str) and len(features) == 1 else features

    @property
    def judges(self) -> tuple[str, ...]:
        """Whose features samples are compared in, the main one first."""
        return (self.features,) if isinstance(self.features, str) else self.features

    @property
    def usual_steps(self) -> int | None:
        """Of every row that is not sampled with fewer; None where the sampler is not known yet, or chooses."""
        return self.steps or (SAMPLERS[self.sampler].steps if self.sampler in SAMPLERS else None)


class TimingPart(Section):
    """How time is taken: sampling runs of the static model and another, in turn."""

    images: int = Field(default=64, ge=1, description="images of a run, all at once")
    repeats: int = Field(default=5, ge=1)


class StudyRecipe(RecipeFile):
    """One study. Rows depend on nothing but themselves and what is not in `methods`, `seeds` and `timing`."""

    kind: ClassVar[str] = "study"

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
        methods = {f"methods.{name}": value for name, value in self.methods}
        for name, values in {"seeds": self.seeds, **methods}.items():
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice")
        if self.methods.prune and not self.methods.kept:
            raise ValueError("methods.prune needs shares to keep: methods.keep, or the lambdas methods.dydit")
        low, high = self.finetune.range
        if not all(low <= ratio <= high for ratio in self.methods.range):
            raise ValueError(f"methods.range must be in finetune.range, {low:g} to {high:g}")
        return self


SECTIONS = (StudyRecipe, FinetunePart, MethodsPart, EvaluationPart, TimingPart)

# settings that no row depends on: with others, rows are added, or left out of the tables
FREE = {"seeds", "keep_checkpoints"} | {
    f"{section}.{name}" for section, part in (("methods", MethodsPart), ("timing", TimingPart)) for name in part.model_fields
}


def read_study(path: str | Path, settings: Sequence[str] = ()) -> StudyRecipe:
    """Reads a study's TOML file with those that it is based on; `settings` such as `evaluation.images=100` replace values.

    Raises `DyditError` in one line where it is missing, no TOML or no study, naming the file, or `--set`, at fault.
    """
    return read_as(StudyRecipe, SECTIONS, path, settings)
