"""DyDiT: the DiT of `dit.py` with routers, executed dense under masks (differentiable, and the reference for `sparse`).

Legend: B batch, N tokens, C width, H heads (and channel groups).
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from dydit_cli.model.config import DyDiTConfig
from dydit_cli.model.dit import Block, DiT
from dydit_cli.model.layers import modulate
from dydit_cli.model.routers import HEAD_AND_GROUP_BIAS, TOKEN_BIAS, GateNoise, TokenRouter, WidthRouter
from dydit_cli.model.routing import BlockRouting, Routing


class DynamicBlock(Block):
    """A block whose heads and channel groups follow the timestep and whose MLP skips tokens (figure 2 of the paper)."""

    def __init__(self, config: DyDiTConfig) -> None:
        super().__init__(config)
        self.temperature = config.temperature
        self.attn_rate = WidthRouter(config.hidden_size, config.router_rows, config.always_on)
        self.mlp_rate = WidthRouter(config.hidden_size, config.router_rows, config.always_on)
        together = config.token_routing == "layers"
        self.token_selection = TokenRouter(config.hidden_size, config.token_router_hidden, together)

    def forward_routed(
        self, x: Tensor, c: Tensor, e: Tensor, noise: float | tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, BlockRouting]:
        """x: B N C; c: B C; e: B C, the timestep embedding alone; noise: a scale, or that of heads, groups, tokens."""
        head_noise, group_noise, token_noise = noise if isinstance(noise, tuple) else (noise, noise, noise)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)  # each B C
        heads = self.attn_rate(e, self.temperature, head_noise)  # B H
        groups = self.mlp_rate(e, self.temperature, group_noise)  # B H
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a), heads)
        tokens = self.token_selection(x, self.temperature, token_noise)  # B N
        mlp = self.mlp(modulate(self.norm2(x), shift_m, scale_m), groups)  # B N C
        return x + tokens.unsqueeze(-1) * gate_m.unsqueeze(1) * mlp, BlockRouting(heads, groups, tokens)


class DyDiT(DiT):
    """A Dynamic Diffusion Transformer (arXiv 2410.03456).

    In training mode masks are drawn (`gumbel_noise` scales the noise, 1 is the paper's) and carry straight-through
    gradients; in evaluation they are deterministic. Routers start fully on, so that a fresh DyDiT computes what the
    static model computes.
    """

    config: DyDiTConfig

    def __init__(self, config: DyDiTConfig) -> None:
        super().__init__(config)
        self.gumbel_noise = 1.0
        self.reset_routers()

    def make_block(self) -> nn.Module:
        return DynamicBlock(self.config)

    def reset_routers(self, bias: float = HEAD_AND_GROUP_BIAS, token_bias: float = TOKEN_BIAS) -> None:
        """Xavier weights and these biases: the higher, the longer everything stays on (paper: 15 and 35)."""
        for block in self.blocks:
            assert isinstance(block, DynamicBlock)
            block.attn_rate.reset(bias)
            block.mlp_rate.reset(bias)
            block.token_selection.reset(token_bias)

    @overload
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        return_routing: Literal[False] = False,
        complete: bool = False,
        gate_noise: GateNoise | None = None,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        return_routing: Literal[True],
        complete: bool = False,
        gate_noise: GateNoise | None = None,
    ) -> tuple[Tensor, Routing]: ...

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        return_routing: bool = False,
        complete: bool = False,
        gate_noise: GateNoise | None = None,
    ) -> Tensor | tuple[Tensor, Routing]:
        """As `DiT.forward`; with `complete` every router is on, whatever it says (the complete model).

        `gate_noise` takes the place of the noise that a model in training draws for itself.
        """
        if complete:
            return super().forward(x, t, y, return_routing=True) if return_routing else super().forward(x, t, y)
        noise = self.gumbel_noise if self.training else 0.0
        h = self.embed(x)  # B N C
        e = self.t_embedder(t)  # B C
        c = e + self.y_embedder(y)  # B C
        routed: list[BlockRouting] = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, DynamicBlock)
            own = noise if gate_noise is None else (gate_noise.heads[i], gate_noise.groups[i], gate_noise.tokens[i])
            h, routing = self.run_block(block.forward_routed, h, c, e, own)
            routed.append(routing)
        out = self.unpatchify(self.final_layer(h, c))
        return (out, Routing.stack(routed)) if return_routing else out


def is_router(name: str) -> bool:
    """Whether a parameter's name is a router's."""
    return any(part in name for part in (".attn_rate.", ".mlp_rate.", ".token_selection."))


def static_twin(dynamic: DyDiT) -> DiT:
    """The static model with the same weights, shared."""
    with torch.device("meta"):
        static = DiT(dynamic.config.static())
    weights = dynamic.state_dict()
    static.load_state_dict({name: weights[name] for name in static.state_dict()}, assign=True)
    return static.eval()
