"""`dydit inspect`: what a checkpoint is."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.checkpoint.tensors import headers_alone
from dydit_cli.diffusion.process import process_of
from dydit_cli.model.macs import static_macs


def inspect(path: str | Path, reading: LoadOptions = LoadOptions(), *, check: bool = False) -> dict[str, Any]:
    """What was read, its kind, size, parameters, bytes, tokens, routers and lineage of a checkpoint, as plain values for JSON.

    `macs_static` is the static model's multiply-accumulates per forward and image. Of the weights the headers alone are read,
    unless `check` is set: then `finite` is true, and `DyditError` is raised where a number is not.
    """
    whole = check or reading.flops_ratio is not None  # which changes numbers
    with nullcontext() if whole else headers_alone():
        checkpoint = read(path, reading)
    config, weights = checkpoint.config, checkpoint.weights
    dtypes = {str(w.dtype).removeprefix("torch.") for w in weights.values()}
    return {
        "path": str(path),
        "found": checkpoint.found,
        "notes": list(checkpoint.notes),
        "kind": config.kind,
        "family": config.family,
        "process": process_of(config).describe(),
        "guided_channels": config.guided_channels,
        "size": config.size_name,
        "parameters": sum(w.numel() for w in weights.values()),
        "router_parameters": sum(w.numel() for name, w in weights.items() if config.is_router(name)),
        "bytes": sum(w.numel() * w.element_size() for w in weights.values()),
        "finite": True if whole else None,
        "dtype": "/".join(sorted(dtypes)),
        "tokens": config.num_tokens,
        "macs_static": static_macs(config),
        "model": config.to_dict(),
        "labels": checkpoint.labels,
        "vae": str(checkpoint.vae) if checkpoint.vae else None,
        "lineage": checkpoint.lineage,
        "latents": checkpoint.latents.to_dict() if checkpoint.latents else None,
    }
