"""Out into the formats that other people's code reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.diffusers import write_transformer
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import FormatName, LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.devices import DTYPES
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file, check_output
from dydit_cli.model.config import RoutedConfig
from dydit_cli.model.families.dit import DiTConfig
from dydit_cli.options import DtypeName

STATIC_FORMATS = ("dit", "diffusers")


def export(
    source: str | Path,
    destination: str | Path,
    *,
    format: FormatName,
    dtype: DtypeName | None = None,
    complete: bool = False,
    any_variant: bool = False,
    reading: LoadOptions = LoadOptions(),
    force: bool = False,
) -> Checkpoint:
    """Writes the checkpoint `source` as `format`: `dit` and `dydit` are the public .pt files (a plain state dict),
    `diffusers` is a DiTTransformer2DModel folder, `native` our own folder. Returns what was written.

    `complete` writes a DyDiT's all-on static model. Without `dtype` every tensor is written as it is, bit for bit.
    Raises `DyditError` where the format cannot hold the model: a DyDiT in a static format (without `complete`), or a
    model that diffusers would compute otherwise (without `any_variant`); then nothing is written.
    """
    destination = check_output(destination, force)
    if format not in get_args(FormatName):
        raise DyditError(f"no format {format!r}; choose one of {', '.join(get_args(FormatName))}")
    if dtype is not None and dtype not in DTYPES:
        raise DyditError(f"no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    checkpoint = read(source, reading)
    if complete:
        checkpoint = without_routers(checkpoint)
    _check_fits(checkpoint, source, format, any_variant)
    if dtype is not None:
        checkpoint = cast(checkpoint, DTYPES[dtype])
    if format == "native":
        write(checkpoint, destination)
    elif format == "diffusers":
        write_transformer(checkpoint, destination)
    else:
        with atomic_file(destination) as temporary:
            torch.save({name: w.contiguous() for name, w in checkpoint.weights.items()}, temporary)
    return checkpoint


def without_routers(checkpoint: Checkpoint) -> Checkpoint:
    """The static model that a DyDiT is with everything on; a static one as it is."""
    weights = {name: w for name, w in checkpoint.weights.items() if not checkpoint.config.is_router(name)}
    lineage = [*checkpoint.lineage, {"action": "export", "complete": True}]
    return replace(checkpoint, config=checkpoint.config.static(), weights=weights, lineage=lineage)


def cast(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """Every weight in `dtype`; raises `DyditError` where one is too large for it."""
    weights = {name: w.to(dtype) for name, w in checkpoint.weights.items()}
    for name, w in weights.items():
        if not torch.isfinite(w).all():
            raise DyditError(f"{name} has values that {str(dtype).removeprefix('torch.')} cannot hold; use bf16 or fp32")
    return replace(checkpoint, weights=weights)


def _check_fits(checkpoint: Checkpoint, source: str | Path, format: str, any_variant: bool) -> None:
    config = checkpoint.config
    assert isinstance(config, DiTConfig)
    dynamic = config.dynamic
    if dynamic and format in STATIC_FORMATS:
        raise DyditError(
            f"{source}: is a DyDiT, whose routers the static format {format!r} has no place for; "
            "write its all-on static model with --complete, or use --format dydit"
        )
    if not dynamic and format == "dydit":
        raise DyditError(f"{source}: is a static model; use --format dit, or convert it first: dydit convert {source} DST")
    if isinstance(config, RoutedConfig) and format != "native" and config.width_routing != "linear":
        raise DyditError(
            f"{source}: has width routers of the kind {config.width_routing!r}, which the format {format!r} cannot say; "
            "use --format native"
        )
    if isinstance(config, RoutedConfig) and format != "native" and config.token_routing != "tokens":
        raise DyditError(
            f"{source}: skips whole layers in place of tokens, which the format {format!r} cannot say; use --format native"
        )
    if format == "diffusers" and config.timestep_variant != "diffusers" and not any_variant:
        raise DyditError(
            f"{source}: was trained with the DiT authors' timestep sinusoid (over 128), and diffusers computes another "
            "(over 127), so its images would differ; write it all the same with --any-variant"
        )
    if format in ("dit", "dydit") and (config.timestep_variant, config.norm2_eps) != ("original", 1e-6) and not any_variant:
        raise DyditError(
            f"{source}: runs with diffusers' timestep sinusoid or norm epsilon, and the authors' code computes another, "
            "so its images would differ; write it all the same with --any-variant"
        )
