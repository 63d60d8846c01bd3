"""Images of a checkpoint: any slice of a run's, the same ones in whichever process, batch or order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.lineage import set_ratio
from dydit_cli.data.vae import Decode, load_vae
from dydit_cli.devices import DTYPES, pick_device
from dydit_cli.diffusion.generate import Progress, check_labels, generate
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.caching import CacheSchedule, cache_protocol
from dydit_cli.model.execution import Executable, executor
from dydit_cli.model.merging import Merging
from dydit_cli.pixels import to_pixels
from dydit_cli.sampling.options import SamplingConfig as SamplingConfig

OnWork = Callable[[int], None]  # how many images made a step


@dataclass(frozen=True)
class ImageSampler:
    """A model on its device; image i of the run is of class `classes[i % len(classes)]`."""

    model: Executable
    config: SamplingConfig
    classes: list[int]
    decode: Decode | None

    def labels(self, first: int, count: int) -> Tensor:
        """(count,) classes of the images `first`, `first` + 1, ..."""
        return torch.tensor([self.classes[i % len(self.classes)] for i in range(first, first + count)])

    def samples(self, first: int, count: int, on_work: OnWork = lambda images: None) -> Tensor:
        """The model's own samples of these images, latents or pixels: count C S S, or of videos count F C S S, float32 on
        cpu."""
        config, labels = self.config, self.labels(first, count)

        def report(progress: Progress) -> None:
            on_work(progress.work)

        return run_sampler(self.model, labels, config.settings, first, config.batch, config.seed, report)

    def pixels(self, samples: Tensor) -> NDArray[np.uint8]:
        """M C S S -> M S S C, or of videos M F C S S -> M F S S C; decoded where they are latents, a batch at a time."""
        images = samples.flatten(0, -4)  # a video frame by frame
        parts = images.split(self.config.batch)
        pixels = np.concatenate([to_pixels((self.decode(part) if self.decode else part).numpy()) for part in parts])
        return pixels.reshape(*samples.shape[:-3], *pixels.shape[1:])


def open_sampler(loaded: Checkpoint, config: SamplingConfig) -> ImageSampler:
    """Builds the model on its device. Raises `DyditError` for an unknown class, or a latent model without a VAE.

    On cuda float32 products are TF32's from here on, as in PyTorch's own convolutions.
    """
    device, vae, classes = pick_device(config.device), vae_of(loaded, config), classes_of(loaded, config)
    check_labels(torch.tensor(classes), loaded.config.null_class)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    model = loaded.build().to(device, DTYPES[config.dtype])
    cache_of(loaded, config)
    runner = executor(
        model,
        config.execution,
        compile=config.compile,
        plan_memory=config.plan_memory,
        tome=config.tome,
        cache=config.cache,
        padded=config.padded,
    )
    decode = None if vae is None else load_vae(vae, device, loaded.latents, loaded.config)
    return ImageSampler(runner, config, classes, decode)


def protocol(loaded: Checkpoint, config: SamplingConfig) -> dict[str, Any]:
    """All that the images depend on, but for rounding: for samples.json. Raises `DyditError` for what cannot be sampled."""
    settings, vae, ratio = config.settings.for_model(loaded.config), vae_of(loaded, config), set_ratio(loaded.lineage)
    if config.tome:
        Merging.of(loaded.config, config.tome)
    return {
        "checkpoint": str(loaded.path),
        "classes": classes_of(loaded, config),
        **({} if ratio is None else {"flops_ratio": ratio}),
        **({} if loaded.config.frames is None else {"frames": loaded.config.frames}),
        **settings.protocol(),
        "execution": config.execution if loaded.config.dynamic else "static",
        "tome": config.tome or None,
        **cache_protocol(config.cache, cache_of(loaded, config)),
        "dtype": config.dtype,
        "seed": config.seed,
        "vae": None if vae is None else str(vae),
        **({"latents": loaded.latents.to_dict()} if loaded.latents and vae is not None else {}),
    }


def cache_of(loaded: Checkpoint, config: SamplingConfig) -> CacheSchedule | None:
    """Which steps are computed; None without a cache. Raises `DyditError` as `CacheOptions.check` and `schedule` do."""
    config.cache.check(loaded.config)
    settings = config.settings.for_model(loaded.config)
    return config.cache.schedule(settings.timesteps, settings.sampler)


def record_of(loaded: Checkpoint, config: SamplingConfig, images: int) -> dict[str, Any]:
    """How `images` images came about, as samples.json holds it of pictures: the protocol, and the device."""
    return {"images": images, **protocol(loaded, config), "device": pick_device(config.device).type}


def classes_of(loaded: Checkpoint, config: SamplingConfig) -> list[int]:
    """The classes in turn."""
    return list(config.classes or loaded.config.class_numbers)


def vae_of(loaded: Checkpoint, config: SamplingConfig) -> str | Path | None:
    """The configuration's VAE, or for latents the checkpoint's own; raises `DyditError` for latents without one."""
    if config.vae is not None or loaded.config.in_channels in (1, 3):
        return config.vae
    if loaded.vae is None:
        raise DyditError(
            f"{loaded.path}: makes latents of {loaded.config.in_channels} channels; "
            "give the VAE that decodes them with --vae DIR"
        )
    return loaded.vae


def run_sampler(
    model: Executable,
    labels: Tensor,
    settings: SamplerSettings,
    first: int,
    batch: int,
    seed: int,
    on_progress: Callable[[Progress], None] | None,
) -> Tensor:
    """`generate` with what the model itself tells: its sizes, device and dtype. Widths are planned ahead, or as timesteps
    come where the solver chooses them."""
    config = model.config
    ready = settings.for_model(config)
    model.plan(ready.timesteps or ())
    return generate(
        model,
        labels,
        config.sample_shape,
        ready,
        null_class=config.null_class,
        seed=seed,
        first=first,
        batch=batch,
        device=model.device,
        dtype=model.dtype,
        on_progress=on_progress,
    )
