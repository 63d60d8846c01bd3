"""What the diffusion loss is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dydit_cli.diffusion.options import MOST_TIMESTEPS
from dydit_cli.errors import DyditError
from dydit_cli.options import Opt, Seed
from dydit_cli.seeds import check_seed

MAPS_AT = (20, 100, 250, 500, 750, 950)


def parse_timesteps(text: str) -> tuple[int, ...]:
    """`20,100,500` as numbers. Raises `DyditError` for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise DyditError(f"--maps-at {text}: write timesteps, for instance 20,100,500")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class LossSettings:
    """`timesteps` of them, evenly over the schedule and both ends among them, on `images` images; maps at the timesteps
    `maps_at` of `map_images` images, means over `map_noises` noises. Everything is drawn under `seed`.

    Raises `DyditError` for what is out of range.
    """

    images: Annotated[int, Opt("Real images to average over.", metavar="N", min=1)] = 32
    timesteps: Annotated[int, Opt("Timesteps, evenly over the schedule, 1 to 1000.", metavar="N")] = MOST_TIMESTEPS
    maps_at: Annotated[
        tuple[int, ...],
        Opt(
            "Where the loss of each patch is kept.",
            metavar="T,T,...",
            default=",".join(map(str, MAPS_AT)),
            parse=parse_timesteps,
        ),
    ] = MAPS_AT
    map_images: Annotated[int, Opt("Images with maps, of different classes.", metavar="N", min=1)] = 6
    map_noises: Annotated[int, Opt("Noises that a map is the mean over.", metavar="N", min=1)] = 32
    seed: Seed = 0
    batch: Annotated[int, Opt("Images at once.", min=1)] = 64

    def __post_init__(self) -> None:
        for what in ("images", "map_images", "map_noises", "batch"):
            if getattr(self, what) < 1:
                raise DyditError(f"{what.replace('_', ' ')} {getattr(self, what)}: take at least 1")
        check_seed(self.seed)
        if not 1 <= self.timesteps <= MOST_TIMESTEPS:
            raise DyditError(f"{self.timesteps} timesteps; measure at 1 to {MOST_TIMESTEPS}")
