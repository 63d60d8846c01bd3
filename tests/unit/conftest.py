"""Latents, encoded once for all the tests that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dydit_cli.data.encode import encode
from tests.datasets import class_folders


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL: a latent pixel is 2 x 2 pixels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model: Any = AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2, latent_channels=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def latents(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures in shards of 5, 5 and 2."""
    place = tmp_path_factory.mktemp("latents")
    assert encode(class_folders(place / "images"), place / "out", vae, size=8, shard_size=5, device="cpu") is not None
    return place / "out"
