"""Which heads and channel groups run at which timestep, decided once before sampling: TDW depends on t alone.

Legend: T timesteps, L depth, H heads (and channel groups), C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dydit_cli.model.dydit import DyDiT, DynamicBlock

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class BlockWidth:
    """One block at one timestep: the active heads and groups as runs (first, one past the last), and as masks 1 x H."""

    heads: Runs
    groups: Runs
    head_mask: Tensor
    group_mask: Tensor


def runs_of(active: Sequence[bool]) -> Runs:
    """`[True, True, False, True]` as ((0, 2), (3, 4))."""
    edges = [i for i in range(len(active) + 1) if (i < len(active) and active[i]) != (i > 0 and active[i - 1])]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


@torch.no_grad()
def width_masks(model: DyDiT, timesteps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which heads and which channel groups are on: T x L x H each, zeros and ones; TDW's routers see nothing else."""
    place = next(model.t_embedder.parameters()).device
    e = model.t_embedder(torch.tensor(list(timesteps), device=place))  # T C
    heads, groups = [], []
    for block in model.blocks:
        assert isinstance(block, DynamicBlock)
        heads.append(block.attn_rate(e, 1.0, 0.0))  # T H
        groups.append(block.mlp_rate(e, 1.0, 0.0))  # T H
    return torch.stack(heads, dim=1), torch.stack(groups, dim=1)


def plan_width(model: DyDiT, timesteps: Sequence[int]) -> dict[int, list[BlockWidth]]:
    """Every block's `BlockWidth` at every timestep; one transfer from the device for all of them."""
    head_masks, group_masks = width_masks(model, timesteps)  # each T L H
    active_heads, active_groups = head_masks.bool().tolist(), group_masks.bool().tolist()
    return {
        timestep: [
            BlockWidth(
                runs_of(active_heads[i][j]), runs_of(active_groups[i][j]), head_masks[i, j : j + 1], group_masks[i, j : j + 1]
            )
            for j in range(len(model.blocks))
        ]
        for i, timestep in enumerate(timesteps)
    }
