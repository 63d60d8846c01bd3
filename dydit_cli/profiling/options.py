"""How a profile is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from dydit_cli.diffusion.options import Batch, SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.options import PlanMemory, Tome
from dydit_cli.options import Opt, Seed, Without
from dydit_cli.seeds import check_seed


@dataclass(frozen=True)
class ProfileOptions:
    """`images` are drawn, `classes` (all of them for None) in turn. Token masks are kept of the first `keep_masks` images,
    numbers of tokens of all. `time` runs every step twice more, sparse and static, and adds their seconds. With `tome` a
    static model merges this share of its tokens before attention (`model.merging`), and with a `cache` steps are forecast
    (`model.caching`), from what takes at most `plan_memory` bytes.

    Raises `DyditError` for images under 1.
    """

    images: Annotated[int, Opt("Images to draw and average over, classes in turn.", metavar="N")] = 16
    classes: Sequence[int] | None = None
    settings: Annotated[SamplerSettings, Without("cfg_interval")] = field(default_factory=SamplerSettings)
    tome: Tome = None
    cache: CacheOptions = field(default_factory=CacheOptions)
    plan_memory: PlanMemory = None
    time: Annotated[bool, Opt("Time every step too, as it runs and static: three times the work.")] = False
    keep_masks: Annotated[
        int, Opt("Keep the token masks of the first N images; of all, their numbers.", metavar="N", min=1)
    ] = 64
    batch: Batch = 64
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.images < 1:
            raise DyditError(f"{self.images} images: profile at least 1")
