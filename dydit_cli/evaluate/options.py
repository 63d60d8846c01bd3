"""What the diffusion loss is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dydit_cli.diffusion.options import MOST_TIMESTEPS, parse_timestep
from dydit_cli.errors import DyditError
from dydit_cli.options import Opt, Seed
from dydit_cli.seeds import check_seed

NOISE_SHARES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.95)  # of the way from data to noise, where maps are drawn

MAPS_AT = ",".join(f"{share * MOST_TIMESTEPS:g}" for share in NOISE_SHARES)


def parse_timesteps(text: str) -> tuple[float, ...]:
    """`20,100,500` or `0.05,0.5` as numbers; what can be a whole number is one. Raises `DyditError` for anything else."""
    try:
        return tuple(parse_timestep(part) for part in text.split(","))
    except ValueError:
        raise DyditError(f"--maps-at {text}: write timesteps, for instance 20,100,500 or 0.05,0.5") from None


@dataclass(frozen=True)
class LossSettings:
    """`timesteps` of them, evenly over the schedule and both ends among them, on `images` images; maps at the timesteps
    `maps_at` (None for the usual ones) of `map_images` images, means over `map_noises` noises. Everything is drawn under
    `seed`.

    Raises `DyditError` for what is out of range.
    """

    images: Annotated[int, Opt("Real images to average over.", metavar="N", min=1)] = 32
    timesteps: Annotated[int, Opt("Timesteps, evenly over the schedule, 1 to 1000.", metavar="N")] = MOST_TIMESTEPS
    maps_at: Annotated[
        tuple[float, ...] | None,
        Opt(
            "Where the loss of each patch is kept.",
            metavar="T,T,...",
            default=f"{MAPS_AT}; in flow matching as near to noise",
            parse=parse_timesteps,
        ),
    ] = None
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
