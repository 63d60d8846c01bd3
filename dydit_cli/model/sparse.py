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
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dydit_cli.model.regions import GATHER, MODULATION, region
from dydit_cli.model.weight_cache import Part


@dataclass(frozen=True)
class Pointwise:
    """`modulated(x, shift, gain, eps, rms)` is adaLN's norm(x) * gain + shift, the norm being a LayerNorm, or where `rms` an
    RMSNorm, and the gain 1 + scale times the norm's weight; shift None is none. `gelu(x)`, and `swiglu(gate, value)`, which is
    silu(gate) * value, may overwrite what they take.

    `gathered(x, active, shift, gain, eps, rms)` is the first of some rows of x (B N C), A C, shift and gain being B C; and
    `added(x, active, gate, h, mask)` adds gate times h (A C) to these rows of x in place, with a mask (B N) to those that are
    on. Without them each is done in steps.
    """

    modulated: Callable[[Tensor, Tensor | None, Tensor, float, bool], Tensor]
    gelu: Callable[[Tensor], Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    gathered: Callable[[Tensor, Tensor, Tensor | None, Tensor, float, bool], Tensor] | None = None
    added: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], None] | None = None


def normed(x: Tensor, eps: float, rms: bool) -> Tensor:
    """x: ... C, its LayerNorm or RMSNorm without weights."""
    return (F.rms_norm if rms else F.layer_norm)(x, x.shape[-1:], eps=eps)


def modulated(x: Tensor, shift: Tensor | None, gain: Tensor, eps: float, rms: bool) -> Tensor:
    """x: ... C; shift and gain broadcast to it."""
    h = normed(x, eps, rms)
    return h.mul_(gain) if shift is None else torch.addcmul(shift, h, gain, out=h)


def gelu_(x: Tensor) -> Tensor:
    """The tanh approximation, in place."""
    out: Tensor = torch.ops.aten.gelu_.default(x, approximate="tanh")
    return out


def swiglu_(gate: Tensor, value: Tensor) -> Tensor:
    """In place of the gate."""
    return F.silu(gate, inplace=True).mul_(value)


def _modulated_to_fuse(x: Tensor, shift: Tensor | None, gain: Tensor, eps: float, rms: bool) -> Tensor:
    h = normed(x, eps, rms) * gain
    return h if shift is None else h + shift


def _gelu_to_fuse(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _swiglu_to_fuse(gate: Tensor, value: Tensor) -> Tensor:
    return F.silu(gate) * value


EAGER = Pointwise(modulated, gelu_, swiglu_)


@cache
def compiled(backend: str = "inductor") -> Pointwise:
    """The functions fused by `backend`; compiled when they first run."""
    fuse = partial(torch.compile, dynamic=True, backend=backend)
    return Pointwise(fuse(_modulated_to_fuse), fuse(_gelu_to_fuse), fuse(_swiglu_to_fuse))


Inner = Callable[[list[Tensor], Part], Tensor]
ALIGNED = 16  # numbers: 64 bytes in float32, a cache line


def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x: M C, weight: U C, bias: (U,) -> M U.

    Its rows begin on cache lines: where groups are of uneven widths (341 channels, say), MKL is up to a third slower without.
    """
    U = len(bias)
    if torch.compiler.is_compiling() or U % ALIGNED == 0:  # a compiler lays its own results out
        return torch.addmm(bias, x, weight.t())
    rows = x.new_empty(len(x), U + -U % ALIGNED)[:, :U]
    return torch.addmm(bias, x, weight.t(), out=rows)


def sparse_linears(parts: Sequence[Part], x: Tensor, bias: Tensor, inner: Inner) -> Tensor:
    """x: M C -> M C: each part's products, `inner` from their results to the output's columns, and the sum of the outputs.

    Without any part it is the output's bias.
    """
    total = bias.expand_as(x)
    for i, part in enumerate(parts):
        hidden = inner([product(x, *pair) for pair in part.inputs], part)  # M Uu
        total = torch.addmm(total, hidden, part.output.t(), out=total if i else None)
    return total if parts else total.clone()


def sparse_attention(
    parts: Sequence[Part], x: Tensor, bias: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """x: B N C -> B N C, the active heads alone; `attend` takes q, k, v (each B h N D) to B h N D."""
    B, N, C = x.shape

    def inner(rows: list[Tensor], part: Part) -> Tensor:
        q, k, v = rows[0].view(B, N, part.units, 3, -1).transpose(1, 2).unbind(3)  # each B h N D
        return attend(q, k, v).transpose(1, 2).reshape(B * N, -1)  # BN hD

    return sparse_linears(parts, x.view(-1, C), bias, inner).view(B, N, C)


def sparse_mlp(parts: Sequence[Part], x: Tensor, bias: Tensor, activate: Callable[..., Tensor] = EAGER.gelu) -> Tensor:
    """x: A C -> A C, the active channel groups alone; `activate` takes what each product gave, A U."""
    return sparse_linears(parts, x, bias, lambda rows, part: activate(*rows))


def active_tokens(mask: Tensor) -> Tensor:
    """The places of a mask's ones (B N) in the flattened batch, (A,)."""
    return mask.flatten().nonzero().squeeze(1)


def first_tokens(mask: Tensor, room: int) -> Tensor:
    """The places of a mask's ones (B N) in the flattened batch, and after them those of its zeros: the first `room` of them,
    (room,). No place comes twice, and no shape depends on the mask."""
    on = mask.flatten() > 0  # BN
    ones, places = on.long().cumsum(0), torch.arange(on.numel(), device=on.device)  # each BN
    order = torch.where(on, ones - 1, ones[-1] + places - ones)  # BN
    return torch.empty_like(places).scatter_(0, order, places)[:room]


def add_to_active(
    x: Tensor,
    active: Tensor,
    per_sample: tuple[Tensor | None, Tensor, Tensor],
    norm: tuple[float, bool],
    mlp: Callable[[Tensor], Tensor],
    pointwise: Pointwise,
    kept: list[Tensor] | None = None,
    mask: Tensor | None = None,
    last: Tensor | None = None,
) -> None:
    """x (B N C) += gate * mlp(modulated x) in place, for the rows `active` of the flattened batch alone.

    `per_sample` are shift, gain and gate, each B C; `norm` is its eps, and whether it is an RMSNorm; `mlp` takes A C to A C.
    With a `mask` (B N, zeros and ones) `active` has other rows too, none of them twice: nothing is added to those. `last`,
    where it is a tensor B N C and there is no mask, has what the MLP last returned of every row: the other rows get gate *
    that, and it is brought up to date. `kept`, where it is a list, is given what the MLP returned, B N C, and where it did not
    run its last, or zeros.
    """
    B, N, C = x.shape
    shift, gain, gate = per_sample
    if len(active) == 0:
        if last is not None:
            x.addcmul_(gate.unsqueeze(1), last)
        if kept is not None:
            kept.append(torch.zeros_like(x) if last is None else last.clone())
        return
    if len(active) == B * N:
        with region(MODULATION):
            h = pointwise.modulated(x, None if shift is None else shift.unsqueeze(1), gain.unsqueeze(1), *norm).view(-1, C)
        h = mlp(h).view(B, N, C)
        if mask is not None:
            h.mul_(mask.unsqueeze(-1))
        if kept is not None:
            kept.append(h)
        if last is not None:
            last.copy_(h)
        x.addcmul_(gate.unsqueeze(1), h)
        return
    flat, sample = x.view(-1, C), active // N  # BN C; A
    if pointwise.gathered is not None:
        with region(MODULATION):
            h = pointwise.gathered(x, active, shift, gain, *norm)  # A C
    else:
        with region(GATHER):
            h = flat.index_select(0, active)  # A C
            gain = gain.index_select(0, sample)  # A C
            shift = None if shift is None else shift.index_select(0, sample)
        with region(MODULATION):
            h = pointwise.modulated(h, shift, gain, *norm)
    h = mlp(h)  # A C
    if last is not None:
        with region(GATHER):
            last.view(-1, C).index_copy_(0, active, h)
            x.addcmul_(gate.unsqueeze(1), last)
        if kept is not None:
            kept.append(last.clone())
        return
    if kept is not None:
        with region(GATHER):
            on = h if mask is None else h * mask.flatten().index_select(0, active).unsqueeze(-1)
            kept.append(torch.zeros_like(flat).index_copy_(0, active, on).view(B, N, C))
    with region(GATHER):
        if pointwise.added is not None:
            pointwise.added(x, active, gate, h, mask)
            return
        gate = gate.index_select(0, sample)  # A C
        if mask is None:
            flat.index_add_(0, active, h.mul_(gate))
        else:  # a sum into places of which none comes twice would still be taken in atomic steps
            gate.mul_(mask.flatten().index_select(0, active).unsqueeze(-1))
            flat.index_copy_(0, active, torch.addcmul(flat.index_select(0, active), gate, h))
