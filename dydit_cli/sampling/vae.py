"""The VAE that turns latents into pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dydit_cli.checkpoint.read import may_be_hub_id
from dydit_cli.errors import DyditError

LATENT_SCALE = 0.18215  # SD-VAE latents were multiplied by this for training
Decode = Callable[[Tensor], Tensor]


def load_vae(path: str | Path, device: torch.device) -> Decode:
    """A decoder of latents, M C S S to M 3 8S 8S in [-1, 1]: a diffusers AutoencoderKL folder, or a hub id of one.

    It runs in float32, image by image, so that a picture does not depend on its batch.
    """
    from diffusers import AutoencoderKL

    here = Path(path).exists()
    if not (Path(path) / "config.json").is_file() and (here or not may_be_hub_id(str(path))):
        raise DyditError(f"{path}: not a VAE; give a diffusers AutoencoderKL folder (config.json and its weights) or hub id")
    try:
        vae: Any = AutoencoderKL.from_pretrained(str(path), local_files_only=here, use_safetensors=True)
    # diffusers, the hub client and its network library each raise their own
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        what = "not a readable AutoencoderKL" if here else "no such folder here, and the Hugging Face hub does not give it"
        raise DyditError(f"{path}: {what} ({reason})") from None
    vae = vae.to(device).eval()

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        images = [vae.decode(latent[None].to(device) / LATENT_SCALE).sample.float().cpu() for latent in latents]
        return torch.cat(images)

    return decode
