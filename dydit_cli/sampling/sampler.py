"""A checkpoint that draws: any slice of a run's images, the same ones whichever process, batch or order draws them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.export import DTYPES, DtypeName
from dydit_cli.data.vae import Decode, load_vae
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.generate import Progress, check_labels, generate
from dydit_cli.diffusion.sampler import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.config import DiTConfig
from dydit_cli.model.dit import DiT
from dydit_cli.model.execution import Executable, Execution, executor
from dydit_cli.model.sparse import SparseDyDiT
from dydit_cli.model.tome import Merging
from dydit_cli.pixels import to_pixels
from dydit_cli.seeds import check_seed

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class SamplingConfig:
    """How a run's images are drawn: `classes` in turn (all of them for None), `batch` at once, each with its own seed.

    The model runs in `dtype`; the sampler's state and the VAE are float32. `vae` decodes latents: a diffusers
    AutoencoderKL folder or hub id. `compile`, `plan_memory` (bytes) and `tome` are `model.sparse.executor`'s.
    """

    settings: SamplerSettings = field(default_factory=SamplerSettings)
    classes: Sequence[int] | None = None
    seed: int = 0
    execution: Execution = "sparse"
    dtype: DtypeName = "fp32"
    vae: str | Path | None = None
    batch: int = 64
    device: str = "auto"
    compile: bool = False
    plan_memory: int | None = None
    tome: float | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.dtype not in DTYPES:
            raise DyditError(f"no dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class ImageSampler:
    """A model on its device, ready to draw; image i of the run is of class `classes[i % len(classes)]`."""

    model: Executable
    how: SamplingConfig
    classes: list[int]
    decode: Decode | None

    def labels(self, first: int, count: int) -> Tensor:
        """(count,) classes of the images `first`, `first` + 1, ..."""
        return torch.tensor([self.classes[i % len(self.classes)] for i in range(first, first + count)])

    def samples(self, first: int, count: int, on_progress: OnProgress | None = None) -> Tensor:
        """The model's own samples of these images, latents or pixels: count C S S, float32 on cpu."""
        how = self.how
        labels = self.labels(first, count)
        return run_sampler(self.model, labels, how.settings, first, how.batch, how.seed, on_progress)

    def pixels(self, samples: Tensor) -> NDArray[np.uint8]:
        """M C S S -> M S S C, decoded where they are latents, a batch at a time."""
        parts = samples.split(self.how.batch)
        return np.concatenate([to_pixels((self.decode(part) if self.decode else part).numpy()) for part in parts])


def open_sampler(loaded: Checkpoint, how: SamplingConfig) -> ImageSampler:
    """Builds the model on its device. Raises `DyditError` for an unknown class, or a latent model without a VAE.

    On cuda float32 products are TF32's from here on, as in PyTorch's own convolutions.
    """
    place, vae, classes = pick_device(how.device), vae_of(loaded, how), classes_of(loaded.config, how)
    check_labels(torch.tensor(classes), loaded.config.null_class)
    if place.type == "cuda":
        torch.set_float32_matmul_precision("high")
    model = loaded.build().to(place, DTYPES[how.dtype])
    runner = executor(model, how.execution, compile=how.compile, plan_memory=how.plan_memory, tome=how.tome)
    return ImageSampler(runner, how, classes, load_vae(vae, place) if vae is not None else None)


def protocol(loaded: Checkpoint, how: SamplingConfig) -> dict[str, Any]:
    """All that the images depend on, but for rounding: for samples.json. Raises `DyditError` for what cannot be drawn."""
    settings, vae = how.settings, vae_of(loaded, how)
    if how.tome:
        Merging.of(loaded.config, how.tome)
    return {
        "checkpoint": str(loaded.path),
        "classes": classes_of(loaded.config, how),
        "sampler": settings.sampler,
        "steps": settings.steps,
        "cfg": settings.cfg,
        "cfg_channels": settings.cfg_channels,
        "cfg_interval": list(settings.cfg_interval),
        "spacing": settings.timestep_spacing,
        "execution": how.execution if loaded.config.kind == "dydit" else "static",
        "tome": how.tome or None,
        "dtype": how.dtype,
        "seed": how.seed,
        "vae": None if vae is None else str(vae),
    }


def classes_of(config: DiTConfig, how: SamplingConfig) -> list[int]:
    """The classes that are drawn in turn."""
    return list(how.classes or range(config.num_classes))


def vae_of(loaded: Checkpoint, how: SamplingConfig) -> str | Path | None:
    """The VAE that is asked for, or for latents the checkpoint's own; raises `DyditError` for latents without one."""
    if how.vae is not None or loaded.config.in_channels in (1, 3):
        return how.vae
    if loaded.vae is None:
        raise DyditError(
            f"{loaded.path}: makes latents of {loaded.config.in_channels} channels; "
            "give the VAE that decodes them with --vae DIR"
        )
    return loaded.vae


def draw(
    model: DiT,
    labels: Tensor,
    settings: SamplerSettings,
    *,
    execution: Execution = "sparse",
    batch: int = 64,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> tuple[Tensor, float]:
    """Samples of `model` for labels (M,): M C S S, float32 on cpu, and the seconds that they took."""
    runner = executor(model, execution)
    start = time.perf_counter()
    samples = run_sampler(runner, labels, settings, 0, batch, seed, on_progress)
    return samples, time.perf_counter() - start


def run_sampler(
    model: Executable,
    labels: Tensor,
    settings: SamplerSettings,
    first: int,
    batch: int,
    seed: int,
    on_progress: OnProgress | None,
) -> Tensor:
    """`generate` with what the model itself tells: its sizes, device and dtype."""
    config, weight = model.config, next(model.parameters())
    if isinstance(model, SparseDyDiT):
        model.plan(settings.timesteps)
    return generate(
        model,
        labels,
        (config.in_channels, config.input_size, config.input_size),
        settings,
        null_class=config.null_class,
        seed=seed,
        first=first,
        batch=batch,
        device=weight.device,
        dtype=weight.dtype,
        on_progress=on_progress,
    )
