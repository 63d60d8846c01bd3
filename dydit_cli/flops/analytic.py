"""Multiply-accumulates in closed form over a `Routing`.

Conventions are fvcore's: 1 multiply-accumulate counts 1, a LayerNorm without affine counts 4 per element, and
elementwise work (activations, modulation, residuals, softmax) counts 0.

Legend: L depth, B batch, N tokens, C width, H heads, D head width, A attention width, G groups, W channels in a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dydit_cli.model.config import DiTConfig, DyDiTConfig
from dydit_cli.model.layers import FREQUENCIES
from dydit_cli.model.routing import Routing
from dydit_cli.model.tome import Merging

NORM_MACS_PER_ELEMENT = 4


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


def attention_macs(config: DiTConfig) -> int:
    """One block's attention with every head on, per sample: 4 N C A + 2 N^2 A; 4 N C^2 + 2 N^2 C where A is C."""
    N, C, A = config.num_tokens, config.hidden_size, config.attention_hidden
    return 4 * N * C * A + 2 * N * N * A


def merged_attention_macs(config: DiTConfig, merging: Merging) -> int:
    """One block's attention over M = N - merged tokens, per sample, and what it costs to match them (ToMe).

    4 M C A + 2 M^2 A; the mean keys N C D, and the similarity of S sources to T destinations S T D.
    """
    C, A, D, M = config.hidden_size, config.attention_hidden, config.head_dim, merging.kept
    matching = merging.tokens * C * D + merging.sources * merging.destinations * D
    return 4 * M * C * A + 2 * M * M * A + matching


def mlp_macs(config: DiTConfig) -> int:
    """One block's MLP with every group and token on, per sample: 8 N C^2 at ratio 4."""
    return 2 * config.num_tokens * config.hidden_size * config.mlp_hidden


def flops_ratio(routing: Routing, config: DiTConfig) -> Tensor:
    """The paper's dynamic-to-static ratio (section 3.4), (B,), differentiable: attention and MLP of all blocks alone.

    Per block mean(heads) f_attn + mean(groups) mean(tokens) f_mlp, over the sum of f_attn + f_mlp.
    """
    attention, mlp = attention_macs(config), mlp_macs(config)
    heads = routing.heads.mean(dim=2)  # L B
    hidden = routing.groups.mean(dim=2) * routing.tokens.mean(dim=2)  # L B
    return (heads * attention + hidden * mlp).sum(dim=0) / (config.depth * (attention + mlp))


def block_macs(routing: Routing, config: DiTConfig, merging: Merging | None = None) -> BlockMacs:
    """What the blocks execute when what `routing` switches off is left out; L x B in every field.

    With `merging` a static model's attention sees merged tokens (`merged_attention_macs`).
    """
    heads, groups, tokens = (mask.sum(dim=2).long() for mask in (routing.heads, routing.groups, routing.tokens))
    return macs_of_counts(heads, groups, tokens, config, merging)


def macs_of_counts(
    heads: Tensor, groups: Tensor, tokens: Tensor, config: DiTConfig, merging: Merging | None = None
) -> BlockMacs:
    """As `block_macs`, of the numbers of active heads, groups and tokens, int64 of one shape."""
    N, C, D = config.num_tokens, config.hidden_size, config.head_dim
    width_routers = token_routers = 0
    if isinstance(config, DyDiTConfig):
        hidden = config.token_router_hidden
        width_routers, token_routers = 2 * C * config.router_rows, N * (C * hidden + hidden)
    attention = heads * (4 * N * C * D + 2 * N * N * D)
    if merging is not None:
        attention = torch.full_like(heads, merged_attention_macs(config, merging))
    return BlockMacs(
        attention=attention,
        # a pruned static model's channels may not fall into equal groups, but then all of them are on
        mlp=tokens * (groups * config.mlp_hidden // config.num_heads) * (2 * C),
        width_routers=torch.full_like(heads, width_routers),
        token_routers=torch.full_like(heads, token_routers),
        modulation=torch.full_like(heads, 6 * C * C),
        # norm1 sees every token; norm2 only those that go through the MLP
        norms=NORM_MACS_PER_ELEMENT * C * (N + tokens),
    )


def timestep_macs(config: DiTConfig) -> int:
    """The timestep embedder, for one timestep."""
    return (FREQUENCIES + config.hidden_size) * config.hidden_size


def embed_and_head_macs(config: DiTConfig) -> int:
    """What surrounds the blocks, per sample: patch, timestep and label embedders and the final layer."""
    N, C, P = config.num_tokens, config.hidden_size, config.patch_size
    patches = N * C * config.in_channels * P * P
    final = 2 * C * C + NORM_MACS_PER_ELEMENT * N * C + N * C * P * P * config.out_channels
    return patches + timestep_macs(config) + final


def sparse_step_macs(blocks: BlockMacs, config: DiTConfig) -> int:
    """What one call of the sparse model executes for a batch whose `blocks` are L x B, once it is prepared.

    Not in it is what a sampling run shares: the timestep embedding and the width routers, run once a timestep for all
    images (`plan_macs`), and adaLN, run ahead for several steps (`ahead_macs`).
    """
    own = blocks.attention + blocks.mlp + blocks.token_routers + blocks.norms
    batch = own.shape[1]
    return int(own.sum()) + batch * (embed_and_head_macs(config) - timestep_macs(config))


def plan_macs(config: DyDiTConfig, timesteps: int) -> int:
    """Deciding heads and groups of every block at so many timesteps, once for all images."""
    width = 2 * config.hidden_size * config.router_rows * config.depth
    return timesteps * (timestep_macs(config) + width)


def ahead_macs(config: DiTConfig, timesteps: int, rows: int) -> int:
    """adaLN of all blocks for so many rows (samples times timesteps), and the embedding of each timestep."""
    return timesteps * timestep_macs(config) + rows * config.depth * 6 * config.hidden_size**2


def total_macs(routing: Routing, config: DiTConfig, merging: Merging | None = None) -> Tensor:
    """One forward pass, (B,) int64: the blocks as routed, or with `merging`, and the frame."""
    return block_macs(routing, config, merging).total.sum(dim=0) + embed_and_head_macs(config)


def static_macs(config: DiTConfig) -> int:
    """One forward pass of the static model of this size, per sample. DiT-XL/2: 118.69 G."""
    return int(total_macs(Routing.all_on(config, 1), config.static())[0])
