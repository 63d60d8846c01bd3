"""The sparse path's elementwise work, as PyTorch's own operations or fused by torch.compile.

Compiled, a function is made once for every number of tokens (`dynamic=True`), so that routing never recompiles it. The
products stay outside: they are the libraries' already, and their shapes change with every set of heads and groups.

Legend: A tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


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
