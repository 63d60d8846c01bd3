"""Adapters apart from the weights that they are for: a folder in peft's layout (`adapter_config.json` and
`adapter_model.safetensors`), which peft reads, and what peft wrote is read.

Routers are trained beside the adapters, and stand in the file whole (peft's `modules_to_save`). What peft has no word for, the
configuration and the lineage, stands in the file's metadata.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dydit_cli import marks
from dydit_cli.checkpoint import lineage
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.stream import PYTORCH, write_safetensors
from dydit_cli.checkpoint.tensors import read_safetensors
from dydit_cli.errors import DyditError, naming
from dydit_cli.files import atomic_file, parse_json, read_json, write_json
from dydit_cli.model.config import ModelConfig, RoutedConfig
from dydit_cli.model.families import config_from_dict
from dydit_cli.model.lora import A, B, Lora
from dydit_cli.model.sites import Weights

CONFIG_FILE, WEIGHTS_FILE = marks.ADAPTER, "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's, before the names of what it wraps
OURS = "dydit"  # the key in the metadata
ROUTING = ("token_routing", "budgets", "measured", "allocation")  # what a training may change of a configuration
# what changes the function in ways that are not read here
FOREIGN = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication", "use_qalora", "lora_bias")


@dataclass(frozen=True)
class Adapter:
    """`lora`, the `others` that take the place of the weights of their names, and, of an adapter that dydit wrote, the model's
    configuration and the steps of its lineage."""

    lora: Lora
    others: Weights
    config: ModelConfig | None = None
    lineage: list[dict[str, Any]] = field(default_factory=list)


def write_adapter(folder: Path, lora: Lora, trained: Checkpoint, start: Checkpoint) -> None:
    """Writes the two files into a run's folder, each atomically, the configuration last; `trained` is `start` with `lora`
    merged and its routers trained."""
    config = trained.config
    rank = len(next(iter(lora.pairs.values()))[0])
    halves = enumerate((A, B))
    tensors = {f"{PREFIX}{name}.{part}.weight": pair[i] for i, part in halves for name, pair in lora.pairs.items()}
    tensors |= {PREFIX + name: w for name, w in trained.weights.items() if config.is_router(name)}
    own = {"model": config.to_dict(), "lineage": trained.lineage[len(start.lineage) :]}
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        write_safetensors(temporary, tensors, {**PYTORCH, OURS: json.dumps(own)})
    blocks = tuple(f"{block}." for block in config.block_names())
    targets = {name.removeprefix(block) for name in lora.pairs for block in blocks if name.startswith(block)}
    write_json(
        folder / CONFIG_FILE,
        {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": start.path,
            "r": rank,
            "lora_alpha": lora.scale * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(targets),
            "modules_to_save": list(config.routers) or None,
            "inference_mode": True,
        },
    )


def is_adapter_folder(path: Path) -> bool:
    """Whether it has an adapter and no model."""
    return (path / CONFIG_FILE).is_file() and not (path / marks.CHECKPOINT).is_file()


def refuse_alone(path: Path) -> DyditError:
    """For an adapter in the place of a checkpoint."""
    header = read_json(path / CONFIG_FILE)
    base = header.get("base_model_name_or_path") if isinstance(header, dict) else None
    return DyditError(f"{path}: holds an adapter without its model; give both, as {base or 'BASE'} --adapter {path}")


def read_adapter(folder: Path) -> Adapter:
    """Raises `DyditError` where the folder holds none, or one of another kind than plain LoRA."""
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise DyditError(f"{folder}: no adapter, which has {CONFIG_FILE} and {WEIGHTS_FILE}; dydit finetune --lora makes one")
    file, header = folder / WEIGHTS_FILE, read_json(folder / CONFIG_FILE)
    with naming(folder / CONFIG_FILE):
        scale = scale_of(header)
    weights = read_safetensors(file)
    with naming(file):
        lora, others = split(weights, scale, header["r"])
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(OURS)
        if text is None:
            return Adapter(lora, others)
        try:
            own = parse_json(text)
            return Adapter(lora, others, config_from_dict(own["model"]), [dict(step) for step in own["lineage"]])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise DyditError("its metadata are damaged") from None


def scale_of(header: Any) -> float:
    """By which B A is multiplied; raises `DyditError` for a configuration of something else than plain LoRA."""
    if not isinstance(header, dict) or header.get("peft_type") != "LORA":
        kind = header.get("peft_type") if isinstance(header, dict) else None
        raise DyditError(f"peft_type is {kind!r}; only LORA is read")
    if odd := next((name for name in FOREIGN if header.get(name)), None):
        raise DyditError(f"{odd} is {header[odd]!r}; only plain LoRA is read: merge it with peft, and give the model")
    if header.get("bias", "none") != "none":
        raise DyditError(f"bias is {header['bias']!r}; only 'none' is read: merge it with peft, and give the model")
    rank, alpha = header.get("r"), header.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise DyditError(f"r is {rank!r} and lora_alpha {alpha!r}; they must be numbers, r of 1 or more")
    return alpha / (math.sqrt(rank) if header.get("use_rslora") else rank)


def split(weights: Weights, scale: float, rank: int) -> tuple[Lora, Weights]:
    """The adapters' matrices, by the names of their Linears, and the other weights; raises `DyditError` where one lacks its
    other half, or is not of the rank."""
    own = {name.removeprefix(PREFIX): w for name, w in weights.items()}
    matches = {name: re.fullmatch(rf"(.+)\.({A}|{B})\.weight", name) for name in own}
    names = dict.fromkeys(match.group(1) for match in matches.values() if match)
    pairs = {}
    for name in names:
        a, b = (own.get(f"{name}.{part}.weight") for part in (A, B))
        if a is None or b is None:
            raise DyditError(f"{name} has {B if a is None else A} alone")
        if a.ndim != 2 or b.ndim != 2 or not len(a) == b.shape[1] == rank:
            raise DyditError(f"{name}: {A} is {list(a.shape)} and {B} {list(b.shape)}, which are not of rank {rank}")
        pairs[name] = (a, b)
    if not pairs:
        raise DyditError("holds no LoRA matrices")
    return Lora(scale, pairs), {name: w for name, w in own.items() if not matches[name]}


def with_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """`checkpoint` in float32 with the adapter in `folder` merged; raises `DyditError` where it is another model's."""
    adapter, config = read_adapter(folder), checkpoint.config
    with naming(folder):
        if adapter.config is not None:
            same = {name: getattr(adapter.config, name) for name in ROUTING} if isinstance(adapter.config, RoutedConfig) else {}
            if type(adapter.config) is not type(config) or replace(config, **same) != adapter.config:
                of, found = (f"{one.model_name} ({one.size_name})" for one in (adapter.config, config))
                raise DyditError(f"is for a {of}, and the model is a {found}; give the one that it was trained on")
            config = adapter.config
        for name, (a, b) in adapter.lora.pairs.items():
            weight, shape = checkpoint.weights.get(f"{name}.weight"), [len(b), a.shape[1]]
            if weight is None or list(weight.shape) != shape:
                found = "which the model has not" if weight is None else f"and the model's is {list(weight.shape)}"
                raise DyditError(f"is for a weight {name} {shape}, {found}")
        kept = {name: w for name, w in checkpoint.weights.items() if adapter.config is None or not config.is_router(name)}
        weights = {**adapter.lora.merged(kept), **{name: w.float() for name, w in adapter.others.items()}}
        steps = adapter.lineage or [lineage.entry("merge an adapter", adapter=str(folder))]
        note = f"with the adapter {folder} (rank {len(next(iter(adapter.lora.pairs.values()))[0])}) merged"
        return replace(
            checkpoint, config=config, weights=weights, lineage=[*checkpoint.lineage, *steps], notes=(*checkpoint.notes, note)
        ).check()
