"""What is decided and computed before a sampling run's steps: which heads and channel groups run at which timestep, since TDW
depends on t alone, and adaLN for several timesteps at once.

With few samples in a batch, adaLN's Linear C -> 6C is read from memory for a handful of rows and does not shrink with the
routing: at batch 2 it is 6 % of a DiT-XL/2 step. A sampling run's timesteps and labels are known beforehand, so the rows of
several steps share one reading. It is the same arithmetic on the same numbers.

Legend: T timesteps, B batch, C width, L depth, H heads (and channel groups), K timesteps at once, W width of a modulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.weight_cache import Runs

ROWS = 64  # from about here on the product itself, and no longer reading the weights, takes the time


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
def width_masks(model: DynamicBackbone, timesteps: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Which heads and which channel groups are on: T x L x H each, zeros and ones; TDW's routers see nothing else."""
    t = torch.tensor(list(timesteps), device=model.device)
    model.at_timesteps(t)
    e = model.embed_timestep(t)  # T C
    blocks = model.routed_blocks
    heads, groups = ([router(e, 1.0, 0.0) for router in routers] for routers in (
        [block.head_router for block in blocks], [block.group_router for block in blocks]
    ))  # fmt: skip
    return torch.stack(heads, dim=1), torch.stack(groups, dim=1)


def plan_width(model: DynamicBackbone, timesteps: Sequence[float]) -> dict[float, list[BlockWidth]]:
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


@dataclass(frozen=True)
class StepModulation:
    """One timestep: c is B C, and each of the L blocks' modulations B W."""

    c: Tensor
    blocks: list[Tensor]


@dataclass
class Modulations:
    """Hands out a `StepModulation`, computing those of the next timesteps with it while rows are few.

    `timesteps` and `rows` (a row is one sample at one timestep) count what was computed since the beginning.
    """

    model: DynamicBackbone
    timesteps: int = 0
    rows: int = 0
    _labels: Tensor | None = None
    _kept: dict[float, StepModulation] = field(default_factory=dict)

    def clear(self) -> None:
        """Drops what was precomputed."""
        self._labels = None
        self._kept.clear()

    def at(self, timestep: float, y: Tensor, following: Sequence[float]) -> StepModulation:
        """For labels y (B,); `following` are the timesteps that come after this one, in order."""
        if self._labels is None or self._labels.shape != y.shape or not torch.equal(self._labels, y):
            self.clear()
            self._labels = y.clone()
        if timestep not in self._kept:
            count = max(1, ROWS // len(y))
            self._kept = self._compute([timestep, *following[: count - 1]], y)
        return self._kept[timestep]

    def _compute(self, timesteps: list[float], y: Tensor) -> dict[float, StepModulation]:
        K, B = len(timesteps), len(y)
        self.timesteps, self.rows = self.timesteps + K, self.rows + K * B
        e = self.model.embed_timestep(torch.tensor(timesteps, device=y.device))  # K C
        c = self.model.condition(e.unsqueeze(1), y).view(K * B, -1)  # KB C
        blocks = [block.modulation(c).view(K, B, -1) for block in self.model.routed_blocks]  # each K B W
        c = c.view(K, B, -1)
        return {t: StepModulation(c[i], [block[i] for block in blocks]) for i, t in enumerate(timesteps)}
