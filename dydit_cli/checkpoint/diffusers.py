"""diffusers' layouts: a DiTTransformer2DModel folder, and a DiTPipeline folder with one in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import parse_labels
from dydit_cli.checkpoint.stream import write_safetensors
from dydit_cli.checkpoint.tensors import INDEX_ENDING, read_tensors
from dydit_cli.errors import DyditError, naming
from dydit_cli.files import atomic_folder, read_json, write_json
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.execution import Executable, executor
from dydit_cli.model.families.dit import DiTConfig, fill, from_diffusers, to_diffusers
from dydit_cli.model.options import Execution, TimestepVariant

if TYPE_CHECKING:
    from dydit_cli.checkpoint.transformer import DiffusersTransformer

CLASS, PIPELINE_CLASS = "DiTTransformer2DModel", "DiTPipeline"

STEM = "diffusion_pytorch_model"

NORM_EPS = 1e-5  # diffusers' default, and what its norm before the MLP uses

# what the public DiT is; another value is another function
FIXED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}


def read_pipeline(folder: Path, variant: TimestepVariant | None) -> Checkpoint:
    """The transformer of a whole pipeline, with its class names, and the VAE beside it."""
    index = read_json(folder / "model_index.json")
    if not isinstance(index, dict) or index.get("_class_name") != PIPELINE_CLASS:
        name = index.get("_class_name") if isinstance(index, dict) else None
        raise DyditError(f"{folder}: a pipeline of class {name!r}; dydit reads {PIPELINE_CLASS}")
    transformer = folder / "transformer"
    if not (transformer / "config.json").is_file():
        raise DyditError(f"{folder}: a pipeline without transformer/config.json")
    inner = read_transformer(transformer, read_json(transformer / "config.json"), variant)
    with naming(folder / "model_index.json"):
        labels = parse_labels(index["id2label"]) if index.get("id2label") else None
    vae = folder / "vae" if (folder / "vae" / "config.json").is_file() else None
    notes = (*inner.notes, f"VAE in {vae}" if vae else "no VAE beside it", _scheduler(folder))
    return replace(inner, found="diffusers DiTPipeline folder", notes=notes, labels=labels, vae=vae)


def _scheduler(folder: Path) -> str:
    """The pipeline's scheduler as a phrase; dydit samples with the one that its options name."""
    path = folder / "scheduler" / "scheduler_config.json"
    values = read_json(path) if path.is_file() else None
    if not isinstance(values, dict):
        return "no scheduler beside it"
    spacing = values.get("timestep_spacing", "leading")
    return f"scheduler {values.get('_class_name')} with {spacing} timesteps (dydit sample --spacing {spacing})"


def read_transformer(folder: Path, config: Any, variant: TimestepVariant | None) -> Checkpoint:
    """A DiTTransformer2DModel folder whose parsed config.json is `config`.

    It is read as diffusers runs it, unless `variant` is `original`: then as the DiT authors' code runs it.
    """
    with naming(folder / "config.json"):
        ours = _config(config, variant or "diffusers")
    theirs, file = _weights(folder)
    with naming(file):
        weights = fill(from_diffusers(theirs), ours)
        runs = "diffusers'" if ours.timestep_variant == "diffusers" else "the DiT authors'"
        notes = (f"timestep sinusoid and norm2 eps are {runs} (--timestep-variant says which)",)
        return Checkpoint(ours, weights, [], f"diffusers {CLASS} folder", notes, file=file).check()


def _config(values: Any, variant: TimestepVariant) -> DiTConfig:
    if not isinstance(values, dict):
        raise DyditError(f"not a configuration of a {CLASS}")

    def whole(name: str) -> int:
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise DyditError(f"{name} is {value!r}; it must be a whole number")
        return value

    for name, value in FIXED.items():
        if values.get(name, value) != value:
            raise DyditError(f"{name} is {values[name]!r}; a DiT has {value!r}")
    channels = whole("in_channels")
    out = channels if values.get("out_channels") is None else whole("out_channels")
    if out not in (channels, 2 * channels):
        raise DyditError(f"out_channels {out} is neither in_channels {channels} nor twice that")
    return DiTConfig(
        input_size=whole("sample_size"),
        patch_size=whole("patch_size"),
        in_channels=channels,
        hidden_size=whole("num_attention_heads") * whole("attention_head_dim"),
        depth=whole("num_layers"),
        num_heads=whole("num_attention_heads"),
        num_classes=whole("num_embeds_ada_norm"),
        learn_sigma=out == 2 * channels,
        timestep_variant=variant,
        norm2_eps=values.get("norm_eps", NORM_EPS) if variant == "diffusers" else 1e-6,
    )


def _weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    for pattern in (f"{STEM}.safetensors", f"{STEM}{INDEX_ENDING}", f"{STEM}.fp16.safetensors", f"{STEM}.bin"):
        path = folder / pattern
        if path.is_file():
            return read_tensors(path), path
    raise DyditError(f"{folder}: has no weights: {STEM}.safetensors is missing")


def write_transformer(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes a static checkpoint as a DiTTransformer2DModel folder; raises `DyditError` where diffusers' class lacks a
    setting that the model needs."""
    config = checkpoint.config
    assert isinstance(config, DiTConfig)
    if (config.attention_hidden, config.mlp_hidden) != (config.hidden_size, 4 * config.hidden_size):
        raise DyditError(
            f"diffusers' {CLASS} has attention as wide as the model and an MLP 4 times as wide; of width {config.hidden_size}, "
            f"this one has {config.attention_hidden} and {config.mlp_hidden}: use --format native"
        )
    values = {
        "_class_name": CLASS,
        **FIXED,
        "attention_head_dim": config.head_dim,
        "dropout": 0.0,
        "in_channels": config.in_channels,
        "norm_eps": config.norm2_eps,
        "norm_num_groups": 32,
        "num_attention_heads": config.num_heads,
        "num_embeds_ada_norm": config.num_classes,
        "num_layers": config.depth,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "sample_size": config.input_size,
        "upcast_attention": False,
    }
    weights = to_diffusers({name: w for name, w in checkpoint.weights.items() if name != "pos_embed"}, config.depth)
    with atomic_folder(folder) as temporary:
        write_safetensors(temporary / f"{STEM}.safetensors", weights)
        write_json(temporary / "config.json", values)


def as_diffusers(model: Executable, execution: Execution = "sparse") -> DiffusersTransformer:
    """What `load` returned, ready to be a DiTPipeline's transformer; `execution` is how a DyDiT runs."""
    from dydit_cli.checkpoint.transformer import DiffusersTransformer  # with diffusers, which takes its time

    return DiffusersTransformer(executor(model, execution) if isinstance(model, Backbone) else model)
