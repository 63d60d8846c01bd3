"""How much each attention head and each MLP channel of a static model matters, by one of four criteria.

A criterion takes the model and the `Evidence` that it may look at, and gives a score to every head and channel of every
block; higher is kept. Scores are compared within a block and a kind only, so their scale is free.

Legend: L depth, H heads, D head width, C width, F MLP width, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dydit_cli.data.dataset import Dataset
from dydit_cli.diffusion.schedule import TRAIN_STEPS
from dydit_cli.errors import DyditError
from dydit_cli.model.config import DiTConfig
from dydit_cli.model.dit import DiT

Method = Literal["random", "magnitude", "taylor", "diff"]


@dataclass(frozen=True)
class Scores:
    """heads: L x H; channels: L x F; float32 on the cpu. `seen` says in a phrase what they were measured on."""

    heads: Tensor
    channels: Tensor
    seen: str = "the weights alone"


def _ignore(amount: int = 1) -> None:
    pass


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at beside the weights: `batches` of `batch_size` images of `data`, all chance from `seed`.

    `timesteps` and `threshold` are `diff`'s: so many timesteps, of which those count whose loss is at least that share of
    the largest. `on_work` is told of every forward pass. Raises `DyditError` for a number out of range.
    """

    seed: int = 0
    data: Dataset | None = None
    batches: int = 1
    batch_size: int = 64
    timesteps: int = 50
    threshold: float = 0.05
    on_work: Callable[[int], None] = _ignore

    def __post_init__(self) -> None:
        for what, value in (("batches", self.batches), ("images in a batch", self.batch_size)):
            if value < 1:
                raise DyditError(f"{value} {what}; importance is measured on at least 1")
        if not 1 <= self.timesteps <= TRAIN_STEPS:
            raise DyditError(f"{self.timesteps} timesteps; choose 1 to {TRAIN_STEPS}")
        if not 0 <= self.threshold <= 1:
            raise DyditError(f"threshold {self.threshold:g}; it is a share of the largest loss, from 0 to 1")


Criterion = Callable[[DiT, Evidence], Scores]


def structure_sums(values: Mapping[str, Tensor], config: DiTConfig) -> tuple[Tensor, Tensor]:
    """Sums of `values`, one for every weight by the weights' names, over what goes when a structure goes.

    A head is its rows of q, k and v with their biases, and its columns of proj; a channel its row of fc1 with its bias, and
    its column of fc2. Returns L x H and L x F, float32 on the cpu.
    """
    H, D = config.num_heads, config.head_dim
    heads, channels = [], []
    for i in range(config.depth):
        attn, mlp = f"blocks.{i}.attn", f"blocks.{i}.mlp"
        rows = values[f"{attn}.qkv.weight"].float().sum(dim=1) + values[f"{attn}.qkv.bias"].float()  # 3HD
        columns = values[f"{attn}.proj.weight"].float().sum(dim=0)  # HD
        heads.append(rows.view(3, H, D).sum(dim=(0, 2)) + columns.view(H, D).sum(dim=1))  # H
        fc1 = values[f"{mlp}.fc1.weight"].float().sum(dim=1) + values[f"{mlp}.fc1.bias"].float()  # F
        channels.append(fc1 + values[f"{mlp}.fc2.weight"].float().sum(dim=0))  # F
    return torch.stack(heads).cpu(), torch.stack(channels).cpu()


def structured(model: DiT) -> dict[str, torch.nn.Parameter]:
    """The parameters that `structure_sums` reads, by name."""
    parts = ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight")
    return {name: p for name, p in model.named_parameters() if name.startswith("blocks.") and name.endswith(parts)}


def random(model: DiT, evidence: Evidence) -> Scores:
    """Chance alone: uniform scores under the seed."""
    config, generator = model.config, torch.Generator().manual_seed(evidence.seed)
    heads = torch.rand(config.depth, config.num_heads, generator=generator)
    return Scores(heads, torch.rand(config.depth, config.mlp_hidden, generator=generator), "chance alone")


@torch.no_grad()
def magnitude(model: DiT, evidence: Evidence) -> Scores:
    """The L2 norm of all weights of a structure."""
    heads, channels = structure_sums({name: p.float().square() for name, p in structured(model).items()}, model.config)
    return Scores(heads.sqrt(), channels.sqrt())
