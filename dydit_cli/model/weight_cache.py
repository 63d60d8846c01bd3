"""The weights of the active heads and groups: views of the model's own, or contiguous copies under a memory cap.

Views cost nothing to plan, and every run of neighbouring heads is a matrix product of its own. A copy makes one large
product of all runs, which a GPU wants; the copies of a set are made once and kept while there is room. Either way q, k and
v of a head stand together, in a second qkv (a quarter of a block's weights) that is made once: one product of a run's three.

Legend: C width, H heads, D head width, G groups, W channels in a group.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dydit_cli.model.dydit import DynamicBlock
from dydit_cli.model.options import WeightAccess as WeightAccess
from dydit_cli.model.planning import Runs


@dataclass(frozen=True)
class AttentionPart:
    """Neighbouring heads: rows of q, k and v head by head (h*3*D x C, and their bias), columns of proj (C x h*D)."""

    heads: int
    qkv: Tensor
    bias: Tensor
    proj: Tensor


@dataclass(frozen=True)
class MlpPart:
    """Neighbouring groups: rows of fc1 (g*W x C, and their bias), columns of fc2 (C x g*W)."""

    fc1: Tensor
    bias: Tensor
    fc2: Tensor


Parts = tuple[AttentionPart | MlpPart, ...]


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
    """Hands out the parts of a block's weights; `capacity` is the most bytes that copies may hold."""

    access: WeightAccess
    capacity: int
    stats: SliceStats = field(default_factory=SliceStats)
    _seen: set[tuple[int, str, Runs]] = field(default_factory=set)
    _kept: OrderedDict[tuple[int, str, Runs], tuple[Parts, int]] = field(default_factory=OrderedDict)
    _by_head: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def forget(self) -> None:
        """Drops what is kept; the counts go on."""
        self._kept.clear()
        self._by_head.clear()
        self.stats.bytes = 0

    def attention(self, i: int, block: DynamicBlock, runs: Runs) -> tuple[AttentionPart, ...]:
        return self._get(i, "heads", block, runs)  # type: ignore[return-value]

    def mlp(self, i: int, block: DynamicBlock, runs: Runs) -> tuple[MlpPart, ...]:
        return self._get(i, "groups", block, runs)  # type: ignore[return-value]

    def _get(self, i: int, kind: str, block: DynamicBlock, runs: Runs) -> Parts:
        key = (i, kind, runs)
        if key in self._kept:
            self.stats.hits += 1
            self._kept.move_to_end(key)
            return self._kept[key][0]
        self.stats.misses += 1
        self._seen.add(key)
        parts: Parts
        if kind == "heads":
            if i not in self._by_head:
                self._by_head[i] = by_head(block)
            parts = tuple(attention_views(block, *self._by_head[i], first, last) for first, last in runs)
        else:
            parts = tuple(mlp_views(block, first, last) for first, last in runs)
        size = 0
        if self.access == "copies" and len(parts) > 1:
            parts = (_join(parts),)
            size = _bytes(parts)
        self._kept[key] = (parts, size)
        self.stats.bytes += size
        while self.stats.bytes > self.capacity:
            _, (_, freed) = self._kept.popitem(last=False)
            self.stats.bytes -= freed
            self.stats.evictions += freed > 0
        self.stats.distinct = len(self._seen)
        return parts


def by_head(block: DynamicBlock) -> tuple[Tensor, Tensor]:
    """qkv's weight with its rows in the order head, then q, k, v, then D (H*3*D x C), and its bias so too: a copy."""
    H, D = block.attn.heads, block.attn.head_dim
    weight, bias = block.attn.qkv.weight.detach(), block.attn.qkv.bias.detach()
    return weight.view(3, H, D, -1).transpose(0, 1).reshape(3 * H * D, -1), bias.view(3, H, D).transpose(0, 1).flatten()


def attention_views(block: DynamicBlock, qkv: Tensor, bias: Tensor, first: int, last: int) -> AttentionPart:
    """Heads `first` to `last` - 1 of a block whose weight and bias `by_head` made, without a copy."""
    D = block.attn.head_dim
    rows, proj = slice(first * 3 * D, last * 3 * D), block.attn.proj.weight.detach()
    return AttentionPart(last - first, qkv[rows], bias[rows], proj[:, first * D : last * D])


def mlp_views(block: DynamicBlock, first: int, last: int) -> MlpPart:
    """Groups `first` to `last` - 1, without a copy."""
    W = block.mlp.fc1.weight.shape[0] // block.attn.heads
    rows = slice(first * W, last * W)
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    return MlpPart(fc1.weight.detach()[rows], fc1.bias.detach()[rows], fc2.weight.detach()[:, rows])


def _join(parts: Parts) -> AttentionPart | MlpPart:
    if isinstance(parts[0], MlpPart):
        mlp = [part for part in parts if isinstance(part, MlpPart)]
        return MlpPart(
            torch.cat([part.fc1 for part in mlp]),
            torch.cat([part.bias for part in mlp]),
            torch.cat([part.fc2 for part in mlp], dim=1),
        )
    attention = [part for part in parts if isinstance(part, AttentionPart)]
    return AttentionPart(
        sum(part.heads for part in attention),
        torch.cat([part.qkv for part in attention]),
        torch.cat([part.bias for part in attention]),
        torch.cat([part.proj for part in attention], dim=1),
    )


def _tensors(part: AttentionPart | MlpPart) -> list[Tensor]:
    return [part.fc1, part.bias, part.fc2] if isinstance(part, MlpPart) else [part.qkv, part.bias, part.proj]


def _bytes(parts: Parts) -> int:
    return sum(tensor.numel() * tensor.element_size() for part in parts for tensor in _tensors(part))
