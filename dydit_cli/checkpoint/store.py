"""The project's own layout: a folder with config.json and model.safetensors, and where it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dydit_cli.checkpoint.match import Mismatch, compare
from dydit_cli.devices import pick_device
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file, atomic_folder, write_json
from dydit_cli.model.config import DiTConfig, DyDiTConfig, config_from_dict
from dydit_cli.model.dit import DiT
from dydit_cli.model.dydit import DyDiT
from dydit_cli.model.sparse import Executable, Execution, executor

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT, FORMAT_VERSION = "dydit", 1
BUNDLED = Path(__file__).parent.parent / "weights"
BUNDLED_NAMES = ("digits-dit",)


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration, its weights under the public names, and its lineage: what was done to it, oldest first."""

    config: DiTConfig
    weights: dict[str, Tensor]
    lineage: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, model: DiT, lineage: list[dict[str, Any]]) -> Checkpoint:
        return cls(model.config, {name: p.detach().cpu().contiguous() for name, p in model.state_dict().items()}, lineage)

    def build(self) -> DiT:
        """The model, in evaluation mode; raises `DyditError` where names or shapes do not match the configuration."""
        model = build_model(self.config)
        mismatch = compare(model.state_dict(), self.weights)
        if mismatch:
            raise DyditError(f"the weights do not fit the configuration: {mismatch.summary()}")
        model.load_state_dict(self.weights, assign=True)
        model.pos_embed.requires_grad_(False)
        return model.eval()


def build_model(config: DiTConfig) -> DiT:
    """A model of `config` with random weights: `DyDiT` for a `DyDiTConfig`, else `DiT`."""
    return DyDiT(config) if isinstance(config, DyDiTConfig) else DiT(config)


def load(path: str | Path, *, execution: Execution = "masked", device: str = "cpu") -> Executable:
    """The model of a checkpoint folder, or of a bundled one by name, in evaluation mode on `device`.

    `execution` is how a DyDiT runs: `masked` (a `DyDiT`, differentiable), `sparse` (the skipped work left out) or
    `complete` (everything on). Raises `DyditError` where it cannot be read.
    """
    return executor(read(path).build().to(pick_device(device)), execution)


def resolve(path: str | Path) -> Path:
    """The folder that `path` names: itself, or a bundled checkpoint by its name."""
    if not Path(path).exists() and str(path) in BUNDLED_NAMES:
        return BUNDLED / str(path)
    return Path(path)


def read(path: str | Path) -> Checkpoint:
    """Reads a checkpoint folder, or a bundled one by name.

    Raises `DyditError` in one line where it is missing, is no checkpoint, or is damaged. Weights are data only:
    safetensors holds no code.
    """
    folder = resolve(path)
    if not folder.exists():
        raise DyditError(f"{path}: no such checkpoint; give a folder, or a bundled one: {', '.join(BUNDLED_NAMES)}")
    if not folder.is_dir():
        raise DyditError(f"{path}: not a checkpoint; give the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise DyditError(f"{path}: not a checkpoint: it has no {name}")
    header = read_header(folder / CONFIG_FILE)
    try:
        config = config_from_dict(header["model"])
        weights = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise DyditError(f"{folder / WEIGHTS_FILE}: damaged: {error}") from None
    except OSError as error:
        raise DyditError(f"{folder / WEIGHTS_FILE}: cannot be read: {error.strerror or error}") from None
    except DyditError as error:
        raise DyditError(f"{folder / CONFIG_FILE}: {error}") from None
    with torch.device("meta"):
        expected = build_model(config).state_dict()
    mismatch: Mismatch = compare(expected, weights)
    if mismatch:
        raise DyditError(f"{folder / WEIGHTS_FILE}: does not fit {CONFIG_FILE}: {mismatch.summary()}")
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise DyditError(f"{folder / WEIGHTS_FILE}: {name} holds NaN or Inf; the checkpoint is damaged")
    return Checkpoint(config, weights, header["lineage"])


def read_header(path: Path) -> dict[str, Any]:
    """config.json as a dict with `model` and `lineage`; raises `DyditError` where it is none of ours."""
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DyditError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("model"), dict):
        raise DyditError(f'{path}: not a dydit checkpoint\'s configuration; it needs "format": "{FORMAT}" and "model"')
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise DyditError(f"{path}: format version {version!r}; this dydit reads version {FORMAT_VERSION}: update dydit")
    lineage = header.get("lineage", [])
    if not isinstance(lineage, list) or not all(isinstance(entry, dict) for entry in lineage):
        raise DyditError(f'{path}: "lineage" must be a list of objects')
    return {"model": header["model"], "lineage": lineage}


def write(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Writes a whole checkpoint folder at once, replacing what was there; a failure leaves what was there untouched."""
    with atomic_folder(folder) as temporary:
        save_file(checkpoint.weights, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(temporary / CONFIG_FILE, _header(checkpoint))


def write_into(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Writes the two files into a run's folder beside what it holds already, each atomically, the configuration last."""
    folder = Path(folder)
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        save_file(checkpoint.weights, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, _header(checkpoint))


def _header(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": checkpoint.config.to_dict(),
        "lineage": checkpoint.lineage,
    }
