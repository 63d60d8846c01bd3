"""A checkpoint in memory, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dydit_cli.checkpoint.match import compare
from dydit_cli.errors import DyditError
from dydit_cli.model.config import DiTConfig, DyDiTConfig
from dydit_cli.model.dit import DiT
from dydit_cli.model.dydit import DyDiT


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration, its weights under the public names, and where they come from.

    `lineage` is what was done to the model, oldest first; `found` what it was read from, and `notes` what was inferred
    on the way; `labels` are the classes' names and `vae` the folder of the VAE of its latents, where they are known;
    `path` is what the reader was given and `file` the file of the weights (of shards, their index).
    """

    config: DiTConfig
    weights: dict[str, Tensor]
    lineage: list[dict[str, Any]] = field(default_factory=list)
    found: str = "a model in memory"
    notes: tuple[str, ...] = ()
    labels: dict[int, str] | None = None
    vae: Path | None = None
    path: str | None = None
    file: Path | None = None

    @classmethod
    def of(cls, model: DiT, lineage: list[dict[str, Any]], like: Checkpoint | None = None) -> Checkpoint:
        """`model` as it is now, with the labels and the VAE of the checkpoint that it came from."""
        weights = {name: p.detach().cpu().contiguous() for name, p in model.state_dict().items()}
        return cls(model.config, weights, lineage, labels=like.labels if like else None, vae=like.vae if like else None)

    @property
    def trained_on(self) -> str | None:
        """The data set of the last training in the lineage, None where there is none."""
        return next((str(step["data"]) for step in reversed(self.lineage) if step.get("data")), None)

    def check(self) -> Checkpoint:
        """Itself; raises `DyditError` where names or shapes do not match the configuration."""
        blocks = {name.split(".")[1] for name in self.weights if name.startswith("blocks.")}
        if len(blocks) != self.config.depth:
            raise DyditError(f"the weights have {len(blocks)} blocks where the configuration says {self.config.depth}")
        try:
            with torch.device("meta"):
                wanted = build_model(self.config).state_dict()
        except (RuntimeError, OverflowError):
            raise DyditError("the configuration's sizes are too large for any model") from None
        mismatch = compare(wanted, self.weights)
        if mismatch:
            raise DyditError(f"the weights do not fit a {self.config.size_name}: {mismatch.summary()}")
        return self

    def build(self) -> DiT:
        """The model with its own copy of the weights, in their dtype, in evaluation mode."""
        with torch.device("meta"):
            model = build_model(self.config)
        model.load_state_dict({name: w.clone() for name, w in self.weights.items()}, assign=True)
        for name, p in model.named_parameters():
            p.requires_grad_(name != "pos_embed")
        return model.eval()


def build_model(config: DiTConfig) -> DiT:
    """A model of `config` with random weights: `DyDiT` for a `DyDiTConfig`, else `DiT`."""
    return DyDiT(config) if isinstance(config, DyDiTConfig) else DiT(config)
