"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

from dydit_cli.data.dataset import Dataset
from dydit_cli.data.digits import load_digits_split
from dydit_cli.data.fashion import load_fashion_split
from dydit_cli.data.glyphs import load_glyphs_split
from dydit_cli.data.imagefolder import ImageFolder, check_pixels
from dydit_cli.data.latents import LatentData
from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig

BUNDLED = {"digits": load_digits_split, "glyphs": load_glyphs_split}

READ = {"fashion": load_fashion_split}  # by name too, from files that do not come with the package

DATASETS = (*BUNDLED, *READ, "imagefolder:PATH", "latents:PATH")


def split_name(name: str) -> tuple[str, str]:
    """`latents:runs/x` as its kind and its path, which is "" for a bundled set; raises `DyditError` for an unknown kind."""
    kind, colon, path = name.partition(":")
    if name not in (*BUNDLED, *READ) and (kind not in ("imagefolder", "latents") or not path):
        hint = f"; {kind} wants a path" if kind in ("imagefolder", "latents") else ""
        hint = f"; for a folder of pictures write imagefolder:{name}" if not colon and Path(name).is_dir() else hint
        raise DyditError(f"no data set {name!r}; choose one of {', '.join(DATASETS)}{hint}")
    return kind, path


def load_data(name: str, config: ModelConfig | None = None) -> Dataset:
    """The training part of the data set `name`, for a model of `config`, whose size pictures are cropped to.

    Raises `DyditError` for an unknown name, data that cannot be read, or pixels for a model of latents; whether the
    rest fits is for `Dataset.check` to say.
    """
    kind, path = split_name(name)
    if kind in BUNDLED:
        return BUNDLED[kind]()
    if kind in READ:
        return READ[kind]()
    if kind == "latents":
        return LatentData(path)
    if config is None:
        raise DyditError(f"data set {name} is cropped to its model's size; name the model's configuration")
    check_pixels(name, config)
    return ImageFolder(path, config.input_size, config.in_channels)
