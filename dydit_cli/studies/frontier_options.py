"""Which mixes `dydit frontier` measures, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from dydit_cli.diffusion.options import Batch, SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.caching import CacheOptions
from dydit_cli.options import Opt, Seed, Without
from dydit_cli.seeds import check_seed

T = TypeVar("T")


def items(option: str, read: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """What reads `10,6,4`, each part with `read`. Raises `DyditError` for an empty list, and a part that cannot be read."""

    def parse(text: str) -> tuple[T, ...]:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not parts:
            raise DyditError(f"{option}: the list is empty; give one or more, with commas between")
        try:
            return tuple(dict.fromkeys(map(read, parts)))
        except ValueError:
            raise DyditError(f"{option} {text}: write numbers with commas between") from None

    return parse


def _cache(text: str) -> str:
    CacheOptions.parse(text)
    return text


@dataclass(frozen=True)
class FrontierOptions:
    """`flops_ratios` are of models of a range, by default `RATIOS` evenly spread ones. `images` are sampled of each mix, the
    first quarter of them to see whether it can be on a front. Samplers that are not given are the model's own.

    Each of `features` judges `num` samples of the mixes that are on a front of their checkpoint, or at most `near` times as far
    as that is.

    Raises `DyditError` for what cannot be.
    """

    flops_ratios: Annotated[
        tuple[float, ...] | None,
        Opt(
            "Of a DyDiT of a range: FLOPs ratios.", ("--flops-ratio", "--lambda"), metavar="R,R", default="4 of its range",
            parse=items("--flops-ratio", float),
        ),
    ] = None  # fmt: skip
    steps: Annotated[
        tuple[int, ...],
        Opt("Numbers of sampling steps.", metavar="N,N", default="50,20,10,6,4", parse=items("--steps", int)),
    ] = (50, 20, 10, 6, 4)
    samplers: Annotated[
        tuple[str, ...] | None,
        Opt(
            "Samplers of fixed steps.", ("--sampler",), metavar="NAME,NAME", default="ddim; euler in flow matching",
            parse=items("--sampler", str),
        ),
    ] = None  # fmt: skip
    caches: Annotated[
        tuple[str, ...],
        Opt(
            "Caches, as for `dydit sample`; @model keeps the model's output; fora:3+reuse, or reuse, is --reuse-skipped.",
            ("--cache",), metavar="METHOD,METHOD", default="none,fora:3,taylorseer:4:1@model", parse=items("--cache", _cache),
        ),
    ] = ("none", "fora:3", "taylorseer:4:1@model")  # fmt: skip
    reference_steps: Annotated[
        int, Opt("Steps of the complete model's samples, which distances are to.", metavar="N", min=1)
    ] = 50
    images: Annotated[int, Opt("Images of each mix, classes in turn.", metavar="N", min=1)] = 64
    features: Annotated[
        tuple[str, ...],
        Opt(
            "Judges, as for `dydit evaluate`, of what is on a checkpoint's front by the distance, or near it.",
            metavar="JUDGE,JUDGE", default="none", parse=items("--features", str),
        ),
    ] = ()  # fmt: skip
    num: Annotated[int, Opt("Samples of a mix that judges see.", metavar="N", min=2)] = 1000
    reference: Annotated[
        str | None,
        Opt("What judges compare with, as for `dydit evaluate`.", metavar="REF", default="the data of the first judge's own"),
    ] = None
    near: Annotated[
        float, Opt("Judge mixes up to so many times as far as the front at their cost.", metavar="TIMES", min=1)
    ] = 1.25
    vae: Annotated[str | None, Opt("A diffusers autoencoder, to judge models of latents.", metavar="DIR")] = None
    settings: Annotated[SamplerSettings, Without("sampler", "steps", "cfg_interval")] = field(default_factory=SamplerSettings)
    batch: Batch = 64
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("flops_ratios", "steps", "samplers", "caches"):
            if getattr(self, name) == ():
                raise DyditError(f"{name}: the list is empty; give one or more")
        if min(self.images, self.reference_steps, *self.steps) < 1:
            raise DyditError("images and steps must be 1 or more")
        if self.num < 2 or not self.near >= 1:
            raise DyditError(f"num {self.num}, near {self.near:g}: judges see 2 samples or more; near is 1, the front, or more")
        for cache in self.caches:
            CacheOptions.parse(cache)
