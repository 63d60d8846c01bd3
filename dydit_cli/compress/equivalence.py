"""That a converted model computes what the static one does: both run over random inputs, a block at a time.

Legend: B batch, N tokens, C width, T timesteps.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.diffusion.process import process_of
from dydit_cli.model.backbone import RoutedBlock
from dydit_cli.model.config import RoutedConfig
from dydit_cli.model.families import build_shapes
from dydit_cli.model.macs import static_macs
from dydit_cli.model.sites import Weights

MACS = 250e9  # for each model: about two forward passes of DiT-XL/2
MOST_INPUTS = 16


class EquivalenceCheck:
    """Takes every block's converted weights in order; then `result` is the difference.

    `off_timesteps` counts the pairs of block and timestep, among all of the process, at which a head or group starts off.
    Tokens are taken to be on, and `off_tokens` counts those of the random inputs that are not, at any bias of their routers.
    every_e: T C, the embeddings of all timesteps.
    """

    @staticmethod
    def inputs_of(config: RoutedConfig) -> int:
        """How many random inputs a model of this size is run over."""
        return max(2, min(MOST_INPUTS, int(MACS / static_macs(config))))

    def __init__(self, static: Checkpoint, config: RoutedConfig, seed: int) -> None:
        self._static, self._config = static, config
        self.inputs = self.inputs_of(config)
        self.off_timesteps = 0
        # without the bias; allocated at once, since what stays between two blocks keeps the allocator from giving back
        self._token_logits = torch.empty(config.depth, self.inputs, config.num_tokens, 1)
        self._model, dynamic = build_shapes(config.static()), build_shapes(config)
        self._blocks = list(zip(self._model.blocks, dynamic.blocks, strict=True))
        names = [name for name in self._model.state_dict() if not config.blocks.match(name)]
        around = {name: static.weights[name].float() for name in names}
        for model in (self._model, dynamic):  # blocks may look up what is the model's
            model.blocks = nn.ModuleList()
            model.load_state_dict(around, assign=True)
        generator, every = torch.Generator().manual_seed(seed), process_of(config).every()
        t = every[torch.linspace(0, len(every) - 1, self.inputs).long()]
        y = torch.randint(0, config.num_classes + 1, (self.inputs,), generator=generator)
        with torch.no_grad():
            self._e = self._model.embed_timestep(t)  # B C
            self.every_e = self._model.embed_timestep(every)  # T C
            self._c = self._model.condition(self._e, y)  # B C
            x = torch.randn((self.inputs, *config.sample_shape), generator=generator)
            self._h_static = self._h_dynamic = self._model.embed(x)  # B N C

    @torch.no_grad()
    def block(self, i: int, converted: Weights) -> None:
        """Runs block `i` of both models; `converted` holds the dynamic block's weights under their full names."""
        static, routed = self._blocks[i]
        self._blocks[i] = (nn.Identity(), nn.Identity())  # their weights go with them
        prefix = self._config.block_names()[i]
        for block, weights in ((static, self._static.weights), (routed, converted)):
            own = {name: weights[f"{prefix}.{name}"].float() for name in block.state_dict()}
            block.load_state_dict(own, assign=True)
        dynamic = cast(RoutedBlock, routed)
        last, B, N = dynamic.token_router.last, self.inputs, self._config.num_tokens
        hook = last.register_forward_hook(lambda module, inputs, logits: self._keep_logits(i, logits - last.bias))
        rows = self._config.router_rows
        noise = (torch.zeros(B, rows), torch.zeros(B, rows), torch.full((B, N), torch.inf))  # the tokens' switches all on
        self._h_static = static(self._model.enter_block(i, self._h_static), self._c)
        h = self._model.enter_block(i, self._h_dynamic)
        self._h_dynamic, _ = dynamic.forward_routed(h, self._c, self._e, noise)
        hook.remove()
        for router in (dynamic.head_router, dynamic.group_router):
            self.off_timesteps += int((router(self.every_e, 1.0, 0.0) == 0).any(dim=1).sum())

    def _keep_logits(self, i: int, logits: Tensor) -> None:
        self._token_logits[i] = logits

    def off_tokens(self, bias: float) -> int:
        """How many tokens, over the blocks, skip the MLP where the token routers have this bias."""
        return int((self._token_logits + bias <= 0).sum())

    @torch.no_grad()
    def result(self) -> tuple[float, float]:
        """The largest difference between the two outputs, and the largest static output."""
        expected, result = (self._model.head(h, self._c) for h in (self._h_static, self._h_dynamic))
        return (result - expected).abs().max().item(), expected.abs().max().item()
