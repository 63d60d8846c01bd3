"""What one forward pass switched on: the record in which model, executor, counter, recorder, figures and loss meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dydit_cli.model.caching import Forecast
from dydit_cli.model.config import ModelConfig


@dataclass(frozen=True)
class BlockRouting:
    """One block's part of a `Routing`. heads, groups: B H; tokens: B N; zeros and ones."""

    heads: Tensor
    groups: Tensor
    tokens: Tensor

    @classmethod
    def none_of(cls, config: ModelConfig, batch: int, device: torch.device) -> list[BlockRouting]:
        """For every block that nothing of it is on, which holds of those that something else left out."""
        width = torch.zeros(batch, config.num_heads, device=device)
        return [cls(width, width, torch.zeros(batch, config.num_tokens, device=device))] * config.depth


@dataclass(frozen=True)
class Routing:
    """Masks of one forward pass, floating point, exactly 0 and 1.

    `heads` and `groups` are L x B x H and depend on the timestep alone; `tokens` is L x B x N and depends on the
    content. In training they carry straight-through gradients to the routers. A token mask concerns the MLP only:
    attention sees every token. Where a cache forecast the outputs nothing is on, and `forecast` says from what.
    """

    heads: Tensor
    groups: Tensor
    tokens: Tensor
    forecast: Forecast | None = None

    @classmethod
    def stack(cls, blocks: Sequence[BlockRouting]) -> Routing:
        return cls(
            heads=torch.stack([block.heads for block in blocks]),
            groups=torch.stack([block.groups for block in blocks]),
            tokens=torch.stack([block.tokens for block in blocks]),
        )

    @classmethod
    def all_on(cls, config: ModelConfig, batch: int, device: torch.device | str | None = None) -> Routing:
        """What a static model does: everything, for every sample."""
        width = torch.ones(config.depth, batch, config.num_heads, device=device)
        tokens = torch.ones(config.depth, batch, config.num_tokens, device=device)
        return cls(heads=width, groups=width.clone(), tokens=tokens)

    @classmethod
    def forecast_from(cls, forecast: Forecast, config: ModelConfig, batch: int, device: torch.device) -> Routing:
        """What a cache does in place of computing: no head, group or token is on."""
        width = torch.zeros(config.depth, batch, config.num_heads, device=device)
        return cls(width, width.clone(), torch.zeros(config.depth, batch, config.num_tokens, device=device), forecast)

    @classmethod
    def cat(cls, parts: Sequence[Routing]) -> Routing:
        """Of several batches, one after the other."""
        heads, groups, tokens = (
            torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("heads", "groups", "tokens")
        )
        return cls(heads, groups, tokens)

    @property
    def batch(self) -> int:
        return self.heads.shape[1]

    def detach(self) -> Routing:
        return Routing(self.heads.detach(), self.groups.detach(), self.tokens.detach(), self.forecast)

    def select(self, samples: Tensor | slice) -> Routing:
        """The part of the batch that `samples` indexes."""
        return Routing(self.heads[:, samples], self.groups[:, samples], self.tokens[:, samples], self.forecast)
