"""The project's own layout: a folder with config.json and model.safetensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dydit_cli import marks
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.lineage import CARD_FILE, write_card
from dydit_cli.checkpoint.stream import write_safetensors
from dydit_cli.checkpoint.tensors import read_safetensors
from dydit_cli.errors import DyditError, naming
from dydit_cli.files import atomic_file, atomic_folder, write_json, write_text
from dydit_cli.model.config import RoutedConfig
from dydit_cli.model.families import config_from_dict
from dydit_cli.model.latent_norm import SD, LatentNorm

CONFIG_FILE, WEIGHTS_FILE = marks.CHECKPOINT, "model.safetensors"

FORMAT, FORMAT_VERSION, RANGE_VERSION = "dydit", 1, 2  # the second is of models of a range of FLOPs ratios


def is_native(header: Any) -> bool:
    """Whether a parsed config.json is ours."""
    return isinstance(header, dict) and header.get("format") == FORMAT


def read_native(folder: Path, header: dict[str, Any]) -> Checkpoint:
    """The checkpoint in a folder whose parsed config.json is `header`; raises `DyditError` where it is damaged."""
    path = folder / CONFIG_FILE
    version = header.get("format_version")
    if version not in (FORMAT_VERSION, RANGE_VERSION):
        raise DyditError(f"{path}: format version {version!r}; this dydit reads up to {RANGE_VERSION}: update dydit")
    model, lineage, labels, vae = (header.get(key) for key in ("model", "lineage", "labels", "vae"))
    if not isinstance(model, dict):
        raise DyditError(f'{path}: "model" must be an object')
    if not isinstance(lineage, list) or not all(isinstance(entry, dict) for entry in lineage):
        raise DyditError(f'{path}: "lineage" must be a list of objects')
    if vae is not None and not isinstance(vae, str):
        raise DyditError(f'{path}: "vae" must be a path')
    latents = header.get("latents")
    if latents is not None and not isinstance(latents, dict):
        raise DyditError(f'{path}: "latents" must be an object')
    if not (folder / WEIGHTS_FILE).is_file():
        raise DyditError(f"{folder}: not a whole checkpoint: it has no {WEIGHTS_FILE}")
    file = folder / WEIGHTS_FILE
    weights = read_safetensors(file)
    with naming(path):
        config, names = config_from_dict(model), None if labels is None else parse_labels(labels)
        norm = None if latents is None else LatentNorm.from_dict(latents).check(config.in_channels)
    with naming(file):
        read = Checkpoint(
            config, weights, lineage, "dydit folder", labels=names, vae=Path(vae) if vae else None, file=file, latents=norm
        ).check()
    if norm is None and config.in_channels == 4 and (read.trained_on or "").startswith("latents:"):
        return replace(read, latents=SD)  # written before there was the key, when no other latents were taken
    return read


def parse_labels(value: Any) -> dict[int, str]:
    """Class numbers to names, from JSON, whose keys are text."""
    if not isinstance(value, dict) or not all(k.isdecimal() and len(k) < 10 and isinstance(v, str) for k, v in value.items()):
        raise DyditError("labels must map class numbers to names")
    return {int(number): name for number, name in value.items()}


def write(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Writes a whole checkpoint folder at once, replacing what was there; a failure leaves what was there untouched."""
    with atomic_folder(folder) as temporary:
        write_safetensors(temporary / WEIGHTS_FILE, checkpoint.weights)
        write_description(checkpoint, temporary)


def write_into(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Writes the two files into a run's folder beside what it holds, each atomically, the configuration last."""
    folder = Path(folder)
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        write_safetensors(temporary, checkpoint.weights)
    write_description(checkpoint, folder)


def write_description(checkpoint: Checkpoint, folder: Path) -> None:
    """The card and config.json, without which a folder is no checkpoint, last."""
    write_text(folder / CARD_FILE, write_card(checkpoint))
    write_json(folder / CONFIG_FILE, _header(checkpoint))


def _header(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    return {
        "format": FORMAT,
        "format_version": RANGE_VERSION if isinstance(config, RoutedConfig) and config.budgets else FORMAT_VERSION,
        "model": config.to_dict(),
        "lineage": checkpoint.lineage,
        **({"labels": {str(k): v for k, v in checkpoint.labels.items()}} if checkpoint.labels else {}),
        **({"vae": str(checkpoint.vae)} if checkpoint.vae else {}),
        **({"latents": checkpoint.latents.to_dict()} if checkpoint.latents else {}),
    }
