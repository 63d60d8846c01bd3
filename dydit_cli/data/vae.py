"""The VAE that turns latents into pictures, and pictures into latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dydit_cli.errors import DyditError
from dydit_cli.hub import may_be_hub_id

LATENT_SCALE = 0.18215  # SD-VAE latents were multiplied by this for training

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Encoder:
    """A VAE's encoder. `factor`: pixels of a picture for one of its latent; `sha256` is of the weights, by their names."""

    vae: Any
    channels: int
    factor: int
    scaling_factor: float
    sha256: str

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """B 3 S S in [-1, 1] -> mean and std of the latents' Gaussians, unscaled, each B C S/factor S/factor on cpu."""
        gaussian = self.vae.encode(images.to(self.vae.device)).latent_dist
        return gaussian.mean.float().cpu(), gaussian.std.float().cpu()


def load_encoder(path: str | Path, device: torch.device) -> Encoder:
    """As `load_vae`, the other way. It runs in float32."""
    vae = _open(path).to(device).eval()
    digest = hashlib.sha256()
    for name, weight in sorted(vae.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)};".encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    scale = float(vae.config.get("scaling_factor") or LATENT_SCALE)
    return Encoder(vae, vae.config.latent_channels, factor, scale, digest.hexdigest())


def load_vae(path: str | Path, device: torch.device) -> Decode:
    """A decoder of latents, M C S S to M 3 8S 8S in [-1, 1]: a diffusers AutoencoderKL folder, or a hub id of one.

    It runs in float32, image by image, so that a picture does not depend on its batch.
    """
    vae = _open(path).to(device).eval()

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        images = [vae.decode(latent[None].to(device) / LATENT_SCALE).sample.float().cpu() for latent in latents]
        return torch.cat(images)

    return decode


def _open(path: str | Path) -> Any:
    """The diffusers model; raises `DyditError` in one line for whatever is wrong with it."""
    from diffusers import AutoencoderKL

    here = Path(path).exists()
    if (Path(path) / "vae" / "config.json").is_file():
        raise DyditError(f"{path}: a whole pipeline; give its VAE: {Path(path) / 'vae'}")
    if not (Path(path) / "config.json").is_file() and (here or not may_be_hub_id(str(path))):
        hint = f"give its {Path(path) / 'vae'}" if (Path(path) / "vae" / "config.json").is_file() else ""
        hint = hint or "give a diffusers AutoencoderKL folder (config.json and its weights) or hub id"
        raise DyditError(f"{path}: not a VAE; {hint}")
    try:
        vae: Any = AutoencoderKL.from_pretrained(str(path), local_files_only=here, use_safetensors=True)
    # diffusers, the hub client and its network library each raise their own
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        what = "not a readable AutoencoderKL" if here else "no such folder here, and the Hugging Face hub does not give it"
        raise DyditError(f"{path}: {what} ({reason})") from None
    return vae
