"""Where a block's width can be cut, whatever its family: which rows and columns of its weights belong to which structure.

A site is an attention with its heads, or an MLP with its channels. Its units (a head, a channel) stand in order in the rows
of its input Linears, several times over where there are several (q, k and v; the two halves of a SwiGLU), and in the columns
of its output Linear. A routed structure is a head, or a group of neighbouring channels.

Legend: C width of the residual stream, U units, u rows of a unit, R repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Structure = Literal["heads", "groups"]
Weights = dict[str, Tensor]


def per_unit(masks: Tensor, units: int) -> Tensor:
    """Masks of structures (... count) as masks of their units (... U): as `Site.bounds` has them, the first have one more."""
    size, more = divmod(units, int(masks.shape[-1]))  # a tracer's shapes are tensors
    larger, rest = masks[..., :more], masks[..., more:]
    return torch.cat([larger.repeat_interleave(size + 1, dim=-1), rest.repeat_interleave(size, dim=-1)], dim=-1)


@dataclass(frozen=True)
class Site:
    """The `count` structures of one kind in one block, and where the weights of their units are.

    `inputs` and `output` are names of Linears within the block. A unit has `unit` rows, `repeats` times over all inputs
    together, and `unit` columns. `context` is how many tokens each token attends to; it is 0 where there is no attention.
    `norms` are the MACs of a unit's own norms (of queries and keys) for one token. `gate` is which of the block's modulation
    vectors scales what the site adds.
    """

    structure: Structure
    inputs: tuple[str, ...]
    output: str
    width: int
    units: int
    count: int
    unit: int = 1
    repeats: int = 1
    context: int = 0
    norms: int = 0
    gate: int = 0

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Structure j has units `bounds[j]` to `bounds[j + 1]` - 1; where they do not divide, the first have one more."""
        size, more = divmod(self.units, self.count)
        return tuple(j * size + min(j, more) for j in range(self.count + 1))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many units each structure has."""
        return tuple(last - first for first, last in zip(self.bounds, self.bounds[1:], strict=False))

    @property
    def macs_per_unit(self) -> int:
        """MACs of one unit for one token: its rows, its norms, its part of the attention, its columns."""
        return self.unit * ((self.repeats + 1) * self.width + 2 * self.context) + self.norms

    @property
    def macs_per_token(self) -> int:
        """MACs of all units for one token."""
        return self.units * self.macs_per_unit

    def active_share(self, masks: Tensor) -> Tensor:
        """The share of the units that masks of structures (... count) leave on, differentiable."""
        if self.units % self.count == 0:
            return masks.mean(dim=-1)
        return per_unit(masks, self.units).mean(dim=-1)

    def active_units(self, masks: Tensor) -> Tensor:
        """How many units masks of structures (... count) leave on: int64."""
        if self.units % self.count == 0:
            return masks.sum(dim=-1).long() * self.sizes[0]
        return per_unit(masks, self.units).long().sum(dim=-1)

    def names(self) -> list[str]:
        """The weights and biases that have rows or columns of units, within the block."""
        rows = [f"{name}.{end}" for name in self.inputs for end in ("weight", "bias")]
        return [*rows, f"{self.output}.weight"]

    def select(self, weights: Mapping[str, Tensor], block: str, order: Tensor) -> Weights:
        """The weights of `block` with unit `order[i]` at place i; order: (U,), or fewer, which leaves the others out."""
        result: Weights = {}
        for name in self.names():
            full, w = f"{block}.{name}", weights[f"{block}.{name}"]
            if name == f"{self.output}.weight":
                result[full] = w.view(len(w), self.units, self.unit)[:, order].reshape(len(w), -1)
            else:
                stacked = w.view(-1, self.units, self.unit, *w.shape[1:])[:, order]  # R U u ...
                result[full] = stacked.reshape(-1, *w.shape[1:])
        return result

    def unit_sums(self, values: Mapping[str, Tensor], block: str) -> Tensor:
        """Sums of `values`, one for every weight by the weights' names, over all that goes when a unit goes: (U,) float32."""
        columns = values[f"{block}.{self.output}.weight"].float().sum(dim=0).view(self.units, self.unit).sum(dim=1)
        rows = [
            (values[f"{block}.{name}.weight"].float().sum(dim=1) + values[f"{block}.{name}.bias"].float())
            .view(-1, self.units, self.unit)
            .sum(dim=(0, 2))
            for name in self.inputs
        ]
        return torch.stack([*rows, columns]).sum(dim=0)

    def magnitude(self, weights: Mapping[str, Tensor], block: str) -> Tensor:
        """The sum over a unit's rows of each repeat, and its columns, of their mean absolute weight: (U,)."""
        output = weights[f"{block}.{self.output}.weight"].abs()
        score = output.view(len(output), self.units, self.unit).mean(dim=(0, 2))  # U
        for name in self.inputs:
            w = weights[f"{block}.{name}.weight"].abs()
            stacked = w.view(-1, self.units, self.unit, w.shape[1])  # R U u C
            score = stacked.mean(dim=(0, 2, 3)) * len(stacked) + score
        return score
