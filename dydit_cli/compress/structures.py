"""Ordering heads and MLP channels, the most important first, without changing what a model computes.

The always-on head and channel group are the first ones, so conversion ranks before it adds routers (paper, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from dydit_cli.model.config import ModelConfig
from dydit_cli.model.sites import Site, Weights

# a ranking scores the units of a site, given the weights and a block's name; higher is more important
Ranking = Callable[[Site, Mapping[str, Tensor], str], Tensor]
RANKINGS: dict[str, Ranking | None] = {"magnitude": Site.magnitude, "none": None}


def block_weights(weights: Mapping[str, Tensor], block: str) -> Weights:
    """The weights whose names begin with a block's."""
    return {name: w for name, w in weights.items() if name.startswith(f"{block}.")}


def rank_block(weights: Mapping[str, Tensor], i: int, config: ModelConfig, ranking: str) -> Weights:
    """Block `i`'s weights, computing the same, with heads and MLP channels in descending order of importance."""
    block, score = config.block_names()[i], RANKINGS[ranking]
    ranked = block_weights(weights, block)
    if score is None:
        return ranked
    for site in config.sites(i):
        ranked |= site.select(weights, block, score(site, weights, block).argsort(descending=True, stable=True))
    return ranked


def narrowed(weights: Mapping[str, Tensor], config: ModelConfig, kept: Mapping[str, Sequence[Tensor]]) -> Weights:
    """`weights` of a model of `config` with these units of each block alone; `kept` maps a structure to (U,) by block."""
    result = dict(weights)
    for i, block in enumerate(config.block_names()):
        for site in config.sites(i):
            result |= site.select(weights, block, kept[site.structure][i])
    return result


def shallower(weights: Mapping[str, Tensor], config: ModelConfig, kept: Sequence[int]) -> Weights:
    """`weights` of a model of `config` with the blocks of these numbers alone, in their order and numbered anew."""
    names = config.block_names()
    new = {names[i]: name for i, name in zip(kept, names, strict=False)}
    result: Weights = {}
    for name, w in weights.items():
        match = config.blocks.match(name)
        if match is None:
            result[name] = w
        elif match.group(1) in new:
            result[new[match.group(1)] + name[match.end(1) :]] = w
    return result
