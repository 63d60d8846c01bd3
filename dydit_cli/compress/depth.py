"""Depth pruning: a static model with fewer blocks, each as wide as it was.

Which blocks go is searched for, by the loss of what is left. TinyFusion (arXiv 2412.01199) drops a DiT's blocks too, and
learns which ones fine-tuning will make up for; the search here knows the loss before fine-tuning alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import nn

from dydit_cli.compress.calibration import BatchLosses, CalibrationData
from dydit_cli.compress.methods import Kept, PruningMethod, register
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.macs import routed_macs

MOST_SUBSETS = 500  # more are not all tried


class Depth(PruningMethod):
    """Keeps the blocks whose loss alone is the smallest: of all subsets where there are at most 500, else greedily, one block
    less at a time. Blocks that need each other (`ModelConfig.layers`) go together.

    The batches, their timesteps, spread over the schedule, and their noise are the same for all candidates.
    """

    batches = 4

    def smaller(self, config: ModelConfig, keep: float) -> ModelConfig:
        """The number of blocks whose MACs are nearest to the share `keep`; of two as near the smaller."""
        wanted, size = keep * routed_macs(config), len(config.layers()[0])
        depths = range(size, config.depth + 1, size)
        return min((replace(config, depth=depth) for depth in depths), key=lambda of: abs(routed_macs(of) - wanted))

    def passes(self, config: ModelConfig, smaller: ModelConfig, data: CalibrationData) -> int:
        every, kept = len(config.layers()), len(smaller.layers())
        subsets = math.comb(every, kept)
        return subsets if subsets <= MOST_SUBSETS else sum(range(kept + 1, every + 1))

    @torch.no_grad()
    def choose(self, model: Backbone, smaller: ModelConfig, data: CalibrationData) -> Kept:
        config, losses = model.config, SubsetLosses(model, data)
        layers, kept = config.layers(), len(smaller.layers())
        every = tuple(range(len(layers)))
        if math.comb(len(every), kept) <= MOST_SUBSETS:
            best = losses.best(layers, list(combinations(every, kept)))
            how = "all subsets"
        else:
            best = every
            while len(best) > kept:
                best = losses.best(layers, list(combinations(best, len(best) - 1)))
            how = "one block less at a time"
        blocks = [i for layer in best for i in layers[layer]]
        heads, channels = torch.arange(config.num_heads), torch.arange(config.mlp_hidden)
        seen = f"{data.images}, timesteps spread over the schedule, {how}"
        return Kept(blocks, [heads] * len(blocks), [channels] * len(blocks), seen)


class SubsetLosses:
    """The losses of a model with some of its blocks alone, all on the same batches, timesteps and noise."""

    def __init__(self, model: Backbone, data: CalibrationData) -> None:
        self._model, self._blocks, self._on_work = model, list(model.blocks), data.on_work
        self._losses = losses = BatchLosses(model, data)
        self._batches = [
            (x0, y, losses.process.spread(len(y), losses.generator), losses.noise(x0)) for x0, y in losses.batches()
        ]

    def of(self, blocks: Sequence[int]) -> float:
        """The mean loss over the batches."""
        self._model.blocks = nn.ModuleList(self._blocks[i] for i in blocks)
        total = 0.0
        for batch in self._batches:
            total += self._losses.at(*batch).loss.mean().item()
            self._on_work(1)
        self._model.blocks = nn.ModuleList(self._blocks)
        return total / len(self._batches)

    def best(self, layers: Sequence[tuple[int, ...]], subsets: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The one of `subsets` of `layers` with the smallest loss."""
        return min(subsets, key=lambda subset: self.of([i for layer in subset for i in layers[layer]]))


register("depth", Depth())
