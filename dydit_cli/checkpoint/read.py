"""Reads any checkpoint that people have, and records what it was and what was inferred."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from dydit_cli.bundled import MODELS, WEIGHTS
from dydit_cli.checkpoint.adapter import WEIGHTS_FILE as ADAPTER_WEIGHTS
from dydit_cli.checkpoint.adapter import is_adapter_folder, refuse_alone, with_adapter
from dydit_cli.checkpoint.budgets import at_ratio
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.diffusers import read_pipeline, read_transformer
from dydit_cli.checkpoint.latent_stats import norm_in_training, with_norm
from dydit_cli.checkpoint.native import CONFIG_FILE, is_native, read_native
from dydit_cli.checkpoint.options import LoadOptions, WhichWeights
from dydit_cli.checkpoint.tensors import PICKLES, Weights, is_index, read_pickle, read_tensors, state_dict_in
from dydit_cli.devices import pick_device
from dydit_cli.errors import DyditError, naming
from dydit_cli.files import read_json
from dydit_cli.hub import download, may_be_hub_id
from dydit_cli.model.caching import NONE, CacheOptions
from dydit_cli.model.execution import Executable, executor
from dydit_cli.model.families import Hints, recognise
from dydit_cli.model.families.dit import FAMILY, from_diffusers, is_diffusers
from dydit_cli.model.options import Execution, TimestepVariant

CheckpointLike = str | Path | Checkpoint


def load(
    path: CheckpointLike,
    *,
    execution: Execution = "masked",
    device: str = "cpu",
    weights: WhichWeights = "ema",
    num_heads: int | None = None,
    input_size: int | None = None,
    timestep_variant: TimestepVariant | None = None,
    family: str | None = None,
    tome: float | None = None,
    flops_ratio: float | None = None,
    cache: str | CacheOptions = NONE,
    **more: Any,
) -> Executable:
    """The model of any checkpoint that `read` takes, in evaluation mode on `device`, float32.

    `execution` is how a DyDiT runs: `masked` (a `DyDiT`, differentiable), `sparse` (the skipped work left out), `padded`
    (that, in shapes that are known ahead) or `complete` (everything on). A DyDiT of a range of FLOPs ratios is set to
    `flops_ratio`, by default its largest, and to others by its `set_flops_ratio`. `tome` is the share of its tokens that a
    static model merges before attention (a `MergedModel`).

    `cache` is how steps are forecast from others, such as `taylorseer:4:1`, or `fora:3@model` where the model's output is kept
    (a `CachedModel`, for evaluation): `plan(timesteps)` tells it those of a sampling run, and without that it computes all.
    The rest, and `more`, is as in `LoadOptions`. Raises `DyditError` where the checkpoint cannot be read, and for a cache that
    cannot be.
    """
    options = CacheOptions.parse(cache) if isinstance(cache, str) else cache
    checkpoint = read(path, LoadOptions(weights, num_heads, input_size, timestep_variant, family, **more))
    model = checkpoint.build().float().to(pick_device(device))
    if flops_ratio is not None:
        with naming(checkpoint.path or "a checkpoint in memory"):
            model.set_flops_ratio(flops_ratio)
    return executor(model, execution, tome=tome, cache=options)


def read(path: CheckpointLike, reading: LoadOptions = LoadOptions()) -> Checkpoint:
    """Reads a checkpoint of any known format, a bundled one by name, or a Hugging Face hub id; one in memory is itself.

    Raises `DyditError` in one line where it is missing, is no checkpoint, or is damaged. Nothing in it is ever run.
    """
    if isinstance(path, Checkpoint):
        return path
    local = find(path)
    if local is None:
        local = download(str(path))
    found = replace(_read_folder(local, reading) if local.is_dir() else _read_file(local, reading), path=str(path))
    with naming(path):
        check_said(found, reading)
        if reading.adapter is not None:
            found = with_adapter(found, Path(reading.adapter))
        if reading.latent_stats is not None:
            found = with_norm(found, reading.latent_stats)
        return found if reading.flops_ratio is None else at_ratio(found, reading.flops_ratio)


def check_said(checkpoint: Checkpoint, reading: LoadOptions) -> None:
    """Raises `DyditError` where the reader was told something else than the checkpoint knows of itself."""
    config = checkpoint.config
    for option, name in (("family", "family"), ("flow_path", "path"), ("prediction", "prediction"), ("noise_at", "noise_at")):
        said, known, flag = getattr(reading, option), getattr(config, name, None), f"--{option.replace('_', '-')}"
        if said is None or said == known:
            continue
        if known is None:
            raise DyditError(
                f"a {config.model_name} is trained by Gaussian diffusion: {flag} is for flow matching; leave it out, or say "
                "another family with --family"
            )
        raise DyditError(f"is a {config.model_name}, whose {name} is {known} and not {said}; leave {flag} out")


def find(path: str | Path) -> Path | None:
    """Where a checkpoint lies, None for one that the hub may have; raises `DyditError` for what is neither."""
    local = resolve(path)
    if os.path.exists(local):
        return local
    if may_be_hub_id(str(path)):
        return None
    names = ", ".join(MODELS)
    raise DyditError(f"{path}: no such checkpoint; give a folder, a .pt or .safetensors file, or a bundled one: {names}")


def resolve(path: str | Path) -> Path:
    """What `path` names: itself, or a bundled checkpoint by its name."""
    return WEIGHTS / str(path) if str(path) in MODELS and not os.path.exists(path) else Path(path)


def _read_folder(folder: Path, reading: LoadOptions) -> Checkpoint:
    if (folder / "model_index.json").is_file():
        return read_pipeline(folder, reading.timestep_variant)
    if (folder / CONFIG_FILE).is_file():
        header = read_json(folder / CONFIG_FILE)
        if is_native(header):
            return read_native(folder, header)
        if isinstance(header, dict) and header.get("_class_name") == "DiTTransformer2DModel":
            return read_transformer(folder, header, reading.timestep_variant)
        raise DyditError(f"{folder / CONFIG_FILE}: neither a dydit nor a diffusers DiTTransformer2DModel configuration")
    if is_adapter_folder(folder):
        raise refuse_alone(folder)
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (*PICKLES, ".safetensors") or is_index(file)]
    indices = [file for file in files if is_index(file)]
    if len(indices or files) == 1:
        return _read_file((indices or files)[0], reading)
    if files:
        raise DyditError(f"{folder}: holds {len(files)} weight files and no config.json; name one, such as {files[0]}")
    raise DyditError(f"{folder}: not a checkpoint: it has no {CONFIG_FILE} and no .pt or .safetensors file")


def _read_file(file: Path, reading: LoadOptions) -> Checkpoint:
    if (file.suffix == ".safetensors" or is_index(file)) and (file.parent / CONFIG_FILE).is_file():
        # a weights file inside a folder whose config.json describes it
        return _read_folder(file.parent, reading)
    if file.name == ADAPTER_WEIGHTS and is_adapter_folder(file.parent):
        raise refuse_alone(file.parent)
    notes: list[str] = []
    trained: dict[str, Any] = {}
    if file.suffix in PICKLES:
        weights, format, trained = _from_pickle(file, reading, notes)
    elif is_index(file) or file.suffix == ".safetensors":
        weights, format = read_tensors(file), "sharded .safetensors" if is_index(file) else ".safetensors"
    else:
        raise DyditError(f"{file}: not a checkpoint; give a folder, a .pt or a .safetensors file")
    with naming(file):
        return replace(_from_state_dict(weights, format, trained, reading, notes), file=file)


def _from_state_dict(
    weights: Weights, format: str, trained: dict[str, Any], reading: LoadOptions, notes: list[str]
) -> Checkpoint:
    variant, eps, asked, origin = reading.timestep_variant, None, reading.family, ""
    if is_diffusers(set(weights)):
        origin, asked, variant = "diffusers ", asked or FAMILY.name, variant or "diffusers"
        eps = 1e-5 if variant == "diffusers" else 1e-6
        weights = from_diffusers(weights)
        notes.append(f"timestep sinusoid and norm2 eps are the {variant} ones (--timestep-variant says which)")
    family = recognise(weights, asked, str(trained.get("model")))
    flow = (reading.flow_path, reading.prediction, reading.noise_at)
    inferred = family.infer(weights, Hints(reading.num_heads, reading.input_size, variant, eps, *flow, trained))
    config = inferred.config
    weights = family.fill(weights, config)
    found = f"{origin}{config.model_name} weights ({format})"
    norm = norm_in_training(config, trained)
    return Checkpoint(config, weights, [], found, (*notes, *inferred.notes), latents=norm).check()


def _from_pickle(file: Path, reading: LoadOptions, notes: list[str]) -> tuple[Weights, str, dict[str, Any]]:
    """The weights in a pickle, plain or in a training script's dict {model, ema, opt, args}, and what it says of itself."""
    value = read_pickle(file)
    if not isinstance(value, dict) or not any(isinstance(value.get(part), dict) for part in get_args(WhichWeights)):
        return state_dict_in(value, file), file.suffix, {}
    part = reading.weights
    if not isinstance(value.get(part), dict):
        raise DyditError(f"{file}: a training checkpoint without {part!r} weights; it has {', '.join(sorted(value))}")
    notes.append(f"the {part} weights of a training checkpoint (--weights says which)")
    return state_dict_in(value[part], file), f"{file.suffix}, training checkpoint", trained_with(value)


def trained_with(value: dict[str, Any]) -> dict[str, Any]:
    """The options of a training script, which it stored beside the weights: `args`, or the sections of a `config`."""
    args, config = value.get("args"), value.get("config")
    sections = [part for part in config.values() if isinstance(part, dict)] if isinstance(config, dict) else []
    return {**vars(args)} if isinstance(args, Namespace) else {name: one for part in sections for name, one in part.items()}
