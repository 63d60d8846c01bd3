"""A checkpoint in memory, whatever it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families import build_shapes
from dydit_cli.model.latent_norm import LatentNorm

SHOWN = 5


@dataclass(frozen=True)
class Mismatch:
    """Empty (and false) where everything fits. `wrong` maps a name to its (expected, actual) shapes, as text."""

    missing: list[str]
    unexpected: list[str]
    wrong: dict[str, tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong)

    def summary(self) -> str:
        """One line; at most five names of each sort."""
        parts = []
        if self.missing:
            parts.append(f"missing {_some(self.missing)}")
        if self.unexpected:
            parts.append(f"unknown {_some(self.unexpected)}")
        if self.wrong:
            shapes = [f"{name} is {actual} where {expected} is wanted" for name, (expected, actual) in self.wrong.items()]
            parts.append(_some(shapes))
        return "; ".join(parts)


def compare(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> Mismatch:
    """Compares names and shapes."""
    shapes = {
        name: (str(list(expected[name].shape)), str(list(actual[name].shape)))
        for name in sorted(expected.keys() & actual.keys())
    }
    return Mismatch(
        missing=sorted(expected.keys() - actual.keys()),
        unexpected=sorted(actual.keys() - expected.keys()),
        wrong={name: (a, b) for name, (a, b) in shapes.items() if a != b},
    )


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration, its weights under the public names, and where they come from.

    `lineage` is what was done to the model, oldest first; `found` what it was read from, and `notes` what was inferred
    on the way; `labels` are the classes' names and `vae` the folder of the VAE of its latents, where they are known;
    `latents` is how those were normalised, None where that is not known, and for pixels; `path` is what the reader was given
    and `file` the file of the weights (of shards, their index).
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    lineage: list[dict[str, Any]] = field(default_factory=list)
    found: str = "a model in memory"
    notes: tuple[str, ...] = ()
    labels: dict[int, str] | None = None
    vae: Path | None = None
    path: str | None = None
    file: Path | None = None
    latents: LatentNorm | None = None

    @classmethod
    def of(cls, model: Backbone, lineage: list[dict[str, Any]], like: Checkpoint | None = None) -> Checkpoint:
        """`model` as it is now, with the labels, the VAE and its normalisation of the checkpoint that it came from."""
        weights = {name: p.detach().cpu().contiguous() for name, p in model.state_dict().items()}
        made = cls(model.config, weights, lineage)
        return replace(made, labels=like.labels, vae=like.vae, latents=like.latents) if like else made

    @property
    def trained_on(self) -> str | None:
        """The data set of the last training in the lineage, None where there is none."""
        return next((str(step["data"]) for step in reversed(self.lineage) if step.get("data")), None)

    def check(self) -> Checkpoint:
        """Itself; raises `DyditError` where names or shapes do not match the configuration."""
        blocks = self.config.count_blocks(self.weights)
        if blocks != self.config.depth:
            raise DyditError(f"the weights have {blocks} blocks where the configuration says {self.config.depth}")
        try:
            expected = build_shapes(self.config).state_dict()
        except (RuntimeError, OverflowError):
            raise DyditError("the configuration's sizes are too large for any model") from None
        mismatch = compare(expected, self.weights)
        if mismatch:
            raise DyditError(f"the weights do not fit a {self.config.size_name}: {mismatch.summary()}")
        return self

    def build(self) -> Backbone:
        """The model with its own copy of the weights, in their dtype, in evaluation mode; one of a range of FLOPs ratios is set
        to its allocation, or to its largest."""
        model = build_shapes(self.config)
        model.load_state_dict({name: w.clone() for name, w in self.weights.items()}, assign=True)
        if isinstance(model, DynamicBackbone) and model.config.budgets:
            model.set_flops_ratio(model.config.budgets[-1])
            if model.config.allocation:
                model.set_allocation(model.config.allocation)
        return model.eval()


STD = 0.02  # as DiT initialises it


def with_classes(checkpoint: Checkpoint, num_classes: int, seed: int) -> Checkpoint:
    """`checkpoint` for `num_classes` classes: every class's row is drawn anew, the null class's row stays.

    Raises `DyditError` for fewer than 1 class, and for a model without classes.
    """
    if num_classes < 1:
        raise DyditError(f"{num_classes} classes; a model has at least 1")
    if not checkpoint.config.num_classes:
        raise DyditError(f"{num_classes} classes for a model without any, which ignores labels; leave --num-classes out")
    name = checkpoint.config.label_table
    old = checkpoint.weights[name]
    table = torch.randn(num_classes + 1, old.shape[1], generator=torch.Generator().manual_seed(seed)) * STD
    table[-1] = old[-1].float()
    return replace(
        checkpoint,
        config=replace(checkpoint.config, num_classes=num_classes),
        weights={**checkpoint.weights, name: table.to(old.dtype)},
        lineage=[*checkpoint.lineage, {"action": "re-initialise the label table", "num_classes": num_classes, "seed": seed}],
        labels=None,
    )
