"""That a converted model computes what the static one does: both run over random inputs, a block at a time.

Legend: B batch, N tokens, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.flops.analytic import static_macs
from dydit_cli.model.config import DyDiTConfig
from dydit_cli.model.dit import Block, DiT
from dydit_cli.model.dydit import DynamicBlock

MACS = 250e9  # for each model: about two forward passes of DiT-XL/2

MOST_INPUTS = 16

TIMESTEPS = 1000


class EquivalenceCheck:
    """Feed it every block's converted weights in order; then `difference` and `scale` hold.

    `off_timesteps` counts the pairs of block and timestep, among all 1,000, at which a head or group starts off, and
    `off_tokens` the tokens of the random inputs, over the blocks, that start skipping the MLP. every_e: 1000 C, the
    embeddings of all timesteps.
    """

    def __init__(self, static: Checkpoint, config: DyDiTConfig, seed: int) -> None:
        self._static, self._config = static, config
        self.inputs = max(2, min(MOST_INPUTS, int(MACS / static_macs(config))))
        self.off_timesteps = self.off_tokens = 0
        frame = {name: w for name, w in static.weights.items() if not name.startswith("blocks.")}
        with torch.device("meta"):
            self._frame = DiT(config.static())
        self._frame.blocks = nn.ModuleList()
        self._frame.load_state_dict({name: w.float() for name, w in frame.items()}, assign=True)
        generator = torch.Generator().manual_seed(seed)
        shape = (self.inputs, config.in_channels, config.input_size, config.input_size)
        t = torch.linspace(0, TIMESTEPS - 1, self.inputs).long()
        y = torch.randint(0, config.num_classes + 1, (self.inputs,), generator=generator)
        with torch.no_grad():
            self._e = self._frame.t_embedder(t)  # B C
            self.every_e = self._frame.t_embedder(torch.arange(TIMESTEPS))  # 1000 C
            self._c = self._e + self._frame.y_embedder(y)  # B C
            self._h_static = self._h_dynamic = self._frame.embed(torch.randn(shape, generator=generator))  # B N C

    @torch.no_grad()
    def block(self, i: int, converted: dict[str, Tensor]) -> None:
        """Runs block `i` of both models; `converted` holds the dynamic block's weights under their full names."""
        prefix = f"blocks.{i}."
        with torch.device("meta"):
            static, dynamic = Block(self._config), DynamicBlock(self._config)
        _assign(static, prefix, self._static.weights)
        _assign(dynamic, prefix, converted)
        self._h_static = static(self._h_static, self._c)
        self._h_dynamic, routing = dynamic.forward_routed(self._h_dynamic, self._c, self._e, noise=0.0)
        self.off_tokens += int((routing.tokens == 0).sum())
        for router in (dynamic.attn_rate, dynamic.mlp_rate):
            self.off_timesteps += int((router(self.every_e, 1.0, 0.0) == 0).any(dim=1).sum())

    @torch.no_grad()
    def result(self) -> tuple[float, float]:
        """The largest difference between the two outputs, and the largest static output."""
        expected = self._frame.final_layer(self._h_static, self._c)
        found = self._frame.final_layer(self._h_dynamic, self._c)
        return (found - expected).abs().max().item(), expected.abs().max().item()


def _assign(block: nn.Module, prefix: str, weights: dict[str, Tensor]) -> None:
    own = {name: weights[prefix + name].float() for name in block.state_dict()}
    block.load_state_dict(own, assign=True)
