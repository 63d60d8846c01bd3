"""Small data sets for the tests, and what is said where one does not fit a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.data.load import load_data
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiTConfig
from dydit_cli.model.latent_norm import LatentNorm

LATENTS = DiTConfig(input_size=4, patch_size=2, in_channels=4, hidden_size=32, depth=2, num_heads=4, num_classes=3)


def noise_picture(seed: int, width: int = 12, height: int = 10) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def class_folders(root: Path, per_class: int = 4) -> Path:
    """b, a10 and a2, so that their order is that of names; one picture lies deeper, and two files are none."""
    for number, name in enumerate(("b", "a10", "a2")):
        (root / name / "deeper").mkdir(parents=True)
        for i in range(per_class):
            place = root / name / ("deeper" if i == 1 else "") / f"{i}.png"
            Image.fromarray(noise_picture(10 * number + i)).save(place)
        (root / name / ".hidden.png").write_bytes(b"x")
        (root / name / "notes.txt").write_text("x")
    (root / ".git").mkdir()
    return root


def refusal(name: str, config: DiTConfig, latents: LatentNorm | None = None) -> str:
    """What is said, in one line, when a model of `config` that takes such `latents` is to learn from the data set `name`."""
    with pytest.raises(DyditError) as error:
        load_data(name, config).check(config, latents)
    assert "\n" not in str(error.value)
    return str(error.value)
