"""What sparse execution is made of: the same weights and the same function as under masks, the switched-off work left out.

Active tokens of the whole batch are gathered into one matrix, go through one MLP and are added back; heads and channel
groups that are off are never multiplied. Sums go into their place (`out=`), since this path is for evaluation alone.

Elementwise work is PyTorch's own operations, or fused by torch.compile: once for every number of tokens (`dynamic=True`), so
that routing never compiles it anew. The products stay outside: they are the libraries' already, and their shapes change
with every set of heads and groups.

Legend: B batch, N tokens, C width, h active heads, D head width, A active tokens of the batch, M rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dydit_cli.model.regions import GATHER, MODULATION, region
from dydit_cli.model.weight_cache import Part


@dataclass(frozen=True)
class Pointwise:
    """`modulated(x, shift, gain, eps)` is adaLN's LayerNorm(x) * gain + shift, gain being 1 + scale. `gelu(x)` may overwrite
    x."""

    modulated: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    gelu: Callable[[Tensor], Tensor]


def modulated(x: Tensor, shift: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x: ... C; shift and gain broadcast to it."""
    h = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(shift, h, gain, out=h)


def gelu_(x: Tensor) -> Tensor:
    """The tanh approximation, in place."""
    out: Tensor = torch.ops.aten.gelu_.default(x, approximate="tanh")
    return out


def _modulated_to_fuse(x: Tensor, shift: Tensor, gain: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps) * gain + shift


def _gelu_to_fuse(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


EAGER = Pointwise(modulated, gelu_)


@cache
def compiled(backend: str = "inductor") -> Pointwise:
    """Both functions fused by `backend`; compiled when they first run."""
    modulated, gelu = (torch.compile(f, dynamic=True, backend=backend) for f in (_modulated_to_fuse, _gelu_to_fuse))
    return Pointwise(modulated, gelu)


Inner = Callable[[Tensor, Part], Tensor]


def sparse_linears(parts: Sequence[Part], x: Tensor, bias: Tensor, inner: Inner) -> Tensor:
    """x: M C -> M C: each part's inputs, `inner` from their rows to the output's columns, and the sum of the outputs.

    Without any part it is the output's bias.
    """
    total = bias.expand_as(x)
    for i, part in enumerate(parts):
        hidden = inner(torch.addmm(part.bias, x, part.inputs.t()), part)  # M Uu
        total = torch.addmm(total, hidden, part.output.t(), out=total if i else None)
    return total if parts else total.clone()


def sparse_attention(
    parts: Sequence[Part], x: Tensor, bias: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """x: B N C -> B N C, the active heads alone; `attend` takes q, k, v (each B h N D) to B h N D."""
    B, N, C = x.shape

    def inner(rows: Tensor, part: Part) -> Tensor:
        q, k, v = rows.view(B, N, part.units, 3, -1).transpose(1, 2).unbind(3)  # each B h N D
        return attend(q, k, v).transpose(1, 2).reshape(B * N, -1)  # BN hD

    return sparse_linears(parts, x.view(-1, C), bias, inner).view(B, N, C)


def sparse_mlp(parts: Sequence[Part], x: Tensor, bias: Tensor, activate: Callable[[Tensor], Tensor] = EAGER.gelu) -> Tensor:
    """x: A C -> A C, the active channel groups alone."""
    return sparse_linears(parts, x, bias, lambda rows, part: activate(rows))


def active_tokens(mask: Tensor) -> Tensor:
    """The places of a mask's ones (B N) in the flattened batch, (A,)."""
    return mask.flatten().nonzero().squeeze(1)


def add_to_active(
    x: Tensor,
    active: Tensor,
    per_sample: tuple[Tensor, Tensor, Tensor],
    eps: float,
    pointwise: Pointwise,
    mlp: Callable[[Tensor], Tensor],
) -> None:
    """x (B N C) += gate * mlp(modulated x) in place, for the rows `active` of the flattened batch alone.

    `per_sample` are shift, gain and gate, each B C; `mlp` takes A C to A C.
    """
    B, N, C = x.shape
    if len(active) == 0:
        return
    shift, gain, gate = per_sample
    if len(active) == B * N:
        with region(MODULATION):
            h = pointwise.modulated(x, shift.unsqueeze(1), gain.unsqueeze(1), eps).view(-1, C)  # BN C
        x.addcmul_(gate.unsqueeze(1), mlp(h).view(B, N, C))
        return
    flat, sample = x.view(-1, C), active // N  # BN C; A
    with region(GATHER):
        h = flat.index_select(0, active)  # A C
        shift, gain, gate = (values.index_select(0, sample) for values in per_sample)  # each A C
    with region(MODULATION):
        h = pointwise.modulated(h, shift, gain, eps)
    h = mlp(h).mul_(gate)  # A C
    with region(GATHER):
        flat.index_add_(0, active, h)
