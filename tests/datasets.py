"""Small data sets for the tests, and what is said where one does not fit a model."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.data.idx import FILES, idx_file
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


IDX_LABELS = np.arange(17, dtype=np.uint8) % 10


def idx_pixels(side: int) -> NDArray[np.uint8]:
    """17 grey pictures of noise, 12 of them to train on: 17 S S."""
    return np.random.default_rng(0).integers(0, 256, (17, side, side), dtype=np.uint8)


def as_idx(values: NDArray[np.uint8]) -> bytes:
    lengths = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes([0, 0, 8, values.ndim]) + lengths + values.tobytes()


def idx_folder(folder: Path, zipped: bool = False, side: int = 4, **other: NDArray[np.uint8]) -> Path:
    """12 training pictures and 5 held-out ones, or `other` values by a file's name with underscores."""
    pixels = idx_pixels(side)
    parts = (pixels[:12], IDX_LABELS[:12], pixels[12:], IDX_LABELS[12:])
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in zip(FILES, parts, strict=True):
        content = as_idx(other.get(name.replace("-", "_"), values))
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    return folder


def idx_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of the decompressed content of each of a folder's four files."""
    digests = {}
    for name in FILES:
        path = idx_file(folder, name)
        assert path is not None
        content = path.read_bytes()
        digests[name] = hashlib.sha256(gzip.decompress(content) if path.suffix == ".gz" else content).hexdigest()
    return digests


def refusal(name: str, config: DiTConfig, latents: LatentNorm | None = None) -> str:
    """What is said, in one line, when a model of `config` that takes such `latents` is to learn from the data set `name`."""
    with pytest.raises(DyditError) as error:
        load_data(name, config).check(config, latents)
    assert "\n" not in str(error.value)
    return str(error.value)
