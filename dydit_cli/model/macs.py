"""Multiply-accumulates in closed form over a `Routing`, whatever the family: sites times what was on, and what surrounds them.

Conventions are fvcore's: 1 multiply-accumulate counts 1, a LayerNorm without affine weights counts 4 per element and one
with them 5, and elementwise work (activations, modulation, residuals, softmax, rotary positions) counts 0. fvcore has none for
an RMSNorm, which counts 4 here, as the LayerNorm in whose place it stands; with a weight or without, since where that is
multiplied is an executor's choice. What a cache forecasts is a weighted sum: 1 per element of each output that is added.

Legend: L depth, B batch, N tokens, C width, H heads, D head width, A attention width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dydit_cli.model.caching import Forecast, kept_numbers
from dydit_cli.model.config import ModelConfig, RoutedConfig
from dydit_cli.model.merging import Merging
from dydit_cli.model.routers import token_router, width_router
from dydit_cli.model.routing import Routing


@dataclass(frozen=True)
class BlockMacs:
    """MACs per block and sample, each L x B, int64."""

    attention: Tensor
    mlp: Tensor
    width_routers: Tensor
    token_routers: Tensor
    modulation: Tensor
    norms: Tensor

    @property
    def routers(self) -> Tensor:
        return self.width_routers + self.token_routers

    @property
    def total(self) -> Tensor:
        return self.attention + self.mlp + self.routers + self.modulation + self.norms


def attention_macs(config: ModelConfig, block: int = 0) -> int:
    """One block's attention with every head on, per sample: 4 N C A + 2 N^2 A; 4 N C^2 + 2 N^2 C where A is C."""
    return config.num_tokens * config.site("heads", block).macs_per_token


def mlp_macs(config: ModelConfig, block: int = 0) -> int:
    """One block's MLP with every group on, per sample: 2 N C F, 8 N C^2 where F is 4 C."""
    return config.num_tokens * config.site("groups", block).macs_per_token


def routed_macs(config: ModelConfig) -> int:
    """Attention and MLP of all blocks with everything on, per sample: what routers and pruning make smaller."""
    return sum(attention_macs(config, i) + mlp_macs(config, i) for i in range(config.depth))


def merged_attention_macs(config: ModelConfig, merging: Merging) -> int:
    """One block's attention over M = N - merged tokens, per sample, and what it costs to match them (ToMe).

    4 M C A + 2 M^2 A, and the norms of queries and keys; the mean keys N C D, and the similarity of S sources to T
    destinations S T D.
    """
    site, C, M = config.site("heads"), config.hidden_size, merging.kept
    A, D = site.units * site.unit, site.unit
    matching = merging.tokens * C * D + merging.sources * merging.destinations * D
    return 4 * M * C * A + M * site.units * site.norms + 2 * M * M * A + matching


def flops_ratio(routing: Routing, config: ModelConfig) -> Tensor:
    """(B,) the differentiable ratio of dynamic to static MACs of attention and MLP in the blocks alone.

    Per block mean(heads) f_attn + mean(groups) mean(tokens) f_mlp, over the sum of f_attn + f_mlp; the mean over groups is
    one over channels, where groups have not as many of them.
    """
    attention, mlp = (
        torch.tensor([macs(config, i) for i in range(config.depth)], dtype=torch.float64).to(routing.heads)[:, None]
        for macs in (attention_macs, mlp_macs)
    )  # each L 1
    heads = config.site("heads").active_share(routing.heads)  # L B
    hidden = config.site("groups").active_share(routing.groups) * routing.tokens.mean(dim=2)  # L B
    return (heads * attention + hidden * mlp).sum(dim=0) / routed_macs(config)


def block_macs(routing: Routing, config: ModelConfig, merging: Merging | None = None) -> BlockMacs:
    """What the blocks execute when what `routing` switches off is left out; L x B in every field.

    With `merging` a static model's attention sees merged tokens (`merged_attention_macs`). Of what a cache forecast only the
    forecast is left, as the attention's and the MLP's, and the gates.
    """
    if routing.forecast is not None:
        return forecast_macs(routing.forecast, routing.heads[..., 0].long(), config)
    heads = config.site("heads").active_units(routing.heads)
    channels = config.site("groups").active_units(routing.groups)
    return macs_of_units(heads, channels, routing.tokens.sum(dim=2).long(), config, merging)


def macs_of_units(
    heads: Tensor, channels: Tensor, tokens: Tensor, config: ModelConfig, merging: Merging | None = None
) -> BlockMacs:
    """As `block_macs`, of the numbers of active heads, MLP channels and tokens: int64, L x B each."""
    N = config.num_tokens
    width_routers = token_routers = 0
    if isinstance(config, RoutedConfig):
        width_routers, token_routers = width_router_macs(config), N * token_router(config).macs(config)
    per_head, per_channel = (
        torch.tensor([config.site(structure, i).macs_per_unit for i in range(config.depth)], device=heads.device).view(
            -1, *[1] * (heads.dim() - 1)
        )
        for structure in ("heads", "groups")
    )  # each L 1
    attention = heads * (N * per_head)
    if merging is not None:
        attention = torch.full_like(heads, merged_attention_macs(config, merging))
    return BlockMacs(
        attention=attention,
        mlp=tokens * channels * per_channel,
        width_routers=torch.full_like(heads, width_routers),
        token_routers=torch.full_like(heads, token_routers),
        modulation=torch.full_like(heads, config.modulation_macs()),
        # the attention's norm sees every token; the MLP's only those that go through it
        norms=config.norm_macs() * (N + tokens),
    )


def forecast_macs(forecast: Forecast, like: Tensor, config: ModelConfig) -> BlockMacs:
    """As `block_macs`, of forecast outputs: their sums and gates, or nothing where the model's own output is forecast.

    like: L x B, int64.
    """
    inside = forecast.at == "sublayers"
    sums, gates = (forecast.values - 1) * config.num_tokens * config.hidden_size, 2 * config.gate_macs()
    every, gates_alone, none = (torch.full_like(like, macs * inside) for macs in (sums, gates, 0))  # each L B
    return BlockMacs(every, every, none, none, gates_alone, none)


def surrounding_macs(forecast: Forecast | None, config: ModelConfig) -> int:
    """What a call costs outside the blocks, per sample: the embedders and the final layer, or the model's forecast output."""
    if forecast is None or forecast.at == "sublayers":
        return config.embed_and_head_macs()
    return (forecast.values - 1) * kept_numbers(config, "model")


def sparse_step_macs(routing: Routing, config: ModelConfig) -> Tensor:
    """What one call of a sparse model executes once it is prepared, per sample: (B,) int64.

    Not in it is what a sampling run shares: the timestep embedding and the width routers, run once a timestep for all
    images (`plan_macs`), and adaLN, run ahead for several steps (`ahead_macs`).
    """
    blocks = block_macs(routing, config)
    own = blocks.attention + blocks.mlp + blocks.token_routers + blocks.norms  # L B
    return own.sum(dim=0) + config.embed_and_head_macs() - config.timestep_macs()


def width_router_macs(config: RoutedConfig) -> int:
    """The head and the group router of one block, per timestep."""
    return 2 * width_router(config).macs(config)


def plan_macs(config: RoutedConfig, timesteps: int) -> int:
    """Deciding heads and groups of every block at so many timesteps, once for all images."""
    return timesteps * (config.timestep_macs() + config.depth * width_router_macs(config))


def ahead_macs(config: ModelConfig, timesteps: int, rows: int) -> int:
    """adaLN of all blocks for so many rows (samples times timesteps), and the embedding of each timestep."""
    return timesteps * config.timestep_macs() + rows * config.depth * config.modulation_macs()


def total_macs(routing: Routing, config: ModelConfig, merging: Merging | None = None) -> Tensor:
    """One forward pass, (B,) int64: the blocks as routed, or with `merging`, and what surrounds them."""
    return block_macs(routing, config, merging).total.sum(dim=0) + surrounding_macs(routing.forecast, config)


def static_macs(config: ModelConfig) -> int:
    """One forward pass of the static model of this size, per sample. DiT-XL/2: 118.69 G."""
    return int(total_macs(Routing.all_on(config, 1), config.static())[0])
