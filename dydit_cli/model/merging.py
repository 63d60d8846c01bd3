"""Token merging (ToMe) in a static model at sampling time: fewer tokens in every attention, without training.

Bolya et al., Token Merging: Your ViT But Faster (ICLR 2023): bipartite soft matching by the similarity of keys.
Bolya and Hoffman, Token Merging for Fast Stable Diffusion (CVPR-W 2023): one destination in every 2x2 tokens, merge before
attention, unmerge after. As there a merged token weighs in attention no more than another (no proportional attention).
Other than there the destination is the upper left one of its four and not a random one, so that a seed's images stay its
images, and only attention sees merged tokens, since that is what the method promises here; the MLP sees all.

Legend: B batch, N tokens, C width, D head width, T destinations, S = N - T sources, M = N - merged tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig


@dataclass(frozen=True)
class Merging:
    """How many of an image's `side` x `side` tokens are `merged` into others before attention."""

    side: int
    merged: int

    @classmethod
    def of(cls, config: ModelConfig, ratio: float) -> Merging:
        """The share `ratio` of the tokens, rounded down.

        Raises `DyditError` for a DyDiT, a model of videos, and where that is no token or more than there are sources: about
        three quarters.
        """
        if config.dynamic:
            raise DyditError(f"tome {ratio:g}: merging is for a static model, and a DyDiT routes tokens itself; leave tome out")
        if config.frames is not None:
            raise DyditError(f"tome {ratio:g}: it merges tokens of images, and this model makes videos; leave tome out")
        if not 0 < ratio < 1:
            raise DyditError(f"tome {ratio:g}: it is the share of tokens that are merged and must lie between 0 and 1")
        merging = cls(config.input_size // config.patch_size, int(ratio * config.num_tokens))
        if not 1 <= merging.merged <= merging.sources:
            raise DyditError(
                f"tome {ratio:g}: merges {merging.merged} of {merging.tokens} tokens; it must be from 1 to {merging.sources} "
                "of them (one of every 2x2 stays)"
            )
        return merging

    @property
    def tokens(self) -> int:
        return self.side**2

    @property
    def kept(self) -> int:
        """Tokens that attention sees."""
        return self.tokens - self.merged

    @property
    def destinations(self) -> int:
        return (-(-self.side // 2)) ** 2

    @property
    def sources(self) -> int:
        return self.tokens - self.destinations

    def order(self) -> Tensor:
        """(N,) the destinations, row by row, and after them the sources."""
        places = torch.arange(self.tokens)
        upper_left = (places // self.side % 2 == 0) & (places % self.side % 2 == 0)
        return torch.cat([places[upper_left], places[~upper_left]])


def match(h: Tensor, weight: Tensor, bias: Tensor, order: Tensor, merging: Merging) -> Tensor:
    """Where every token of h (B N C) goes: B N numbers from 0 to M - 1, equal where tokens are merged.

    weight (D x C) and bias (D,) make the key of a token. Every source's most similar destination is found by cosine, and
    the sources that have the most similar ones are merged into them. Destinations are 0 to T - 1.
    """
    T = merging.destinations
    keys = F.normalize(F.linear(h, weight, bias), dim=2).index_select(1, order)  # B N D
    destinations, sources = keys[:, :T], keys[:, T:]
    best, nearest = (sources @ destinations.transpose(1, 2)).max(dim=2)  # each B S
    rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # B S
    places = torch.where(rank < merging.merged, nearest, rank + (T - merging.merged))  # B S
    every = torch.cat([torch.arange(T, device=h.device).expand(len(h), T), places], dim=1)  # B N, in `order`
    return torch.empty_like(every).index_copy_(1, order, every)


def merge(h: Tensor, places: Tensor, kept: int) -> Tensor:
    """The means of the tokens of h (B N C) that share a place: B M C. Summed in float32 at least."""
    B, N, C = h.shape
    wide = h.double() if h.dtype == torch.float64 else h.float()
    flat = _in_batch(places, kept)  # BN
    sums = wide.new_zeros(B * kept, C).index_add_(0, flat, wide.reshape(B * N, C))
    sizes = wide.new_zeros(B * kept, 1).index_add_(0, flat, wide.new_ones(B * N, 1))
    return (sums / sizes).to(h.dtype).view(B, kept, C)


def unmerge(h: Tensor, places: Tensor) -> Tensor:
    """Every token's share of h (B M C) copied back to it: B N C."""
    B, M, C = h.shape
    return h.reshape(B * M, C).index_select(0, _in_batch(places, M)).view(B, -1, C)


def _in_batch(places: Tensor, kept: int) -> Tensor:
    """B N places in each image as (BN,) places in the flattened batch."""
    first = torch.arange(len(places), device=places.device) * kept  # B
    return (places + first.unsqueeze(1)).flatten()


@dataclass(frozen=True)
class TokenMerging:
    """How one block's attention merges tokens: the numbers, the order (N,), and the weight (D x C) and bias (D,) of a key."""

    numbers: Merging
    order: Tensor
    weight: Tensor
    bias: Tensor

    def places(self, h: Tensor) -> Tensor:
        """As `match`, of h (B N C)."""
        return match(h, self.weight, self.bias, self.order, self.numbers)

    @property
    def kept(self) -> int:
        return self.numbers.kept
