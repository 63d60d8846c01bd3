"""The static Diffusion Transformer with adaLN-Zero blocks (DiT, arXiv 2212.09748, section 3.2).

Legend: B batch, N tokens, C width, P patch, S input size, L depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dydit_cli.model.config import DiTConfig
from dydit_cli.model.layers import (
    Attention,
    FinalLayer,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    TimestepEmbedder,
    modulate,
    sincos_positions,
)
from dydit_cli.model.routing import Routing


class Block(nn.Module):
    """One transformer block; c (B C) sets shift, scale and gate of both halves."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.norm1 = nn.LayerNorm(C, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(C, config.num_heads, config.head_dim)
        self.norm2 = nn.LayerNorm(C, eps=config.norm2_eps, elementwise_affine=False)
        self.mlp = Mlp(C, config.mlp_hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(C, 6 * C))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)  # each B C
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class DiT(nn.Module):
    """Predicts noise, and the variance's interpolation where `learn_sigma`, from a noisy input, a timestep and a class.

    Weights start as in the DiT paper: Xavier-uniform, with adaLN and the final layer at zero.
    """

    config: DiTConfig
    blocks: nn.ModuleList

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        C = config.hidden_size
        self.x_embedder = PatchEmbed(config.in_channels, C, config.patch_size)
        self.t_embedder = TimestepEmbedder(C, config.timestep_variant)
        self.y_embedder = LabelEmbedder(config.num_classes, C)
        # a fixed table, yet a parameter: public checkpoints store it and public parameter counts include it
        positions = sincos_positions(C, config.input_size // config.patch_size)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(self.make_block() for _ in range(config.depth))
        self.final_layer = FinalLayer(C, config.patch_size, config.out_channels)
        self.reset_parameters()

    def make_block(self) -> nn.Module:
        return Block(self.config)

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        assert self.x_embedder.proj.bias is not None
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
        modulations = [module for name, module in self.named_modules() if name.endswith("adaLN_modulation.1")]
        for layer in (*modulations, self.final_layer.linear):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def embed(self, x: Tensor) -> Tensor:
        """B Cin S S -> B N C, positions added."""
        return self.x_embedder(x) + self.pos_embed

    def unpatchify(self, x: Tensor) -> Tensor:
        """B N P*P*Cout -> B Cout S S."""
        P, side = self.config.patch_size, self.config.input_size // self.config.patch_size
        x = x.view(x.shape[0], side, side, P, P, self.config.out_channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], self.config.out_channels, side * P, side * P)

    @overload
    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: Literal[True]) -> tuple[Tensor, Routing]: ...

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        """x: B Cin S S; t: B timesteps from 0 to 999; y: B labels, `config.null_class` for none -> B Cout S S.

        With `return_routing` also the `Routing`, which is all ones for a static model.
        """
        h = self.embed(x)  # B N C
        c = self.t_embedder(t) + self.y_embedder(y)  # B C
        for block in self.blocks:
            h = self.run_block(block, h, c)
        out = self.unpatchify(self.final_layer(h, c))
        return (out, Routing.all_on(self.config, x.shape[0], x.device)) if return_routing else out

    def run_block(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """`block(*inputs)`; with `checkpointing` its activations are computed again in the backward pass, not kept."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def num_parameters(self) -> int:
        """As the papers count: the fixed positions included."""
        return sum(p.numel() for p in self.parameters())

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]
