"""Tiny random autoencoders of diffusers, one of each kind that latents come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

HALVES: dict[str, Any] = {
    "block_out_channels": (4, 4),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}
BLOCKS: dict[str, Any] = {
    f"{part}_{name}": value
    for part in ("encoder", "decoder")
    for name, value in (("block_out_channels", (4, 8)), ("layers_per_block", (1, 1)), ("qkv_multiscales", ((), ())))
}
CLIPS: dict[str, Any] = {"base_dim": 4, "z_dim": 2, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "kl": ("AutoencoderKL", {**HALVES, "latent_channels": 4}),
    "kl16": ("AutoencoderKL", {**HALVES, "latent_channels": 16}),
    "shift": ("AutoencoderKL", {**HALVES, "latent_channels": 4, "scaling_factor": 0.5, "shift_factor": 0.25}),
    "mean": (
        "AutoencoderKL",
        {**HALVES, "latent_channels": 4, "scaling_factor": 0.5, "latents_mean": [1, 2, 3, 4], "latents_std": [1, 2, 4, 8]},
    ),
    "dc": ("AutoencoderDC", {**BLOCKS, "latent_channels": 4, "attention_head_dim": 4, "scaling_factor": 0.41407}),
    "tiny": (
        "AutoencoderTiny",
        {f"{part}_block_out_channels": (4, 4) for part in ("encoder", "decoder")}
        | {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)},
    ),
    "vq": ("VQModel", {**HALVES, "latent_channels": 4, "num_vq_embeddings": 8}),
    "clips": ("AutoencoderKLWan", {**CLIPS, "latents_mean": [0.1, 0.2], "latents_std": [2.0, 3.0]}),
    "none": ("AutoencoderKLFlux2", {**HALVES, "latent_channels": 4}),
}


def make_vae(kind: str, folder: Path) -> Path:
    """Writes one of `KINDS`; a latent pixel is 2 x 2 pixels, of "clips" 8 x 8."""
    import diffusers

    name, values = KINDS[kind]
    torch.manual_seed(0)
    getattr(diffusers, name)(**values).save_pretrained(folder)
    return folder
