"""Out into the formats that other people's code reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.diffusers import write_transformer
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import DIFFUSERS, NATIVE, ROUTED, LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.checkpoint.tensors import write_pickle
from dydit_cli.devices import DTYPES
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file, check_output
from dydit_cli.model.config import RoutedConfig
from dydit_cli.model.families import families, family_of
from dydit_cli.model.families.dit import DiTConfig
from dydit_cli.options import DtypeName

PUBLIC_ROUTERS = {"width_routing": "linear", "token_routing": "tokens"}  # what the public files can say


def export(
    source: str | Path,
    destination: str | Path,
    *,
    format: str,
    dtype: DtypeName | None = None,
    complete: bool = False,
    any_variant: bool = False,
    reading: LoadOptions = LoadOptions(),
    force: bool = False,
) -> Checkpoint:
    """Writes the checkpoint `source` as `format`: its family's name is the .pt file that the family's own code reads, and
    `dydit` that of a dynamic model; `diffusers` is a DiTTransformer2DModel folder, `native` our own folder. Returns what was
    written.

    `complete` writes a DyDiT's all-on static model. Without `dtype` every tensor is written as it is, bit for bit.
    Raises `DyditError` where the format cannot hold the model: a DyDiT in a static format (without `complete`), or a
    model that diffusers would compute otherwise (without `any_variant`); then nothing is written.
    """
    destination = check_output(destination, force)
    formats = (*families(), ROUTED, DIFFUSERS, NATIVE)
    if format not in formats:
        raise DyditError(f"no format {format!r}; choose one of {', '.join(formats)}")
    if dtype is not None and dtype not in DTYPES:
        raise DyditError(f"no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    checkpoint = read(source, reading)
    if complete:
        checkpoint = without_routers(checkpoint)
    _check_fits(checkpoint, source, format, any_variant)
    if dtype is not None:
        checkpoint = cast(checkpoint, DTYPES[dtype])
    if format == NATIVE:
        write(checkpoint, destination)
    elif format == DIFFUSERS:
        write_transformer(checkpoint, destination)
    else:
        with atomic_file(destination) as temporary:
            write_pickle(temporary, family_of(checkpoint.config).to_public(checkpoint.weights))
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
    if format == NATIVE:
        return
    if isinstance(config, RoutedConfig):
        if format != ROUTED:
            raise DyditError(
                f"{source}: is a {config.model_name}, whose routers the static format {format!r} has no place for; "
                "write its all-on static model with --complete, or use --format dydit"
            )
        if config.budgets:
            low, high = config.budgets[0], config.budgets[-1]
            raise DyditError(
                f"{source}: is of all FLOPs ratios from {low:g} to {high:g}, which the format {format!r} cannot say; choose "
                "one with --flops-ratio, or use --format native"
            )
        for name, what in (("width_routing", "width routers"), ("token_routing", "token routers")):
            kind = getattr(config, name)
            if kind != PUBLIC_ROUTERS[name]:
                raise DyditError(
                    f"{source}: has {what} of the kind {kind!r}, which the format {format!r} cannot say; use --format native"
                )
    elif format == ROUTED:
        raise DyditError(
            f"{source}: is a static model; use --format {config.family}, or convert it first: dydit convert {source} DST"
        )
    elif format == DIFFUSERS and type(config) is not DiTConfig:
        raise DyditError(f"{source}: is a {config.title}, which diffusers has no class for; use --format {config.family}")
    elif format not in (DIFFUSERS, config.family):
        raise DyditError(f"{source}: is a {config.title}, which other code reads from --format {config.family}")
    if any_variant or not isinstance(config, DiTConfig):
        return
    if format == DIFFUSERS and config.timestep_variant != "diffusers":
        raise DyditError(
            f"{source}: was trained with the DiT authors' timestep sinusoid (over 128), and diffusers computes another "
            "(over 127), so its images would differ; write it all the same with --any-variant"
        )
    if format != DIFFUSERS and (config.timestep_variant, config.norm2_eps) != ("original", 1e-6):
        raise DyditError(
            f"{source}: runs with diffusers' timestep sinusoid or norm epsilon, and the authors' code computes another, "
            "so its images would differ; write it all the same with --any-variant"
        )
