"""`--latent-stats`: how the latents of a model were normalised, where its own file does not tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.tensors import PICKLES, read_pickle
from dydit_cli.errors import DyditError, naming
from dydit_cli.files import read_json
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.latent_norm import SD, LatentNorm

STATS_FILE = "latents_stats.pt"  # LightningDiT's name

FILES = (STATS_FILE, "index.json", "config.json")  # of a folder the first that is there: a set of latents, a checkpoint, a VAE


def read_norm(source: str | Path) -> LatentNorm:
    """The normalisation that `source` names: `sd`, LightningDiT's latents_stats.pt, a JSON file with diffusers' keys, or the
    folder of a set of latents, of a checkpoint or of a diffusers VAE.

    Raises `DyditError` in one line where there is none. A pickle is read as data.
    """
    if str(source) == "sd":
        return SD
    path = Path(source)
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).is_file()), path)
    if not path.is_file():
        raise DyditError(
            f"{source}: no statistics of latents; give latents_stats.pt, the folder of a set of latents or a checkpoint, or sd"
        )
    with naming(path):
        if path.suffix in PICKLES:
            return _from_tensors(read_pickle(path))
        values = read_json(path)
        inner = values.get("latents", values) if isinstance(values, dict) else None
        if not isinstance(inner, dict):
            raise DyditError("holds no normalisation of latents")
        return LatentNorm.from_dict(inner)


def _from_tensors(values: Any) -> LatentNorm:
    """Of `mean` and `std`, 1 C 1 1 each; the factor is 1, as in LightningDiT's configurations, or their `multiplier`."""
    mean, std = (values.get(name) if isinstance(values, Mapping) else None for name in ("mean", "std"))
    if not (isinstance(mean, Tensor) and isinstance(std, Tensor) and mean.is_floating_point() and std.is_floating_point()):
        raise DyditError("holds no statistics of latents (tensors mean and std)")
    factor = values.get("multiplier", 1.0)
    return LatentNorm(float(factor), tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()))


def norm_in_training(config: ModelConfig, trained: Mapping[str, Any]) -> LatentNorm | None:
    """What LightningDiT's options, stored beside the weights, say: without `latent_norm` a factor alone, SD's if none is named.

    None where they want a set's statistics, which are in another file, and for families that are not trained like that.
    """
    if not (config.measured_latents and trained) or trained.get("latent_norm"):
        return None
    return LatentNorm.from_dict({"scaling_factor": trained.get("latent_multiplier", SD.factor)})


def with_norm(checkpoint: Checkpoint, source: str) -> Checkpoint:
    """`checkpoint` with the normalisation that `source` names; raises `DyditError` where it takes none, or has another."""
    norm = read_norm(source)
    if checkpoint.config.in_channels in (1, 3):
        raise DyditError("makes pixels; --latent-stats is for models of latents")
    with naming(source):
        norm.check(checkpoint.config.in_channels)
    if checkpoint.latents is not None and not checkpoint.latents.same(norm):
        raise DyditError(
            f"stores that its latents are {checkpoint.latents.describe()}, and {source} says {norm.describe()}; "
            "leave --latent-stats out"
        )
    return replace(checkpoint, latents=norm)
