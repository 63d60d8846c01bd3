"""Another number of classes: a fresh label table that keeps the null row."""

from __future__ import annotations

from dataclasses import replace

import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.errors import DyditError

TABLE = "y_embedder.embedding_table.weight"
STD = 0.02  # as DiT initialises it


def with_classes(checkpoint: Checkpoint, num_classes: int, seed: int) -> Checkpoint:
    """`checkpoint` for `num_classes` classes: every class's row is drawn anew, the null class's row stays.

    Raises `DyditError` for fewer than 1 class.
    """
    if num_classes < 1:
        raise DyditError(f"{num_classes} classes; a model has at least 1")
    old = checkpoint.weights[TABLE]
    table = torch.randn(num_classes + 1, old.shape[1], generator=torch.Generator().manual_seed(seed)) * STD
    table[-1] = old[-1].float()
    return replace(
        checkpoint,
        config=replace(checkpoint.config, num_classes=num_classes),
        weights={**checkpoint.weights, TABLE: table.to(old.dtype)},
        lineage=[*checkpoint.lineage, {"action": "re-initialise the label table", "num_classes": num_classes, "seed": seed}],
        labels=None,
    )
