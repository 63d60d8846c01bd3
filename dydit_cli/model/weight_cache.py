"""The weights of the active structures of a site: views of the model's own, or contiguous copies under a memory cap.

Views cost nothing to plan, and every run of neighbouring structures is a matrix product of its own. A copy makes one large
product of all runs, which a GPU wants; the copies of a set are made once and kept while there is room. Either way the rows
of a head stand together: where they do not (q, k and v), in a second weight that is made once, so that a run is one product.
Of channels each repeat (the two halves of a SwiGLU) is a product of its own, so that what meets elementwise is contiguous.

Legend: C width, U units, u rows of a unit, R repeats.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dydit_cli.model.options import WeightAccess
from dydit_cli.model.sites import Site, Structure

Runs = tuple[tuple[int, int], ...]
Products = list[tuple[Tensor, Tensor]]  # weight and bias


@dataclass(frozen=True)
class Part:
    """Neighbouring structures of a site, `units` units: of each of its products the rows and their bias, and the output's
    columns (C x Uu). The one product of heads has the rows unit by unit (URu x C), those of channels a repeat each (U x C)."""

    units: int
    inputs: Products
    output: Tensor

    def tensors(self) -> list[Tensor]:
        return [*(tensor for product in self.inputs for tensor in product), self.output]


Parts = Mapping[Structure, Sequence[Part]]  # of a block


@dataclass
class SliceStats:
    """Counts since the beginning: `distinct` pairs of a block and a set of it; `bytes` is what copies hold now."""

    distinct: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    bytes: int = 0


@dataclass
class WeightSlices:
    """Hands out the parts of blocks' weights; `capacity` is the most bytes that copies may hold."""

    access: WeightAccess
    capacity: int
    stats: SliceStats = field(default_factory=SliceStats)
    _seen: set[tuple[int, str, Runs]] = field(default_factory=set)
    _kept: OrderedDict[tuple[int, str, Runs], tuple[Sequence[Part], int]] = field(default_factory=OrderedDict)
    _products: dict[tuple[int, str], Products] = field(default_factory=dict)

    def clear(self) -> None:
        """Drops what is kept; the counts go on."""
        self._kept.clear()
        self._products.clear()
        self.stats.bytes = 0

    def parts(self, i: int, block: nn.Module, site: Site, runs: Runs) -> Sequence[Part]:
        """The weights of these runs of structures in block number `i`."""
        key = (i, site.structure, runs)
        if key in self._kept:
            self.stats.hits += 1
            self._kept.move_to_end(key)
            return self._kept[key][0]
        self.stats.misses += 1
        self._seen.add(key)
        if key[:2] not in self._products:
            self._products[key[:2]] = products(block, site)
        output = block.get_submodule(site.output).get_parameter("weight").detach()
        parts: Sequence[Part] = [view(site, self._products[key[:2]], output, first, last) for first, last in runs]
        size = 0
        if self.access == "copies" and (len(parts) > 1 or not all(part.output.is_contiguous() for part in parts)):
            parts = [join(parts)]
            size = sum(tensor.numel() * tensor.element_size() for part in parts for tensor in part.tensors())
        self._kept[key] = (parts, size)
        self.stats.bytes += size
        while self.stats.bytes > self.capacity:
            _, (_, freed) = self._kept.popitem(last=False)
            self.stats.bytes -= freed
            self.stats.evictions += freed > 0
        self.stats.distinct = len(self._seen)
        return parts


def products(block: nn.Module, site: Site) -> Products:
    """The inputs' weights and biases, one pair for each product. Of heads that is one, its rows in the order unit, repeat, row:
    a copy where the rows of a unit do not stand together already."""
    linears = [block.get_submodule(name) for name in site.inputs]
    weights, biases = ([linear.get_parameter(end).detach() for linear in linears] for end in ("weight", "bias"))
    rows = site.units * site.unit
    if site.repeats == 1 or site.unit == 1:
        return [pair for w, b in zip(weights, biases, strict=True) for pair in zip(w.split(rows), b.split(rows), strict=True)]
    weight, bias = torch.cat(weights), torch.cat(biases)
    shape = (site.repeats, site.units, site.unit)
    C = weight.shape[1]
    return [(weight.view(*shape, C).transpose(0, 1).reshape(-1, C), bias.view(shape).transpose(0, 1).flatten())]


def view(site: Site, inputs: Products, output: Tensor, first: int, last: int) -> Part:
    """Structures `first` to `last` - 1 of what `products` returned, without a copy."""
    start, end = site.bounds[first], site.bounds[last]
    rows = len(inputs[0][0]) // site.units  # of a unit
    parts = [(weight[start * rows : end * rows], bias[start * rows : end * rows]) for weight, bias in inputs]
    return Part(end - start, parts, output[:, start * site.unit : end * site.unit])


def join(parts: Sequence[Part]) -> Part:
    """One part of several, or of one: copies."""
    inputs = [
        (torch.cat([weight for weight, _ in same]), torch.cat([bias for _, bias in same]))
        for same in zip(*(part.inputs for part in parts), strict=True)
    ]
    return Part(sum(part.units for part in parts), inputs, torch.cat([part.output for part in parts], dim=1))
