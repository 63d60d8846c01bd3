"""`dydit sample`: images of a checkpoint as files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.checkpoint.read import Reading, Source, read
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.generate import Progress, cycle_labels, generate
from dydit_cli.diffusion.sampler import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.figures.grid import make_grid, picture, save_png, to_pixels
from dydit_cli.files import atomic_folder, check_output, write_json
from dydit_cli.model.dit import DiT
from dydit_cli.model.sparse import Execution, executor

LATENT_SCALE = 0.18215  # SD-VAE latents were multiplied by this for training


@dataclass(frozen=True)
class Samples:
    """pixels: M S S C uint8; labels: (M,); `summary` is the protocol and the time."""

    pixels: NDArray[np.uint8]
    labels: Tensor
    summary: dict[str, Any]


def draw(
    model: DiT,
    labels: Tensor,
    settings: SamplerSettings,
    *,
    execution: Execution = "sparse",
    batch: int = 64,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Tensor, float]:
    """Samples of `model` for labels (M,): M C S S, float32 on cpu, and the seconds that they took."""
    config = model.config
    denoiser = executor(model, execution)
    start = time.perf_counter()
    samples = generate(
        denoiser,
        labels,
        (config.in_channels, config.input_size, config.input_size),
        settings,
        null_class=config.null_class,
        seed=seed,
        batch=batch,
        device=model.pos_embed.device,
        on_progress=on_progress,
    )
    return samples, time.perf_counter() - start


def sample_images(
    checkpoint: Source,
    out: str | Path,
    *,
    num: int = 64,
    classes: Sequence[int] | None = None,
    settings: SamplerSettings = SamplerSettings(),
    execution: Execution = "sparse",
    vae: str | Path | None = None,
    batch: int = 64,
    seed: int = 0,
    reading: Reading = Reading(),
    device: str = "auto",
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Samples:
    """Draws `num` images, `classes` in turn, into the folder `out`: grid.png, NNNNN-classK.png and samples.json.

    Raises `DyditError` for an existing `out` (without `force`), an unknown class, or a latent model without `vae`.
    """
    out = check_output(out, force)
    loaded = read(checkpoint, reading)
    config = loaded.config
    if config.in_channels not in (1, 3):
        vae = vae or loaded.vae
    if vae is None and config.in_channels not in (1, 3):
        raise DyditError(
            f"{loaded.path}: makes latents of {config.in_channels} channels; give the VAE that decodes them with --vae DIR"
        )
    place = pick_device(device)
    decode = load_vae(vae, place) if vae is not None else None
    labels = cycle_labels(list(classes or range(config.num_classes)), num)
    model = loaded.build().to(place).float()
    samples, seconds = draw(model, labels, settings, execution=execution, batch=batch, seed=seed, on_progress=on_progress)
    pixels = to_pixels((decode(samples) if decode else samples).numpy())
    summary = {
        "checkpoint": str(loaded.path),
        "images": num,
        "classes": sorted(set(labels.tolist())),
        "sampler": settings.sampler,
        "steps": settings.steps,
        "cfg": settings.cfg,
        "cfg_channels": settings.cfg_channels,
        "spacing": settings.spacing,
        "execution": execution if config.kind == "dydit" else "static",
        "seed": seed,
        "device": place.type,
        "seconds": seconds,
        "seconds_per_image": seconds / num,
    }
    with atomic_folder(out) as temporary:
        pictures = [picture(image) for image in pixels]
        for i, (image, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
            save_png(image, temporary / f"{i:05d}-class{label}.png")
        save_png(make_grid(pictures), temporary / "grid.png")
        write_json(temporary / "samples.json", summary)
    return Samples(pixels, labels, summary)


def load_vae(path: str | Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A decoder of latents, M C S S to M 3 8S 8S in [-1, 1], from a diffusers AutoencoderKL folder on this machine."""
    from diffusers import AutoencoderKL

    if not (Path(path) / "config.json").is_file():
        raise DyditError(f"{path}: not a VAE; give a diffusers AutoencoderKL folder (config.json and its weights)")
    try:
        vae: Any = AutoencoderKL.from_pretrained(str(path), local_files_only=True, use_safetensors=True).to(device).eval()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DyditError(f"{path}: not a readable AutoencoderKL: {error}") from None

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        images = [vae.decode(latent[None].to(device) / LATENT_SCALE).sample.float().cpu() for latent in latents]
        return torch.cat(images)

    return decode
