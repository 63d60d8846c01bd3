"""How a checkpoint is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args

from dydit_cli.diffusion.options import Batch, SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.options import EXECUTIONS, Execution, PaddedOptions, PlanMemory, Tome
from dydit_cli.options import Device, DtypeName, Opt, Seed
from dydit_cli.seeds import check_seed


@dataclass(frozen=True)
class SamplingConfig:
    """How a run's images are drawn: `classes` in turn (all of them for None), `batch` at once, each with its own seed.

    The model runs in `dtype`; the sampler's state and the VAE are float32. `vae` decodes latents: a diffusers
    autoencoder's folder or hub id. `execution`, `compile`, `plan_memory` (bytes), `padded`, `tome` and `cache` are
    `model.execution.executor`'s.
    """

    settings: SamplerSettings = field(default_factory=SamplerSettings)
    classes: Sequence[int] | None = None
    seed: Seed = 0
    execution: Annotated[
        Execution,
        Opt(f"{'; '.join(f'{name} {kind.help}' for name, kind in EXECUTIONS.items())}.", choices=EXECUTIONS.keys),
    ] = "sparse"
    padded: PaddedOptions = field(default_factory=PaddedOptions)
    dtype: Annotated[DtypeName, Opt("The model runs in fp32, bf16 or fp16; the sampler in fp32.")] = "fp32"
    vae: Annotated[
        str | Path | None, Opt("A diffusers autoencoder, for models of latents: a folder or hub id.", metavar="DIR")
    ] = None
    batch: Batch = 64
    device: Device = "auto"
    compile: Annotated[bool, Opt("Let torch.compile fuse what it can: for long runs on a GPU.")] = False
    plan_memory: PlanMemory = None
    tome: Tome = None
    cache: CacheOptions = field(default_factory=CacheOptions)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.dtype not in get_args(DtypeName):
            raise DyditError(f"no dtype {self.dtype!r}; choose one of {', '.join(get_args(DtypeName))}")
