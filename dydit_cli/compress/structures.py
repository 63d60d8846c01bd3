"""Ordering heads and MLP channels, the most important first, without changing what a model computes.

The always-on head and channel group are the first ones, so conversion ranks before it adds routers (paper, section 3.2).
A criterion takes one block's weights and gives a score per head and per MLP channel; higher is more important.

Legend: C width, H heads, D head width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dydit_cli.compress.options import RankingName as RankingName
from dydit_cli.model.config import DiTConfig

Weights = dict[str, Tensor]

Criterion = Callable[[Weights, str, DiTConfig], tuple[Tensor, Tensor]]


def magnitude(weights: Weights, block: str, config: DiTConfig) -> tuple[Tensor, Tensor]:
    """Mean absolute weight of a head (its q, k, v rows, proj columns) and of a channel (fc1 row, fc2 column).

    Returns scores of shapes (H,) and (F,).
    """
    H, D, C = config.num_heads, config.head_dim, config.hidden_size
    qkv = weights[f"{block}.attn.qkv.weight"].abs().view(3, H, D, C).mean(dim=(0, 2, 3))  # H
    proj = weights[f"{block}.attn.proj.weight"].abs().view(C, H, D).mean(dim=(0, 2))  # H
    fc1 = weights[f"{block}.mlp.fc1.weight"].abs().mean(dim=1)  # F
    fc2 = weights[f"{block}.mlp.fc2.weight"].abs().mean(dim=0)  # F
    return qkv * 3 + proj, fc1 + fc2


CRITERIA: dict[RankingName, Criterion | None] = {"magnitude": magnitude, "none": None}


def rank_block(weights: Weights, i: int, config: DiTConfig, ranking: RankingName) -> Weights:
    """Block `i`'s weights, computing the same, with heads and MLP channels in descending order of importance."""
    block = f"blocks.{i}"
    ranked = {name: w for name, w in weights.items() if name.startswith(f"{block}.")}
    criterion = CRITERIA[ranking]
    if criterion is None:
        return ranked
    heads, channels = criterion(weights, block, config)
    ranked |= select_heads(weights, block, config, heads.argsort(descending=True, stable=True))
    return ranked | select_channels(weights, block, channels.argsort(descending=True, stable=True))


def select_heads(weights: Weights, block: str, config: DiTConfig, order: Tensor) -> Weights:
    """The block's attention weights with head `order[i]` at place i; order: (H,), or fewer, which leaves the others out."""
    H, D, C = config.num_heads, config.head_dim, config.hidden_size
    qkv, bias = weights[f"{block}.attn.qkv.weight"], weights[f"{block}.attn.qkv.bias"]
    proj = weights[f"{block}.attn.proj.weight"]
    return {
        f"{block}.attn.qkv.weight": qkv.view(3, H, D, C)[:, order].reshape(-1, C),
        f"{block}.attn.qkv.bias": bias.view(3, H, D)[:, order].flatten(),
        f"{block}.attn.proj.weight": proj.view(C, H, D)[:, order].reshape(C, -1),
    }


def select_channels(weights: Weights, block: str, order: Tensor) -> Weights:
    """The block's MLP weights with hidden channel `order[i]` at place i; order: (F,), or fewer."""
    return {
        f"{block}.mlp.fc1.weight": weights[f"{block}.mlp.fc1.weight"][order],
        f"{block}.mlp.fc1.bias": weights[f"{block}.mlp.fc1.bias"][order],
        f"{block}.mlp.fc2.weight": weights[f"{block}.mlp.fc2.weight"][:, order].contiguous(),
    }
